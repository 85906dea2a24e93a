# bash completion of joold, written by: joold completion bash

_joold_instances() {
    {
        ls /run/joold 2>/dev/null | sed -n 's/\(@[0-9]*\)\{0,1\}\.sock$//p'
        jool instance display --csv --no-headers 2>/dev/null | cut -d, -f2
    } | sort -u
}

_joold_matching() { # those lines of the input that begin with $1
    local line
    while IFS= read -r line; do
        [[ $line == "$1"* ]] && COMPREPLY+=("$line")
    done
}

_joold_words() { # those further arguments that begin with $1
    _joold_matching "$1" < <(printf '%s\n' "${@:2}")
}

_joold_files() { # those files whose path begins with $1
    compopt -o filenames 2>/dev/null
    _joold_matching "$1" < <(compgen -f -- "$1")
}

_joold() {
    local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]} command='' i
    COMPREPLY=()
    # --flag=value comes as three words.
    if [[ $cur == = ]]; then
        cur=''
    elif [[ $prev == = ]]; then
        prev=${COMP_WORDS[COMP_CWORD-2]}
    fi
    for ((i = 1; i < COMP_CWORD; i++)); do
        case ${COMP_WORDS[i]} in
        --batch.capacity|--batch.deadline|--batch.refresh|--batch.table|--config|--control.socket|--instance|--log.format|--log.level|--max-lag|--mod.capacity|--mod.flush-deadline|--net.accept-unsigned|--net.cluster|--net.dev.in|--net.dev.out|--net.hop-limit|--net.key-file|--net.mcast.addr|--net.mcast.port|--net.peer|--net.rcvbuf|--net.source|--net.ttl|--net.wire|--rate|--socket|--stats.address|--stats.port|--timeout|-i|-o|-p|-t)
            [[ ${COMP_WORDS[i+1]} == = ]] && ((i++))
            ((i++))
            ;;
        advertise|follow|status|check|keygen|version|help|completion)
            command=${COMP_WORDS[i]}
            break
            ;;
        esac
    done

    case $command:$prev in
    :-i|:--instance) _joold_matching "$cur" < <(_joold_instances); return ;;
    :--net.mcast.addr) return ;;
    :-p|:--net.mcast.port) return ;;
    :--net.peer) return ;;
    :--net.dev.in) _joold_matching "$cur" < <(ls /sys/class/net 2>/dev/null); return ;;
    :-o|:--net.dev.out) _joold_matching "$cur" < <(ls /sys/class/net 2>/dev/null); return ;;
    :-t|:--net.ttl) return ;;
    :--net.source) return ;;
    :--net.hop-limit) return ;;
    :--net.rcvbuf) return ;;
    :--net.cluster) return ;;
    :--net.key-file) _joold_files "$cur"; return ;;
    :--net.accept-unsigned) return ;;
    :--net.wire) _joold_words "$cur" module 4.1.11 4.1.12 4.1.13; return ;;
    :--mod.flush-deadline) return ;;
    :--mod.capacity) return ;;
    :--batch.deadline) return ;;
    :--batch.refresh) return ;;
    :--batch.capacity) return ;;
    :--batch.table) return ;;
    :--stats.address) return ;;
    :--stats.port) return ;;
    :--control.socket) _joold_files "$cur"; return ;;
    :--log.format) _joold_words "$cur" text json; return ;;
    :--log.level) _joold_words "$cur" debug info warn error; return ;;
    :--config) _joold_files "$cur"; return ;;
    advertise:-i|advertise:--instance) _joold_matching "$cur" < <(_joold_instances); return ;;
    advertise:--socket) _joold_files "$cur"; return ;;
    advertise:--rate) return ;;
    follow:-i|follow:--instance) _joold_matching "$cur" < <(_joold_instances); return ;;
    status:-i|status:--instance) _joold_matching "$cur" < <(_joold_instances); return ;;
    status:--socket) _joold_files "$cur"; return ;;
    check:-i|check:--instance) _joold_matching "$cur" < <(_joold_instances); return ;;
    check:--socket) _joold_files "$cur"; return ;;
    check:--max-lag) return ;;
    check:--timeout) return ;;
    esac

    case $command:$cur in
    :-*) _joold_words "$cur" -i --instance --net.mcast.addr -p --net.mcast.port --net.peer --net.dev.in -o --net.dev.out -t --net.ttl --net.source --net.hop-limit --net.rcvbuf --net.cluster --net.key-file --net.encrypt --net.accept-unsigned --net.c-peers --net.wire --mod.flush-deadline --mod.capacity --mod.enable --batch.deadline --batch.refresh --batch.capacity --batch.table --stats.address --stats.port --control.socket --log.format --log.level --config --version -h --help ;;
    :*) _joold_words "$cur" advertise follow status check keygen version help completion; _joold_files "$cur" ;;
    advertise:-*) _joold_words "$cur" -i --instance --socket --rate -q --quiet -h --help ;;
    follow:-*) _joold_words "$cur" -i --instance --json -h --help ;;
    status:-*) _joold_words "$cur" -i --instance --socket --json --watch -h --help ;;
    check:-*) _joold_words "$cur" -i --instance --socket --allow-alone --strict --max-lag --timeout -h --help ;;
    keygen:-*) _joold_words "$cur" -h --help ;;
    version:-*) _joold_words "$cur" -h --help ;;
    help:-*) _joold_words "$cur" -h --help ;;
    help:*) _joold_words "$cur" advertise follow status check keygen version help completion exit-status ;;
    completion:-*) _joold_words "$cur" -h --help ;;
    completion:*) _joold_words "$cur" bash fish zsh ;;
    esac
}

complete -F _joold joold
