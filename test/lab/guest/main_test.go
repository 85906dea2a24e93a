//go:build lab

package guest

import (
	"os"
	"testing"
)

func TestMain(m *testing.M) {
	if RunTool(os.Args[1:]) {
		return
	}
	os.Exit(m.Run())
}
