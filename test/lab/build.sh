#!/bin/bash
# Makes the lab's guests: Debian 12's kernel, Jool's modules and C tools in three versions, and a small root file system.
# Prints the directory that holds vmlinuz and initramfs-VERSION. Every stage is cached under a hash of what it is made from,
# so a second run touches neither network nor compiler. Root is needed only when a build tool has to be installed.
set -Eeuo pipefail
trap 'echo "lab: build.sh line $LINENO: $BASH_COMMAND: failed" >&2' ERR

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cache=${JOOLD_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/joold}/lab
export LC_ALL=C DEBIAN_FRONTEND=noninteractive

# Each version of Jool, and the Debian suite that carries it.
versions="4.1.9:bookworm 4.1.13:trixie 4.1.15:sid"

# What the guest's root is made of, with all that these depend on, out of bookworm.
guest_packages="busybox-static util-linux dash bash iproute2 iputils-ping nftables tcpdump keepalived kmod socat"
guest_programs="busybox nsenter unshare setpriv dash bash ip ss tc bridge ping nft tcpdump keepalived kmod socat"

# Kernel modules besides Jool's; their dependencies come along.
guest_modules="virtio_pci virtio_net virtio_console 9pnet_virtio 9p
	veth bridge 8021q dummy macvlan tun sch_netem sch_tbf sch_prio sch_htb sch_ingress cls_u32 cls_matchall act_gact
	nf_tables nft_ct nft_reject_inet nft_limit nft_log nft_numgen nft_hash
	nf_defrag_ipv4 nf_defrag_ipv6 nf_conntrack x_tables
	inet_diag tcp_diag udp_diag raw_diag unix_diag netlink_diag af_packet_diag"

log=

say() { echo "lab: $*" >&2; }

die() {
	say "$*"
	exit 1
}

# quietly runs a command and shows what it wrote only if it fails.
quietly() {
	"$@" >"$log" 2>&1 || {
		tail -n 30 "$log" >&2
		die "'$*' failed; its last lines are above"
	}
}

hash() { sha256sum | cut -c1-16; }

# stage NAME KEY FUNCTION makes $cache/NAME-KEY with FUNCTION, which works in a directory that is renamed only when it is whole.
stage() {
	local dir=$cache/$1-$2 tmp
	if [ ! -d "$dir" ]; then
		say "making $1"
		tmp=$(mktemp -d "$cache/tmp.$1.XXXXXX")
		log=$tmp.log
		(cd "$tmp" && "$3")
		chmod 755 "$tmp"
		mv -T "$tmp" "$dir"
		rm -f "$log"
	fi
	touch "$dir"
	made=$dir
}

# debian_uri is where this machine itself gets Debian's packages from.
debian_uri() {
	apt-get indextargets --format '$(REPO_URI) $(RELEASE)' 'Created-By: Packages' 'Component: main' |
		awk '$2 == "bookworm" { print $1; exit }'
}

# use_suite points apt at one suite, with a state of its own: the machine's own package state is not touched.
# Dir::State::status is empty, so that dependencies are downloaded although the machine may have them.
use_suite() {
	local state=$cache/apt/$1
	mkdir -p "$state/lists/partial" "$state/archives/partial"
	: >"$state/status"
	echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $uri $1 main" >"$state/sources.list"
	cat >"$state/apt.conf" <<-END
		Dir::Etc::sourcelist "$state/sources.list";
		Dir::Etc::sourceparts "/dev/null";
		Dir::State::Lists "$state/lists";
		Dir::State::status "$state/status";
		Dir::Cache "$state";
		Dir::Cache::archives "$state/archives";
		Acquire::Languages "none";
		Acquire::IndexTargets::deb::DEP-11::DefaultEnabled "false";
		APT::Architecture "amd64";
		APT::Sandbox::User "root";
	END
	export APT_CONFIG=$state/apt.conf
	archives=$state/archives
}

