package nlchan

import "time"

// Host is what this package needs of the machine. nlchantest has a model of one.
type Host interface {
	// Socket opens a NETLINK_GENERIC socket in the caller's network namespace.
	Socket() (Socket, error)
	// Module is the version that a loaded module states; its error is
	// fs.ErrNotExist when it is not loaded.
	Module(name string) (version string, err error)
	// InUserNamespace tells whether the process is in another user namespace
	// than the initial one, the only one in which Jool looks for privileges.
	InUserNamespace() bool
}

// Socket is a netlink socket to the kernel. One goroutine may receive while
// others send.
type Socket interface {
	// Send gives the kernel one message. The kernel works in the caller's
	// thread: when Send returns it has acted, and its answer waits.
	Send(b []byte) error
	// Receive waits for the next message from the kernel. It returns its full
	// length, even if b held only the beginning; unix.ENOBUFS when messages
	// were lost, os.ErrDeadlineExceeded, or ErrClosed.
	Receive(b []byte) (n int, err error)
	// Poll is Receive without waiting: n is 0 when there is nothing.
	Poll(b []byte) (n int, err error)
	// Drops is how many messages found no room in the receive buffer. It may be
	// asked by anybody at any time; a closed socket keeps its last number.
	Drops() uint64
	// Join makes the socket hear a multicast group.
	Join(group uint32) error
	// SetReadBuffer asks for a receive buffer, and tells how large it is now.
	SetReadBuffer(bytes int) (got int, err error)
	// SetReadDeadline bounds Receive, also one that waits already; the zero
	// time lifts the bound.
	SetReadDeadline(t time.Time) error
	// Close ends the socket, and a Receive that waits.
	Close() error
}

// Option changes how a connection is made.
type Option func(*options)

type options struct {
	host       Host
	readBuffer int
	perMessage int
}

func newOptions(opts []Option) options {
	o := options{host: linux{}, readBuffer: 4 << 20, perMessage: 250}
	for _, opt := range opts {
		opt(&o)
	}
	return o
}

// On makes connections to another machine than the real one.
func On(h Host) Option { return func(o *options) { o.host = h } }

// ReadBuffer asks for a receive buffer of so many bytes for the channel,
// beyond the system's limit where permitted. The default is 4 MiB.
func ReadBuffer(bytes int) Option { return func(o *options) { o.readBuffer = bytes } }

// PerMessage bounds the sessions in one JOOLD_ADD, while which generic netlink is
// locked, ACKs wait, and so does translation. The default is 250.
func PerMessage(sessions int) Option {
	return func(o *options) { o.perMessage = max(1, sessions) }
}
