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
	vm.Main(context.Background(), vm.Guest{TTY: true}, script)
}