# download_debs fills SUITE/*.deb for each suite.
download_debs() {
	local uri kv v
	uri=$(debian_uri)
	[ -n "$uri" ] || die "apt's sources name no 'bookworm main': the lab builds on Debian 12"
	for v in $versions; do
		use_suite "${v#*:}"
		quietly apt-get update
		mkdir "${v#*:}"
		apt-cache madison jool-dkms | awk '{ print $3 }' | grep -q "^${v%:*}-" ||
			die "suite ${v#*:} has jool-dkms $(apt-cache madison jool-dkms | awk '{ print $3 }'), not ${v%:*}"
		(cd "${v#*:}" && quietly apt-get download jool-dkms jool-tools libc6 libnl-3-200 libnl-genl-3-200 libxtables12)
	done
	use_suite bookworm
	quietly apt-get install -d -y --no-install-recommends $guest_packages
	cp -n "$archives"/*.deb bookworm/
	kv=$(apt-cache depends linux-image-amd64 | sed -n 's/.*Depends: linux-image-//p')
	(cd bookworm && quietly apt-get download "linux-image-$kv" "linux-headers-$kv" "linux-headers-${kv%-amd64}-common" linux-kbuild-6.1)
	rm -rf "$cache"/apt/*/archives
	echo "$kv" >kernel
}

# unpack DIR DEB... extracts packages into a merged-/usr tree.
unpack() {
	local dir=$1 deb
	shift
	mkdir -p "$dir"/usr/{bin,sbin,lib,lib64}
	for deb in bin sbin lib lib64; do ln -sfn "usr/$deb" "$dir/$deb"; done
	for deb; do
		dpkg-deb --fsys-tarfile "$deb" | tar -x --keep-directory-symlink -C "$dir" || die "cannot unpack $deb"
	done
}

# build_modules compiles each version's jool_common and jool; the headers stay out of the machine's own /usr/src.
build_modules() {
	local src v
	unpack headers "$debs"/bookworm/linux-{headers,kbuild}-*.deb
	# Debian's headers refer to themselves by absolute paths.
	sed -i "s|/usr/src/|$PWD/headers/usr/src/|" "headers/usr/src/linux-headers-$kv/Makefile"
	for src in headers/usr/src/linux-headers-*/scripts headers/usr/src/linux-headers-*/tools; do
		[ ! -L "$src" ] || ln -sfn "$PWD/headers/usr/lib/linux-kbuild-6.1/${src##*/}" "$src"
	done
	for v in $versions; do
		unpack "src-${v%:*}" "$debs/${v#*:}"/jool-dkms_*.deb
		src=$(echo "$PWD/src-${v%:*}"/usr/src/jool-*/src/mod)
		mkdir "${v%:*}"
		for mod in common nat64; do
			quietly make -j "$(nproc)" -C "$PWD/headers/usr/src/linux-headers-$kv" M="$src/$mod" modules
		done
		for mod in common/jool_common.ko nat64/jool.ko; do
			strip --strip-debug -o "${v%:*}/${mod##*/}" "$src/$mod"
		done
	done
	rm -rf headers src-*
}

# libraries ROOT FILE... lists the shared objects that FILE needs, by ROOT's own loader.
libraries() {
	local root=$1 lib=$1/usr/lib/x86_64-linux-gnu
	shift
	for file; do
		readelf -l "$file" | grep -q INTERP || continue # busybox is static
		"$lib/ld-linux-x86-64.so.2" --library-path "$lib" --list "$file"
	done | awk -v root="$root" 'index($3, root) == 1 { print $3 }' | sort -u
}

# add_libraries IMAGE ROOT FILE... copies them, and the loader, to where programs look for them.
add_libraries() {
	local image=$1 root=$2
	mkdir -p "$image/usr/lib/x86_64-linux-gnu" "$image/usr/lib64"
	libraries "$root" "${@:3}" | xargs cp -Lft "$image/usr/lib/x86_64-linux-gnu/"
	cp -Lf "$root/usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2" "$image/usr/lib64/"
}

pack() { (cd "$1" && find . -mindepth 1 | cpio --quiet -o -H newc -R 0:0); }

