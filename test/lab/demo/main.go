// Command demo shows the failover of Jool's session synchronization tutorial, with this project's daemons, in a guest with the real Jool.
package main

import (
	"context"
	"os"

	"joold/test/lab/vm"
)

func main() { vm.Main(context.Background(), vm.Guest{Output: os.Stdout}, "exec labguest demo") }
