package main

import (
	"os"
	"path/filepath"
	"testing"

	"joold/internal/config"
)

func TestTheKeysThatAreMadeAreThoseThatTheDaemonTakes(t *testing.T) {
	var file []byte
	for range 2 {
		status, stdout, stderr := joold(t, "keygen")
		if status != exitOK || stderr != "" {
			t.Fatalf("status %d, %q", status, stderr)
		}
		file = append(file, stdout...)
	}
	path := filepath.Join(t.TempDir(), "keys")
	if err := os.WriteFile(path, file, 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := config.Parse([]string{"ff08::1", "--net.key-file", path})
	if err != nil || len(c.Keys.Hints()) != 2 {
		t.Errorf("%v, %v", c, err)
	}
}
