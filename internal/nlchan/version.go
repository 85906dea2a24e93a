package nlchan

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"strconv"
	"strings"

	"joold/internal/session"
)

// Version is that of a Jool module, as it stands in the header of each message.
type Version struct{ Major, Minor, Revision, Dev uint8 }

// ParseVersion reads a module's version file: "4.1.15.0", or "4.1.15".
func ParseVersion(s string) (Version, error) {
	var v [4]uint8
	parts := strings.Split(s, ".")
	if len(parts) != 3 && len(parts) != 4 {
		return Version{}, fmt.Errorf("%q is not a version of Jool: want something like 4.1.15.0", s)
	}
	for i, part := range parts {
		n, err := strconv.ParseUint(part, 10, 8)
		if err != nil {
			return Version{}, fmt.Errorf("%q is not a version of Jool: %q is not a number from 0 to 255", s, part)
		}
		v[i] = uint8(n)
	}
	return Version{v[0], v[1], v[2], v[3]}, nil
}

// String leaves Dev out where it is zero, as it is in every release.
func (v Version) String() string {
	if v.Dev == 0 {
		return fmt.Sprintf("%d.%d.%d", v.Major, v.Minor, v.Revision)
	}
	return fmt.Sprintf("%d.%d.%d.%d", v.Major, v.Minor, v.Revision, v.Dev)
}

// Compare is negative when v is older than o, positive when it is newer.
func (v Version) Compare(o Version) int {
	return cmp.Or(
		cmp.Compare(v.Major, o.Major),
		cmp.Compare(v.Minor, o.Minor),
		cmp.Compare(v.Revision, o.Revision),
		cmp.Compare(v.Dev, o.Dev),
	)
}

// Less tells whether v is older than release major.minor.revision.
func (v Version) Less(major, minor, revision uint8) bool {
	return v.Compare(Version{Major: major, Minor: minor, Revision: revision}) < 0
}

// Candidate42 tells whether v is one of 4.2.0's release candidates, which call
// themselves 4.1.255.
func (v Version) Candidate42() bool { return v.Major == 4 && v.Minor == 1 && v.Revision == 255 }

// since tells whether v has what release 4.1.revision brought, from 4.1.11 on.
// The candidates before rc3, 4.1.255.2 and .3, have none of it.
func (v Version) since(revision uint8) bool {
	return !v.Less(4, 1, revision) && !(v.Candidate42() && v.Dev < 5)
}

// Encoding is the one in which the module speaks of sessions on the channel.
func (v Version) Encoding() session.Encoding {
	switch {
	case !v.since(12):
		return session.Enc4111
	case !v.since(13):
		return session.Enc4112
	}
	return session.Enc4113
}

// ModuleVersion is the version of the NAT64 module that this machine runs. It
// fails with ErrNoModule when there is none.
func ModuleVersion(opts ...Option) (Version, error) {
	v, err := moduleVersion(newOptions(opts).host)
	if err != nil {
		return Version{}, &Error{Op: "find the version of Jool", Err: err}
	}
	return v, nil
}

// The family and the version are jool_common's, which SIIT Jool needs as well:
// that it is there does not mean that NAT64 is.
func moduleVersion(h Host) (Version, error) {
	_, err := h.Module("jool")
	var s string
	if err == nil {
		s, err = h.Module("jool_common")
	}
	if errors.Is(err, fs.ErrNotExist) {
		return Version{}, ErrNoModule
	}
	if err != nil {
		return Version{}, err
	}
	return ParseVersion(s)
}