# build_image makes the common part, and for each version a second archive that is laid over it: modules, C tools and the C
# library of the suite they come from, which the other programs then use as well (glibc is backward compatible, not forward).
build_image() {
	local root=$PWD/root base=$PWD/base p v over modules
	unpack root "$debs"/bookworm/*.deb
	cp "root/boot/vmlinuz-$kv" vmlinuz

	mkdir -p base/{dev,proc,sys,run,tmp,root,lab,etc/keepalived,etc/joold,usr/bin,usr/lib,var/lib}
	for p in bin sbin lib lib64; do ln -s "usr/$p" "base/$p"; done
	ln -s bin base/usr/sbin
	ln -s . base/usr/local # what is installed under either prefix is found under both
	ln -s ../run base/var/run
	cp -r "$here/image/." base/
	for p in $guest_programs; do
		cp -L "$(find root/usr/bin root/usr/sbin -name "$p" -print -quit)" base/usr/bin/
	done
	add_libraries "$base" "$root" base/usr/bin/*
	ln -s dash base/usr/bin/sh
	ln -s ping base/usr/bin/ping6
	for p in modprobe insmod rmmod lsmod modinfo; do ln -s kmod "base/usr/bin/$p"; done
	for p in $(base/usr/bin/busybox --list); do [ -e "base/usr/bin/$p" ] || ln -s busybox "base/usr/bin/$p"; done

	depmod -b root "$kv"
	modules=$(for p in $guest_modules; do
		modprobe -d root -S "$kv" --show-depends "$p" | awk '$1 == "insmod" { print $2 }'
	done | sed 's|^.*lib/modules/|lib/modules/|' | sort -u)
	for p in $modules; do install -D -m 644 "root/$p" "base/usr/$p"; done
	cp root/lib/modules/"$kv"/modules.{builtin,builtin.modinfo,order} "base/usr/lib/modules/$kv/"
	pack base >base.cpio

	for v in $versions; do
		unpack "root-${v%:*}" "$debs/${v#*:}"/{jool-tools,libc6,libnl-,libxtables12}*.deb
		over=$PWD/over-${v%:*}
		mkdir -p "$over/usr/bin" "$over/usr/lib/modules/$kv/updates" "$over/etc"
		cp "root-${v%:*}"/usr/bin/{jool,joold} "$over/usr/bin/"
		mv "$over/usr/bin/joold" "$over/usr/bin/c-joold"
		add_libraries "$over" "$PWD/root-${v%:*}" "$over"/usr/bin/*
		cp -L "root-${v%:*}"/usr/lib/x86_64-linux-gnu/lib{m,resolv,rt,dl,pthread,util,anl}.so.* "$over/usr/lib/x86_64-linux-gnu/"
		cp -r "base/usr/lib/modules/$kv/." "$over/usr/lib/modules/$kv/"
		cp "$modules_dir/${v%:*}"/*.ko "$over/usr/lib/modules/$kv/updates/"
		ln -s usr/lib "$over/lib"
		depmod -b "$over" "$kv"
		rm -r "${over:?}/lib" "$over/usr/lib/modules/$kv/kernel"
		echo "${v%:*}" >"$over/etc/jool-version"
		(cat base.cpio && pack "$over") >"initramfs-${v%:*}"
	done
	rm -rf root root-* over-* base base.cpio
}

[ $# = 0 ] || die "usage: test/lab/build.sh"
[ "$(uname -sm)" = "Linux x86_64" ] || die "the lab's guests are x86-64 Linux and so must this machine be"
mkdir -p "$cache"
exec 9>"$cache/lock"
flock 9 # two runs at once would make everything twice
"$here/../../scripts/apt-needs" qemu-system-x86 gcc-12 make cpio kmod libelf1

stage debs "$( (echo "$versions $guest_packages"; declare -f download_debs use_suite) | hash)" download_debs
debs=$made
kv=$(cat "$debs/kernel")
stage modules "$( (ls "$debs"/*; echo "$versions"; declare -f build_modules unpack) | hash)" build_modules
modules_dir=$made
stage image "$( (echo "$modules_dir $guest_programs $guest_modules"; declare -f build_image unpack libraries add_libraries pack
	cd "$here" && find image -type f | sort | xargs sha256sum) | hash)" build_image
rm -rf "$cache"/tmp.*
find "$cache" -mindepth 1 -maxdepth 1 -type d -name '*-*' -mtime +14 -exec rm -rf {} +
echo "$made"
