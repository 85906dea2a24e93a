// Package vm boots the lab's guests with qemu and knows when they ran to their end. What runs inside is its caller's affair.
package vm

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Versions are Jool's, as build.sh makes guests of them.
var Versions = []string{"4.1.9", "4.1.13", "4.1.15"}

// bootLimit is many times what an emulated guest needs on a busy machine (about 6 s on an idle one).
const bootLimit = 5 * time.Minute

// A Guest is what to boot.
type Guest struct {
	Image  string    // the directory that Build returned
	Jool   string    // one of Versions
	Share  string    // the host directory that the guest sees as /lab; the guest runs its file "run"
	Wire   *os.File  // one end of a Wire, the guest's eth0; nil for a guest alone
	Output io.Writer // what "run" writes, free of the kernel's messages; unused with TTY
	TTY    bool      // run on this process's terminal
}

// Wire makes a virtual wire; its ends are two guests' Wire. The caller closes both once the guests have been started.
func Wire() (a, b *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("make a wire between two guests: %w", err)
	}
	return os.NewFile(uintptr(fds[0]), "wire"), os.NewFile(uintptr(fds[1]), "wire"), nil
}

// Build makes what is missing of the guests' kernel and file systems, and returns the directory that holds them.
func Build(ctx context.Context) (string, error) {
	dir, err := Dir()
	if err != nil {
		return "", err
	}
	cmd := exec.CommandContext(ctx, filepath.Join(dir, "build.sh"))
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("make the lab's guests with %s: %w", cmd.Path, err)
	}
	return strings.TrimSpace(string(out)), nil
}

// Dir is test/lab in the source tree that the process was started in.
func Dir() (string, error) {
	mod, err := exec.Command("go", "env", "GOMOD").Output()
	if err != nil {
		return "", fmt.Errorf("find the source tree with go env: %w", err)
	}
	return filepath.Join(filepath.Dir(strings.TrimSpace(string(mod))), "test", "lab"), nil
}

// Programs compiles into dir what runs in the guests: joold, and labguest, which is package guest.
func Programs(ctx context.Context, dir string) error {
	if err := compile(ctx, "build", "-o", filepath.Join(dir, "joold"), "joold/cmd/joold"); err != nil {
		return err
	}
	return TestProgram(ctx, filepath.Join(dir, "labguest"), "joold/test/lab/guest")
}

// TestProgram compiles the tests of a package, those for the lab among them, into a program.
func TestProgram(ctx context.Context, file, pkg string) error {
	return compile(ctx, "test", "-c", "-tags", "lab", "-o", file, pkg)
}

func compile(ctx context.Context, args ...string) error {
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%v: %w\n%s", cmd, err, out)
	}
	return nil
}

// Share makes dir a guest's /lab: the programs out of another directory, contrib, and a shell script as "run", which finds the programs on its PATH.
func Share(dir, programs, script string) error {
	lab, err := Dir()
	if err != nil {
		return err
	}
	files, err := os.ReadDir(programs)
	if err != nil {
		return err
	}
	copies := ""
	for _, f := range files {
		if err := os.Link(filepath.Join(programs, f.Name()), filepath.Join(dir, f.Name())); err != nil {
			return err
		}
		copies += "cp /lab/" + f.Name() + " /usr/bin\n"
	}
	if err := os.CopyFS(filepath.Join(dir, "contrib"), os.DirFS(filepath.Join(lab, "../../contrib"))); err != nil {
		return err
	}
	// Out of the guest's memory programs start at once; over the share each page is a message.
	text := "#!/bin/sh\n" + copies + script + "\n"
	return os.WriteFile(filepath.Join(dir, "run"), []byte(text), 0o755)
}

// Run boots the guest and waits until it has powered itself off. A guest that does not boot, that stops before "run" has ended, or whose
// "run" fails is an error, which carries the end of the console. Cancelling ctx kills the guest.
func (g Guest) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)

	// The guest must not outlive this process, however that ends; the kernel watches the thread that started it.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()

	console := filepath.Join(g.Share, "console.log")
	cmd := exec.CommandContext(ctx, "qemu-system-x86_64", g.args(console)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if g.Wire != nil {
		cmd.ExtraFiles = []*os.File{g.Wire}
	}
	if g.TTY {
		cmd.Stdin, cmd.Stdout = os.Stdin, os.Stdout
		if err := cmd.Run(); err != nil {
			return fmt.Errorf("run a guest with Jool %s in qemu: %w: %s", g.Jool, err, stderr.String())
		}
		return nil
	}

	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start qemu for a guest with Jool %s: %w", g.Jool, err)
	}
	boot := time.AfterFunc(bootLimit, func() { cancel(fmt.Errorf("not booted after %v", bootLimit)) })
	status := g.follow(stdout, func() { boot.Stop() })
	boot.Stop()
	err = cmd.Wait()

	switch {
	case ctx.Err() != nil:
		err = context.Cause(ctx)
	case status == "0":
		return nil
	case status != "":
		err = fmt.Errorf("its program ended with status %s", status)
	case err == nil:
		err = errors.New("it stopped before its program had ended")
	}
	return fmt.Errorf("guest with Jool %s: %w\n%s%s", g.Jool, err, stderr.String(), tail(console, 60))
}

func (g Guest) args(console string) []string {
	// The emulated TSCs are the host's, hence equal. Linux, which does not know, would read the time from an emulated HPET: sleeps then took
	// 5 ms longer on average, now 1 ms.
	cmdline := "console=ttyS0 panic=-1 loglevel=5 nosoftlockup rcupdate.rcu_cpu_stall_suppress=1 tsc=reliable"
	args := []string{
		"-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", "2048",
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-kernel", filepath.Join(g.Image, "vmlinuz"),
		"-initrd", filepath.Join(g.Image, "initramfs-"+g.Jool),
		"-virtfs", "local,mount_tag=lab,security_model=none,path=" + g.Share,
		"-device", "virtio-serial-pci",
	}
	if g.TTY {
		cmdline += " quiet lab.tty"
		args = append(args, "-chardev", "stdio,id=console,signal=off")
	} else {
		args = append(args, "-chardev", "file,id=console,path="+console,
			"-chardev", "file,id=out,path=/dev/stdout", "-device", "virtserialport,chardev=out,name=lab")
	}
	args = append(args, "-serial", "chardev:console")
	if g.Wire != nil {
		// Two guests on one wire must not share a hardware address; the descriptor is the first of ExtraFiles.
		mac := fmt.Sprintf("52:54:00:6a:6c:%02x", byte(g.Wire.Fd()))
		args = append(args, "-netdev", "socket,id=wire,fd=3", "-device", "virtio-net-pci,netdev=wire,romfile=,mac="+mac)
	}
	return append(args, "-append", cmdline)
}

// follow copies the program's output and takes init's own two lines out of it: "lab: booted" and "lab: exit STATUS".
func (g Guest) follow(r io.Reader, booted func()) (status string) {
	lines := bufio.NewReader(r)
	for {
		line, err := lines.ReadString('\n')
		switch {
		case strings.HasPrefix(line, "lab: booted"):
			booted()
		case strings.HasPrefix(line, "lab: exit "):
			status = strings.TrimSpace(strings.TrimPrefix(line, "lab: exit "))
		default:
			io.WriteString(g.Output, line)
		}
		if err != nil {
			return status
		}
	}
}

func tail(file string, n int) string {
	text, err := os.ReadFile(file)
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	return "the last of its console:\n" + strings.Join(lines[max(0, len(lines)-n):], "\n")
}
