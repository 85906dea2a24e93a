package nlchan

import (
	"encoding/binary"
	"errors"
	"math"

	"golang.org/x/sys/unix"

	"joold/internal/session"
)

// Message is what the module announced at one time.
type Message struct {
	Version Version // the sender's: Module's, unless the module is being replaced
	Entries []byte  // for session.Decode; valid until the buffer is used again
	Held    bool    // the caller is to acknowledge it: see Hold
}

// Hold has Receive leave it to its caller to acknowledge those messages of which
// late, by the size of their entries in bytes, says so. Until then, or until the
// flush deadline has passed, the kernel keeps what it has to say. It is to be called
// before Receive is.
func (c *Conn) Hold(late func(entries int) bool) { c.late = late }

// Receive waits for the next message of this instance. It acknowledges before
// it looks at what the message holds: until then the kernel sends no more, and
// can keep only so much. See Hold for where it does not. buf should have MessageSize
// bytes; nothing is allocated.
//
// ErrOverrun is no reason to end; ErrNoInstance and ErrStale (both are found
// out by an ACK) and ErrClosed are. A deadline is os.ErrDeadlineExceeded.
func (c *Conn) Receive(buf []byte) (Message, error) {
	const op = "hear the session channel"
	for {
		n, err := c.channel.Receive(buf)
		if errors.Is(err, unix.ENOBUFS) {
			err = ErrOverrun
		}
		if err != nil {
			return Message{}, c.fail(op, err)
		}
		m, whole, ok := parseMessage(buf[:min(n, len(buf))])
		if ok && m.family == unix.NLMSG_ERROR {
			if m.errno == 0 {
				continue
			}
			return Message{}, c.fail(op, (&KernelError{Errno: m.errno}).named(c.host))
		}
		j, isJool := c.parseJool(m.body)
		switch {
		case !ok || m.family != c.family || !isJool:
			c.counted.malformed.Add(1)
			continue
		case string(j.name) != c.instance:
			c.counted.foreign.Add(1)
			continue
		case j.flags&flagError != 0: // the answer to an ACK: the group gets none
			return Message{}, c.fail(op, j.kernelError().named(c.host))
		}
		entries := find(j.attrs, attrSessionEntries)
		sound := whole && entries != nil
		held := sound && c.late != nil && c.late(len(entries))
		if !held {
			if err := c.Ack(); err != nil {
				return Message{}, err
			}
		}
		if !sound {
			c.counted.malformed.Add(1)
			continue
		}
		return Message{Version: j.version, Entries: entries, Held: held}, nil
	}
}

// find is the body of the first attribute of a type, or nil.
func find(attrs []byte, typ uint16) []byte {
	for t, body := range attributes(attrs) {
		if t == typ {
			return body
		}
	}
	return nil
}

// Ack makes the module look at its queue and send one message, if enough waits
// or has waited for long enough. The answer, if any, comes to Receive.
func (c *Conn) Ack() error {
	if err := c.channel.Send(c.ack); err != nil {
		return c.fail("acknowledge a message", err)
	}
	c.counted.acks.Add(1)
	return nil
}

// Add gives sessions to the module, in its own encoding and in the order given
// (session.SortOldestFirst is the cheap one).
//
// The module answers only when it refuses something, with one error for a whole
// message, of which it has taken in what it could; the other messages are sent
// all the same, and the first such KernelError is returned. A session whose
// addresses collide with the table's it may well leave out without a word.
// ErrSyncDisabled, ErrNoInstance and ErrStale end it at once.
func (c *Conn) Add(sessions []session.Session, p session.Pool6) error {
	const op = "add sessions to the table"
	encoding := c.module.Encoding
	perMessage := min(c.perMessage, (math.MaxUint16-attrHeader)/encoding.EntrySize())
	var refused error
	for len(sessions) > 0 {
		n := min(perMessage, len(sessions))
		b := append(c.addBuf[:0], c.add...)
		for i := range sessions[:n] {
			b = encoding.Append(b, &sessions[i], p)
		}
		// The message's length, and its attribute's.
		binary.NativeEndian.PutUint32(b, uint32(len(b)))
		at := len(c.add) - attrHeader
		binary.NativeEndian.PutUint16(b[at:], uint16(len(b)-at))
		sessions, c.addBuf = sessions[n:], b

		if err := c.adds.Send(b); err != nil {
			return c.fail(op, err)
		}
		err := c.refusal()
		if err == nil {
			continue
		}
		if !errors.As(err, new(*KernelError)) {
			return c.fail(op, err)
		}
		if refused == nil {
			refused = c.fail(op, err)
		}
	}
	return refused
}

// refusal takes what the kernel answered to an Add, and returns its first error.
func (c *Conn) refusal() error {
	var first error
	for {
		n, err := c.adds.Poll(c.addIn)
		if err != nil || n == 0 {
			return errors.Join(first, err)
		}
		m, _, ok := parseMessage(c.addIn[:min(n, len(c.addIn))])
		if !ok || first != nil {
			continue
		}
		if m.errno != 0 {
			first = (&KernelError{Errno: m.errno}).named(c.host)
		} else if j, ok := c.parseJool(m.body); ok && j.flags&flagError != 0 {
			first = j.kernelError().named(c.host)
		}
	}
}
