package nlchan

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net/netip"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"joold/internal/session"
)

// ask sends a request with these attributes and reads the answer into buf.
// The kernel answers within the call; ctx matters only between calls.
func (c *Conn) ask(ctx context.Context, op uint8, buf []byte, attrs ...netlink.Attribute) (joolMessage, error) {
	if err := ctx.Err(); err != nil {
		return joolMessage{}, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.requestID++
	request, err := c.marshal(op, c.requestID, c.instance, attrs...)
	if err != nil {
		return joolMessage{}, err
	}
	if err := c.requests.Send(request); err != nil {
		return joolMessage{}, err
	}
	m, err := poll(c.requests, buf, c.requestID)
	if refused := (*KernelError)(nil); errors.As(err, &refused) {
		return joolMessage{}, refused.named(c.host)
	}
	if err != nil {
		return joolMessage{}, err
	}
	j, ok := c.parseJool(m.body)
	switch {
	case !ok || m.family != c.family:
		return joolMessage{}, errBadAnswer
	case j.flags&flagError != 0:
		return joolMessage{}, j.kernelError().named(c.host)
	}
	return j, nil
}

// Hello asks whether the instance is there: ErrNoInstance when it is not.
func (c *Conn) Hello(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := c.hello(); err != nil {
		return c.fail("ask after the state", err)
	}
	return nil
}

func (c *Conn) hello() error {
	m, err := c.ask(context.Background(), opInstanceHello, make([]byte, answerSize))
	if err != nil {
		return err
	}
	switch status := find(m.attrs, attrHelloStatus); {
	case len(status) != 1:
		return errBadAnswer
	case status[0] != helloAlive:
		return ErrNoInstance
	}
	return nil
}

// Advertise has the module announce its whole table, in the table's order, as
// fast as it is acknowledged. ErrAdvertising says that it does so already,
// ErrCannotAdvertise that it cannot.
func (c *Conn) Advertise(ctx context.Context) error {
	const op = "advertise the sessions"
	// The order is not even harmless there: all later messages would be sent
	// half empty.
	if c.version.Less(4, 1, 11) {
		return c.fail(op, fmt.Errorf("version %s: %w", c.version, ErrCannotAdvertise))
	}
	if _, err := c.ask(ctx, c.opAdvertise, make([]byte, answerSize)); err != nil {
		return c.fail(op, err)
	}
	return nil
}

// dump asks for a table of one protocol page by page. page gets the attributes
// of each, which are entries only, until the next.
func (c *Conn) dump(ctx context.Context, op uint8, proto session.Proto, page func(entries []byte) error) error {
	buf := make([]byte, answerSize)
	attrs := []netlink.Attribute{{Type: c.attrProto, Data: []byte{uint8(proto)}}}
	var last []byte
	for {
		m, err := c.ask(ctx, op, buf, attrs...)
		if err != nil {
			return err
		}
		var end []byte
		for _, entry := range attributes(m.attrs) {
			end = entry
		}
		if end != nil && string(end) == string(last) {
			return errNoProgress
		}
		if err := page(m.attrs); err != nil {
			return err
		}
		if m.flags&flagMore == 0 || end == nil {
			return nil
		}
		// The offset is an entry in the very form in which the module writes
		// it, and it continues after that one, even if it is gone by then.
		last = append(last[:0], end...)
		attrs = append(attrs[:1], netlink.Attribute{Type: c.attrOffset | netlink.Nested, Data: last})
	}
}

// Sessions gives the instance's sessions of one protocol to page, about 25 at a
// time and ordered by address, while the table lives on: what is born or dies
// meanwhile may be missing or not. page must not keep the slice; its error ends
// the dump and is returned. Sessions that cannot be read are an UnreadableError
// at the end, when page has had the others.
func (c *Conn) Sessions(ctx context.Context, proto session.Proto, p session.Pool6, page func([]session.Session) error) error {
	op := fmt.Sprintf("dump the %s sessions", proto)
	var sessions []session.Session
	var report session.Report
	var last session.Key
	unreadable := 0
	var fromPage error
	err := c.dump(ctx, opSessionForeach, proto, func(entries []byte) error {
		sessions, report = session.Decode(sessions[:0], entries, p)
		unreadable += report.BadTotal()
		if len(sessions) == 0 {
			return nil
		}
		if key := sessions[len(sessions)-1].Key(); key == last {
			return errNoProgress // ages differ where the session is the same
		} else {
			last = key
		}
		fromPage = page(sessions)
		return fromPage
	})
	switch {
	case fromPage != nil:
		return fromPage
	case err != nil:
		return c.fail(op, err)
	case unreadable > 0:
		return c.fail(op, &UnreadableError{Count: unreadable, Pool6: p})
	}
	return nil
}

// Pool4Entry is one entry of the table that masks are taken from.
type Pool4Entry struct {
	session.Range
	Mark uint32 // of the packets that it serves
}

// Pool4 is the table of all three protocols. Empty, it means the node's own
// addresses.
func (c *Conn) Pool4(ctx context.Context) ([]Pool4Entry, error) {
	var pool []Pool4Entry
	for _, proto := range session.Protos {
		from := len(pool)
		const attempts = 5
		for attempt := 1; ; attempt++ {
			err := c.dump(ctx, opPool4Foreach, proto, func(entries []byte) error {
				return decode(entries, func(ad *netlink.AttributeDecoder) error {
					for ad.Next() {
						var e Pool4Entry
						ad.Nested(e.decode)
						pool = append(pool, e)
					}
					return nil
				})
			})
			if err == nil {
				break
			}
			// The table changed under the dump.
			if !errors.Is(err, unix.EAGAIN) || attempt == attempts {
				return nil, c.fail("dump pool4", err)
			}
			pool = pool[:from]
		}
	}
	return pool, nil
}

func (e *Pool4Entry) decode(ad *netlink.AttributeDecoder) error {
	for ad.Next() {
		switch ad.Type() {
		case attrPool4Mark:
			e.Mark = ad.Uint32()
		case attrPool4Proto:
			e.Proto = session.Proto(ad.Uint8())
		case attrPool4Prefix:
			ad.Nested(decodePrefix(&e.Prefix))
		case attrPool4MinPort:
			e.MinPort = ad.Uint16()
		case attrPool4MaxPort:
			e.MaxPort = ad.Uint16()
		}
	}
	if ad.Err() == nil && !e.Prefix.Addr().Is4() {
		return errors.New("a pool4 entry lacks its prefix")
	}
	return nil
}

// decodePrefix reads an address and a length; the zero prefix if they are none.
func decodePrefix(p *netip.Prefix) func(*netlink.AttributeDecoder) error {
	return func(ad *netlink.AttributeDecoder) error {
		var addr netip.Addr
		bits := -1
		for ad.Next() {
			switch ad.Type() {
			case attrPrefixAddr:
				addr, _ = netip.AddrFromSlice(ad.Bytes())
			case attrPrefixLen:
				bits = int(ad.Uint8())
			}
		}
		if *p = netip.PrefixFrom(addr, bits); !p.IsValid() {
			*p = netip.Prefix{}
		}
		return nil
	}
}

// BIBEntry binds an IPv6 node's transport address to its mask.
type BIBEntry struct {
	Proto session.Proto
	Src6  netip.AddrPort
	Src4  netip.AddrPort
}

// StaticBIB is what the operator entered by hand, out of the whole BIB: a table
// as large as there are connections, all of which is read.
func (c *Conn) StaticBIB(ctx context.Context) ([]BIBEntry, error) {
	var bib []BIBEntry
	for _, proto := range session.Protos {
		err := c.dump(ctx, opBIBForeach, proto, func(entries []byte) error {
			return decode(entries, func(ad *netlink.AttributeDecoder) error {
				for ad.Next() {
					// Nearly all are not, and need not be taken apart.
					static := find(ad.Bytes(), attrBIBStatic)
					if len(static) != 1 || static[0] == 0 {
						continue
					}
					var e BIBEntry
					ad.Nested(e.decode)
					bib = append(bib, e)
				}
				return nil
			})
		})
		if err != nil {
			return nil, c.fail(fmt.Sprintf("dump the %s BIB", proto), err)
		}
	}
	return bib, nil
}

func (e *BIBEntry) decode(ad *netlink.AttributeDecoder) error {
	for ad.Next() {
		switch ad.Type() {
		case attrBIBSrc6:
			ad.Nested(decodeTransport(&e.Src6))
		case attrBIBSrc4:
			ad.Nested(decodeTransport(&e.Src4))
		case attrBIBProto:
			e.Proto = session.Proto(ad.Uint8())
		}
	}
	if ad.Err() == nil && (!e.Src6.Addr().Is6() || !e.Src4.Addr().Is4()) {
		return errors.New("a BIB entry lacks an address")
	}
	return nil
}

func decodeTransport(to *netip.AddrPort) func(*netlink.AttributeDecoder) error {
	return func(ad *netlink.AttributeDecoder) error {
		var addr netip.Addr
		var port uint16
		for ad.Next() {
			switch ad.Type() {
			case attrTransportAddr:
				addr, _ = netip.AddrFromSlice(ad.Bytes())
			case attrTransportPort:
				port = ad.Uint16()
			}
		}
		*to = netip.AddrPortFrom(addr, port)
		return nil
	}
}

// scan asks for a list of plain attributes, page by page: each gets the decoder
// at one of them.
func (c *Conn) scan(ctx context.Context, op uint8, each func(id uint8, ad *netlink.AttributeDecoder)) error {
	buf := make([]byte, answerSize)
	var attrs []netlink.Attribute
	var last uint8
	for {
		m, err := c.ask(ctx, op, buf, attrs...)
		if err != nil {
			return err
		}
		from := last
		err = decode(m.attrs, func(ad *netlink.AttributeDecoder) error {
			for ad.Next() {
				if len(ad.Bytes()) == 0 || ad.Type() > math.MaxUint8 { // padding, or none of Jool's
					continue
				}
				last = uint8(ad.Type())
				each(last, ad)
			}
			return nil
		})
		if err != nil {
			return err
		}
		if m.flags&flagMore == 0 {
			return nil
		}
		if last <= from {
			return errNoProgress
		}
		attrs = []netlink.Attribute{{Type: c.attrOffset8, Data: []byte{last}}}
	}
}

// Globals are the instance's settings that concern session synchronization.
type Globals struct {
	Pool6       session.Pool6
	Timeouts    session.Timeouts
	SyncEnabled bool // ss-enabled

	FlushASAP            bool   // ss-flush-asap; acts up to 4.1.12
	FlushDeadline        uint32 // ss-flush-deadline, ms
	Capacity             uint32 // ss-capacity, sessions
	MaxPayload           uint32 // ss-max-payload, bytes; acts up to 4.1.10
	MaxSessionsPerPacket uint32 // ss-max-sessions-per-packet; 0 before 4.1.11, which has none
}

// Globals reads the settings.
func (c *Conn) Globals(ctx context.Context) (Globals, error) {
	const op = "read the settings"
	var g Globals
	var pool6 netip.Prefix
	var seen uint64
	err := c.scan(ctx, opGlobalForeach, func(id uint8, ad *netlink.AttributeDecoder) {
		if id < 64 {
			seen |= 1 << id
		}
		switch id {
		case attrPool6:
			ad.Nested(decodePrefix(&pool6))
		case attrTCPEst:
			g.Timeouts.TCPEst = ad.Uint32()
		case attrTCPTrans:
			g.Timeouts.TCPTrans = ad.Uint32()
		case attrUDP:
			g.Timeouts.UDP = ad.Uint32()
		case attrICMP:
			g.Timeouts.ICMP = ad.Uint32()
		case attrSyncEnabled:
			g.SyncEnabled = ad.Uint8() != 0
		case attrFlushASAP:
			g.FlushASAP = ad.Uint8() != 0
		case attrFlushDeadline:
			g.FlushDeadline = ad.Uint32()
		case attrCapacity:
			g.Capacity = ad.Uint32()
		case attrMaxPayload:
			g.MaxPayload = ad.Uint32()
		case attrMaxSessionsPerPacket:
			g.MaxSessionsPerPacket = ad.Uint32()
		}
	})
	if err != nil {
		return Globals{}, c.fail(op, err)
	}
	const needed = 1<<attrPool6 | 1<<attrTCPEst | 1<<attrTCPTrans | 1<<attrUDP | 1<<attrICMP | 1<<attrSyncEnabled
	if seen&needed != needed {
		return Globals{}, c.fail(op, errBadAnswer)
	}
	if g.Pool6, err = session.NewPool6(pool6); err != nil {
		return Globals{}, c.fail(op, err)
	}
	return g, nil
}

// Stats are the instance's counters.
type Stats struct {
	// Raw holds them all, by the numbers (jool_stat_id) of the module's version.
	Raw map[uint8]uint64

	dropped, advertised uint8
}

// BIBs is how many entries the BIB has.
func (s *Stats) BIBs() uint64 { return s.Raw[statBIBs] }

// Sessions is how many sessions there are.
func (s *Stats) Sessions() uint64 { return s.Raw[statSessions] }

// Dropped is how many announcements the module dropped because its queue was
// full. Modules count them since 4.1.12: ok is false before.
func (s *Stats) Dropped() (n uint64, ok bool) { return s.Raw[s.dropped], s.dropped != 0 }

// Advertisements is how many times the module was made to announce its whole
// table. Modules count them since 4.1.12: ok is false before.
func (s *Stats) Advertisements() (n uint64, ok bool) { return s.Raw[s.advertised], s.advertised != 0 }

// Stats reads the counters.
func (c *Conn) Stats(ctx context.Context) (*Stats, error) {
	s := &Stats{Raw: make(map[uint8]uint64)}
	s.dropped, s.advertised = c.syncStats()
	err := c.scan(ctx, opStatsForeach, func(id uint8, ad *netlink.AttributeDecoder) {
		s.Raw[id] = ad.Uint64()
	})
	if err != nil {
		return nil, c.fail("read the counters", err)
	}
	return s, nil
}
