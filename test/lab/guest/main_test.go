//go:build lab

package guest

import (
	"fmt"
	"os"
	"strings"
	"testing"
)

func TestMain(m *testing.M) {
	if RunTool(os.Args[1:]) {
		return
	}
	// Scenarios remove namespaces and kernel modules: never on a machine that is not the lab's. Listing them is for anybody.
	if _, err := os.Stat(versionFile); err != nil && !strings.Contains(strings.Join(os.Args, " "), "-test.list") {
		fmt.Fprintln(os.Stderr, "these tests run in the lab's guests only: go test -tags lab ./test/lab")
		os.Exit(1)
	}
	os.Exit(m.Run())
}
