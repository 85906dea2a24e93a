package config

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"syscall"

	"golang.org/x/sys/unix"

	"joold/internal/wire"
)

// maxKeyFile is how long a file of keys may be, in bytes: each key with a comment.
const maxKeyFile = 1 << 16

func setKeyFile(c *Config, s string) error {
	if len(s) >= unix.PathMax {
		return errors.New("want the path of a file")
	}
	c.KeyFile = s
	return nil
}

func setEncrypt(c *Config, s string) error { return setTruth(&c.Encrypt, s) }

// noSource stands for an empty list of sources.
const noSource = "none"

func setUnsigned(c *Config, s string) error {
	c.Unsigned = nil
	if s == noSource || s == "" { // an empty list in a file
		return nil
	}
	return setPrefixes(&c.Unsigned, s, noSource)
}

// readKeys reads the keys that the settings name, and looks whether all that is
// set goes together with them.
func (c *Config) readKeys() error {
	if c.KeyFile == "" {
		switch {
		case c.Encrypt:
			return errors.New("--net.encrypt: there is no key to encrypt with: name a file of keys by --net.key-file")
		case len(c.Unsigned) > 0:
			return errors.New("--net.accept-unsigned: everybody is heard unless there is a key: name a file of keys by --net.key-file")
		}
		return nil
	}
	data, err := loadSecret(c.KeyFile)
	if err != nil {
		return fmt.Errorf("--net.key-file: %w", err)
	}
	if c.Keys, err = wire.ParseKeys(data); err != nil {
		return fmt.Errorf("--net.key-file: %s: %w", c.KeyFile, err)
	}
	if c.Encrypt && len(c.Unsigned) > 0 {
		c.warn("--net.encrypt hides the sessions from the nodes that --net.accept-unsigned names: they are heard, and hear nothing")
	}
	return nil
}

// loadSecret reads a file that nobody but root and this process's user may read
// or change.
func loadSecret(path string) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0) // it waits for no writer of a pipe
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("%w: `joold keygen` makes a key", err)
	case errors.Is(err, fs.ErrPermission):
		return nil, fmt.Errorf("%w: let the user that joold runs as, %d, own it: `chown`", err, os.Geteuid())
	case err != nil:
		return nil, err
	}
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return nil, fmt.Errorf("stat %s: %w", path, err)
	}
	acl := make([]byte, 1024)
	n, _ := unix.Fgetxattr(int(f.Fd()), "system.posix_acl_access", acl) // mostly there is none
	if err := checkSecret(&st, acl[:max(0, n)], uint32(os.Geteuid())); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	data, err := io.ReadAll(io.LimitReader(f, maxKeyFile+1))
	if err != nil {
		return nil, err
	}
	if len(data) > maxKeyFile {
		return nil, fmt.Errorf("%s: longer than %d bytes, which no file of keys is", path, maxKeyFile)
	}
	return data, nil
}

// checkSecret tells why a file is not fit for secrets. Of a file with an access
// control list the mode shows, as the group's, what the list grants at the most.
// systemd makes such lists where LoadCredential= is for a service with User=.
func checkSecret(st *unix.Stat_t, acl []byte, self uint32) error {
	const groupBits, others = 0o070, 0o007
	switch mode := st.Mode & 0o777; {
	case st.Mode&unix.S_IFMT != unix.S_IFREG:
		return errors.New("not a regular file, and keys are read from no other")
	case st.Uid != 0 && st.Uid != self:
		return fmt.Errorf("user %d owns it, who so can read and change the keys: want root, or the user that joold runs as, %d: `chown`", st.Uid, self)
	case mode&others != 0, mode&groupBits != 0 && !grantsOnly(acl, self):
		return fmt.Errorf("mode %#o: others than its owner may read or change it: `chmod 600`, and put in new keys if somebody may have read these", mode)
	}
	return nil
}

// grantsOnly tells whether an access control list, as the kernel gives it, grants
// something to its file's owner, root and self, and to nobody else.
func grantsOnly(acl []byte, self uint32) bool {
	const (
		version, header, entry = 2, 4, 8

		owner, user, mask = 0x01, 0x02, 0x10 // tags; the others are groups and everybody
	)
	if len(acl) < header || binary.LittleEndian.Uint32(acl) != version {
		return false
	}
	for acl = acl[header:]; len(acl) >= entry; acl = acl[entry:] {
		tag, grants, id := binary.LittleEndian.Uint16(acl), binary.LittleEndian.Uint16(acl[2:]), binary.LittleEndian.Uint32(acl[4:])
		switch {
		case tag == owner, tag == mask, grants == 0:
		case tag == user && (id == 0 || id == self):
		default:
			return false
		}
	}
	return len(acl) == 0
}
