// Package guest is the lab's inside: it runs in a virtual machine, as root, and builds there the network of Jool's session
// synchronization tutorial out of namespaces, with real kernel modules, real daemons, keepalived and traffic. Scenarios are Go tests on top.
// It must not know how the machine was booted, and it shares no code with the daemon it examines.
//
//	n6 ──┐            ┌── n4
//	   eth0          eth0
//	     │            │
//	  [v6]── eth0 J eth1 ──[v4]
//	     └── eth0 K eth1 ──┘
//	          J eth2 ──[sync]── eth2 K
//
// A node is a network namespace with a /run, /etc/keepalived and /etc/joold of its own. K may live in a second machine,
// reached over a virtual wire; scenarios do not see the difference.
package guest
