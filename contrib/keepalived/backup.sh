#!/bin/sh
# keepalived calls this at each change of state of the sync group, as: GROUP NAME STATE PRIORITY. The node
# that was serving and now stands by sends its sessions, so that the one that takes over has all of them.
# One that only starts, or returns, sends nothing: inserting what it already has would hold up the translation
# of the node that serves.
set -eu
PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
instance=default
serving=/run/keepalived.$instance.serving

case $3 in
MASTER)
	touch "$serving"
	;;
BACKUP)
	rm "$serving" 2>/dev/null || exit 0
	exec timeout 600 joold -i "$instance" advertise # a daemon that hangs does not end it
	;;
*)
	rm -f "$serving"
	;;
esac
