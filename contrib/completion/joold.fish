# fish completion of joold, written by: joold completion fish

function __joold_instances
    begin
        ls /run/joold 2>/dev/null | sed -n 's/\(@[0-9]*\)\{0,1\}\.sock$//p'
        jool instance display --csv --no-headers 2>/dev/null | cut -d, -f2
    end | sort -u
end

# Tells whether the command line's command is the given one; none is the daemon.
function __joold_in
    set -l skip 0
    set -l command ''
    for word in (commandline -opc)[2..-1]
        if test $skip = 1
            set skip 0
            continue
        end
        switch $word
            case --batch.capacity --batch.deadline --batch.refresh --batch.table --config --control.socket --instance --log.format --log.level --max-lag --mod.capacity --mod.flush-deadline --net.accept-unsigned --net.cluster --net.dev.in --net.dev.out --net.hop-limit --net.key-file --net.mcast.addr --net.mcast.port --net.peer --net.rcvbuf --net.source --net.ttl --net.wire --rate --socket --stats.address --stats.port --timeout -i -o -p -t
                set skip 1
            case advertise follow status check keygen version help completion
                set command $word
                break
        end
    end
    test "$command" = "$argv[1]"
end

complete -c joold -n 'not __joold_in ""' -f
complete -c joold -n '__joold_in ""' -a advertise -d 'send every session of the kernel\'s table to the other nodes'
complete -c joold -n '__joold_in ""' -a follow -d 'show the sessions as the kernel announces them'
complete -c joold -n '__joold_in ""' -a status -d 'show what the running daemon does, and whom it hears'
complete -c joold -n '__joold_in ""' -a check -d 'tell by the exit status whether this node has all sessions'
complete -c joold -n '__joold_in ""' -a keygen -d 'make a key for --net.key-file'
complete -c joold -n '__joold_in ""' -a version -d 'show joold\'s version'
complete -c joold -n '__joold_in ""' -a help -d 'show help on a command, or on the exit statuses'
complete -c joold -n '__joold_in ""' -a completion -d 'write the shell\'s completion of joold'

complete -c joold -n '__joold_in ""' -l instance -s i -d 'Jool instance to serve' -x -a '(__joold_instances)'
complete -c joold -n '__joold_in ""' -l net.mcast.addr -d 'multicast group; the same as a bare ADDR' -x
complete -c joold -n '__joold_in ""' -l net.mcast.port -s p -d 'UDP port, of the group and of this node' -x
complete -c joold -n '__joold_in ""' -l net.peer -d 'send to this node by unicast as well, or instead; may be repeated' -x
complete -c joold -n '__joold_in ""' -l net.dev.in -d 'interface to receive on, or one of its addresses; or several, one a link' -x -a '(ls /sys/class/net 2>/dev/null)'
complete -c joold -n '__joold_in ""' -l net.dev.out -s o -d 'interface to send on, or one of its addresses; or several, likewise' -x -a '(ls /sys/class/net 2>/dev/null)'
complete -c joold -n '__joold_in ""' -l net.ttl -s t -d 'TTL, or hop limit, of what is sent' -x
complete -c joold -n '__joold_in ""' -l net.source -d 'accept datagrams only from here; may be repeated' -x
complete -c joold -n '__joold_in ""' -l net.hop-limit -d 'accept no datagram with a lower TTL, or hop limit; 0 accepts all' -x
complete -c joold -n '__joold_in ""' -l net.rcvbuf -d 'receive buffer of the group\'s socket' -x
complete -c joold -n '__joold_in ""' -l net.cluster -d 'cluster to belong to, if several share the group' -x
complete -c joold -n '__joold_in ""' -l net.key-file -d 'keys of the cluster: the first signs, all verify' -r -F
complete -c joold -n '__joold_in ""' -l net.encrypt -d 'encrypt sessions as well, so that no C node reads them'
complete -c joold -n '__joold_in ""' -l net.accept-unsigned -d 'hear who cannot sign, as a C node, from here; may be repeated' -x
complete -c joold -n '__joold_in ""' -l net.c-peers -d 'C daemons listen that may never speak: refresh often, for them'
complete -c joold -n '__joold_in ""' -l net.wire -d 'encoding to send, the module\'s own or that of a version' -x -a 'module 4.1.11 4.1.12 4.1.13'
complete -c joold -n '__joold_in ""' -l mod.flush-deadline -d 'set the instance\'s ss-flush-deadline; keep leaves it' -x
complete -c joold -n '__joold_in ""' -l mod.capacity -d 'raise the instance\'s ss-capacity to this; keep leaves it' -x
complete -c joold -n '__joold_in ""' -l mod.enable -d 'turn the instance\'s ss-enabled on'
complete -c joold -n '__joold_in ""' -l batch.deadline -d 'longest wait of an entry for company in its datagram' -x
complete -c joold -n '__joold_in ""' -l batch.refresh -d 'longest interval between refreshes of an unchanged session; auto is 60s while only joold is heard, else 2s' -x
complete -c joold -n '__joold_in ""' -l batch.capacity -d 'sessions that may wait to be sent' -x
complete -c joold -n '__joold_in ""' -l batch.table -d 'sessions to remember' -x
complete -c joold -n '__joold_in ""' -l stats.address -d 'serve statistics at this address' -x
complete -c joold -n '__joold_in ""' -l stats.port -d 'serve statistics at this UDP port' -x
complete -c joold -n '__joold_in ""' -l control.socket -d 'control socket (usually /run/joold/NAME.sock)' -r -F
complete -c joold -n '__joold_in ""' -l log.format -d 'text or json' -x -a 'text json'
complete -c joold -n '__joold_in ""' -l log.level -d 'debug, info, warn or error' -x -a 'debug info warn error'
complete -c joold -n '__joold_in ""' -l config -d 'file of settings, named as the flags are; flags win' -r -F
complete -c joold -n '__joold_in ""' -l version -d 'show joold\'s version'
complete -c joold -n '__joold_in ""' -l help -s h -d 'show this help'

