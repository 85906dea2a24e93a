//go:build lab

package vm

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestAGuestSucceedsOnlyIfItsProgramRanToItsEnd(t *testing.T) {
	image, err := Build(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct{ name, script, output, fault string }{
		{"ends well", "echo hello; echo a kernel message >/dev/kmsg", "hello\n", ""},
		{"ends badly", "echo hello; exit 3", "hello\n", "status 3"},
		{"is cut short by a panic", "echo hello; echo c >/proc/sysrq-trigger", "hello\n", "sysrq triggered crash"},
		{"is cut short by a power failure", "echo hello; poweroff -f", "hello\n", "before its program had ended"},
	} {
		t.Run(test.name, func(t *testing.T) {
			share := t.TempDir()
			if err := os.WriteFile(filepath.Join(share, "run"), []byte("#!/bin/sh\n"+test.script), 0o755); err != nil {
				t.Fatal(err)
			}
			var out bytes.Buffer
			err := Guest{Image: image, Jool: Versions[0], Share: share, Output: &out}.Run(t.Context())
			if out.String() != test.output {
				t.Errorf("its output is %q, not %q", out.String(), test.output)
			}
			if test.fault == "" && err != nil {
				t.Errorf("it failed: %v", err)
			}
			if test.fault != "" && (err == nil || !strings.Contains(err.Error(), test.fault)) {
				t.Errorf("%q is not in its error: %v", test.fault, err)
			}
		})
	}
}

func TestAGuestThatDoesNotBootFails(t *testing.T) {
	image, err := Build(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	broken := t.TempDir()
	if err := os.Link(filepath.Join(image, "vmlinuz"), filepath.Join(broken, "vmlinuz")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(broken, "initramfs-"+Versions[0]), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	err = Guest{Image: broken, Jool: Versions[0], Share: t.TempDir(), Output: new(bytes.Buffer)}.Run(t.Context())
	if err == nil || !strings.Contains(err.Error(), "Kernel panic") {
		t.Errorf("the console's end is not in its error: %v", err)
	}
}
