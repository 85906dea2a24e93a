// Command shell gives an interactive shell in the lab's network: the tutorial's nodes are up, with Jool instances in J and K.
package main

import (
	"context"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"joold/test/lab/vm"
)

func main() {
	script := "exec labguest shell"
	// A serial line does not carry the terminal's size.
	if size, err := unix.IoctlGetWinsize(int(os.Stdin.Fd()), unix.TIOCGWINSZ); err == nil && size.Row > 0 {
		script = fmt.Sprintf("stty rows %d columns %d\n%s", size.Row, size.Col, script)
	}
	vm.Main(func(ctx context.Context, jool string) error {
		return vm.Guest{Jool: jool, TTY: true}.RunScript(ctx, script, func(s vm.Stage) {
			fmt.Fprintln(os.Stderr, "lab:", [...]string{
				vm.Building:  "looking for the guests; where there are none, they are downloaded and built, in some minutes",
				vm.Compiling: "compiling joold",
				vm.Booting:   "booting a guest with Jool " + jool,
			}[s])
		})
	})
}
