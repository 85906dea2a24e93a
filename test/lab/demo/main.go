// Command demo shows the failover of Jool's session synchronization tutorial, with this project's daemons, in a guest with the real Jool.
// What happens, and when, is the guest's affair (package guest); here it is put on the screen.
package main

import (
	"context"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"joold/test/lab/guest"
	"joold/test/lab/vm"
)

// network has room for a version as long as 4.1.15.
const network = `
One NAT64 dies; a ping and a TCP connection through it live on.

           2001:db8::/96                              192.0.2.0/24
                 |        +------------------------+        |
                 +-- ::4 -| J  Jool %-6[1]s  joold  |- .4 ---+
                 |        +-----------+------------+        |
   n6 --- ::8 ---+               sync | ff08::db8:64:64     +--- .8 --- n4
                 |        +-----------+------------+        |
                 +-- ::5 -| K  Jool %-6[1]s  joold  |- .5 ---+
                 |        +------------------------+        |

J and K are translators with Jool's own kernel modules. On each, this source
tree's joold tells the other of every session, with contrib's configuration.
Clients and servers talk to 2001:db8::1 and 192.0.2.1, which keepalived gives
to J, and to K when J cannot serve. n6 knows n4, 192.0.2.8, as
64:ff9b::c000:208. All of it is in a virtual machine; nothing of this one's
network or kernel is touched.
`

func main() {
	vm.Main(func(ctx context.Context, jool string) error {
		s := &screen{w: os.Stdout, start: time.Now(), width: 80}
		if size, err := unix.IoctlGetWinsize(int(os.Stdout.Fd()), unix.TIOCGWINSZ); err == nil && os.Getenv("TERM") != "dumb" {
			s.live, s.colour = true, os.Getenv("NO_COLOR") == ""
			if size.Col > 0 {
				s.width = int(size.Col)
			}
		}
		fmt.Fprintf(s.w, network, jool)

		err := vm.Guest{Jool: jool, Output: s}.RunScript(ctx, "exec "+guest.Tool+" demo", func(stage vm.Stage) {
			switch stage {
			case vm.Building:
				s.line(guest.DemoStep, "Make the virtual machine")
				s.line(guest.DemoText, "The first time, Debian's packages are downloaded and Jool's modules are")
				s.line(guest.DemoText, "compiled, which takes some minutes; then they are kept.")
			case vm.Compiling:
				s.line(guest.DemoText, "It is there. Now joold is compiled.")
			case vm.Booting:
				s.line(guest.DemoWait, "It boots, emulated")
			}
		})
		s.end()
		if err != nil {
			return fmt.Errorf("the demonstration did not succeed: %w", err)
		}
		fmt.Fprintf(s.w, "\nTime taken: %.0f s. To try things by hand in this network: make lab\n", time.Since(s.start).Seconds())
		return nil
	})
}
