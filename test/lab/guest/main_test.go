//go:build lab

package guest

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
)

func TestMain(m *testing.M) {
	if RunTool(os.Args[1:]) {
		return
	}
	// Scenarios remove namespaces and kernel modules: never on a machine that is not the lab's. Listing them is for anybody.
	if _, err := os.Stat(versionFile); err != nil {
		if !strings.Contains(strings.Join(os.Args, " "), "-test.list") {
			fmt.Fprintln(os.Stderr, "these tests run in the lab's guests only: go test -tags lab ./test/lab")
			os.Exit(1)
		}
		os.Exit(m.Run())
	}
	status := m.Run()
	// Other tests may follow in this guest.
	if out, err := exec.Command("sh", "-euc", cleanSlate).CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "take the lab down: %v: %s\n", err, out)
		status = 1
	}
	os.Exit(status)
}