complete -c joold -n '__joold_in "advertise"' -l instance -s i -d 'Jool instance that is meant' -x -a '(__joold_instances)'
complete -c joold -n '__joold_in "advertise"' -l socket -d 'control socket of the daemon (usually /run/joold/NAME.sock)' -r -F
complete -c joold -n '__joold_in "advertise"' -l rate -d 'sessions to send a second (default 5000)' -x
complete -c joold -n '__joold_in "advertise"' -l quiet -s q -d 'show no progress, only the result'
complete -c joold -n '__joold_in "advertise"' -l help -s h -d 'show this help'

complete -c joold -n '__joold_in "follow"' -l instance -s i -d 'Jool instance that is meant' -x -a '(__joold_instances)'
complete -c joold -n '__joold_in "follow"' -l json -d 'show JSON, one object a line'
complete -c joold -n '__joold_in "follow"' -l help -s h -d 'show this help'

complete -c joold -n '__joold_in "status"' -l instance -s i -d 'Jool instance that is meant' -x -a '(__joold_instances)'
complete -c joold -n '__joold_in "status"' -l socket -d 'control socket of the daemon (usually /run/joold/NAME.sock)' -r -F
complete -c joold -n '__joold_in "status"' -l json -d 'show JSON'
complete -c joold -n '__joold_in "status"' -l watch -d 'show it again and again, this long apart; 0s for once'
complete -c joold -n '__joold_in "status"' -l help -s h -d 'show this help'

complete -c joold -n '__joold_in "check"' -l instance -s i -d 'Jool instance that is meant' -x -a '(__joold_instances)'
complete -c joold -n '__joold_in "check"' -l socket -d 'control socket of the daemon (usually /run/joold/NAME.sock)' -r -F
complete -c joold -n '__joold_in "check"' -l allow-alone -d 'be content if no other node of joold is there'
complete -c joold -n '__joold_in "check"' -l strict -d 'fail if nodes are configured differently'
complete -c joold -n '__joold_in "check"' -l max-lag -d 'fail if lost datagrams have been missing for longer; 0s for never' -x
complete -c joold -n '__joold_in "check"' -l timeout -d 'how long the daemon may take to answer' -x
complete -c joold -n '__joold_in "check"' -l help -s h -d 'show this help'

complete -c joold -n '__joold_in "keygen"' -l help -s h -d 'show this help'

complete -c joold -n '__joold_in "version"' -l help -s h -d 'show this help'

complete -c joold -n '__joold_in "help"' -a 'advertise follow status check keygen version help completion exit-status'
complete -c joold -n '__joold_in "help"' -l help -s h -d 'show this help'

complete -c joold -n '__joold_in "completion"' -a 'bash fish zsh'
complete -c joold -n '__joold_in "completion"' -l help -s h -d 'show this help'
