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
	if !c.version.since(11) {
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
// as large as there are connections, all of which is read. page is told how many
// entries each page had, static or not; it may take its time, and its error ends
// the reading.
func (c *Conn) StaticBIB(ctx context.Context, page func(entries int) error) ([]BIBEntry, error) {
	var bib []BIBEntry
	for _, proto := range session.Protos {
		err := c.dump(ctx, opBIBForeach, proto, func(entries []byte) error {
			read := 0
			err := decode(entries, func(ad *netlink.AttributeDecoder) error {
				for ad.Next() {
					read++
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
			if err != nil {
				return err
			}
			return page(read)
		})
		if err != nil {
			return nil, c.fail(fmt.Sprintf("dump the %s BIB", proto), err)
		}
	}
	return bib, nil
}

// RemoveBIB takes a dynamic entry out of the BIB, and its sessions with it. Both
// sides must be the entry's: ErrNoBIB when there is none such, ErrStaticBIB when
// it is the operator's, which stays.
func (c *Conn) RemoveBIB(ctx context.Context, proto session.Proto, src6, src4 netip.AddrPort) error {
	op := fmt.Sprintf("remove the %s BIB entry %s - %s", proto, src6, src4)
	e := BIBEntry{Proto: proto, Src6: src6, Src4: src4}
	err := e.validate()
	if err == nil {
		err = c.removeBIB(ctx, e)
	}
	if err != nil {
		return c.fail(op, err)
	}
	return nil
}

func (c *Conn) removeBIB(ctx context.Context, e BIBEntry) error {
	// BIB_RM does not tell static entries from others; a dump does, and may
	// start anywhere.
	buf := make([]byte, answerSize)
	offset := e
	if offset.Src4 = netip.AddrPortFrom(e.Src4.Addr(), e.Src4.Port()-1); e.Src4.Port() == 0 {
		offset.Src4 = netip.AddrPortFrom(e.Src4.Addr().Prev(), math.MaxUint16)
	}
	at, err := offset.marshal()
	if err != nil {
		return err
	}
	m, err := c.ask(ctx, opBIBForeach, buf, netlink.Attribute{Type: c.attrOffset | netlink.Nested, Data: at})
	if err != nil {
		return err
	}
	for _, entry := range attributes(m.attrs) {
		static := find(entry, attrBIBStatic)
		if len(static) != 1 || static[0] == 0 {
			continue
		}
		var found BIBEntry
		if err := decode(entry, found.decode); err != nil {
			return err
		}
		if found == e {
			return ErrStaticBIB
		}
	}

	operand, err := e.marshal()
	if err == nil {
		_, err = c.ask(ctx, opBIBRemove, buf, netlink.Attribute{Type: c.attrOperand | netlink.Nested, Data: operand})
	}
	return err
}

func (e *BIBEntry) validate() error {
	switch {
	case e.Proto > session.ICMP:
		return fmt.Errorf("%d is no protocol", e.Proto)
	case !e.Src6.Addr().Is6() || e.Src6.Addr().Is4In6():
		return fmt.Errorf("%s is no IPv6 transport address", e.Src6)
	case !e.Src4.Addr().Is4() || e.Src4.Addr().IsUnspecified():
		return fmt.Errorf("%s is no IPv4 transport address", e.Src4)
	}
	return nil
}

// marshal is the entry as the module wants it.
func (e *BIBEntry) marshal() ([]byte, error) {
	ae := netlink.NewAttributeEncoder()
	transport := func(a netip.AddrPort) func(*netlink.AttributeEncoder) error {
		return func(ae *netlink.AttributeEncoder) error {
			ae.Bytes(attrTransportAddr, a.Addr().AsSlice())
			ae.Uint16(attrTransportPort, a.Port())
			return nil
		}
	}
	ae.Nested(attrBIBSrc6, transport(e.Src6))
	ae.Nested(attrBIBSrc4, transport(e.Src4))
	ae.Uint8(attrBIBProto, uint8(e.Proto))
	return ae.Encode()
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
				if len(ad.Bytes()) == 0 || ad.Type() == 0 || ad.Type() > math.MaxUint8 { // padding, or none of Jool's
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

// Stats are the instance's counters, since it was made.
type Stats struct {
	BIBs       uint64 // entries that the BIB has now
	Sessions   uint64 // sessions that there are now
	Translated uint64 // packets translated and sent, both ways (JSTAT_SUCCESS)

	CountsSync     bool   // the module counts what follows: since 4.1.12
	Dropped        uint64 // announcements that the full queue dropped (JSTAT_JOOLD_SSS_ENOSPC)
	Advertisements uint64 // times that the module was made to announce its whole table (JSTAT_JOOLD_ADS)
}

// Stats reads the counters.
func (c *Conn) Stats(ctx context.Context) (Stats, error) {
	const op = "read the counters"
	raw := make(map[uint8]uint64)
	err := c.scan(ctx, opStatsForeach, func(id uint8, ad *netlink.AttributeDecoder) {
		raw[id] = ad.Uint64()
	})
	if err != nil {
		return Stats{}, c.fail(op, err)
	}
	whole := true
	get := func(id uint8) uint64 {
		n, ok := raw[id]
		whole = whole && ok
		return n
	}
	s := Stats{BIBs: get(statBIBs), Sessions: get(statSessions), Translated: get(statSuccess)}
	if dropped, advertised := c.syncStats(); dropped != 0 {
		s.CountsSync, s.Dropped, s.Advertisements = true, get(dropped), get(advertised)
	}
	if !whole {
		return Stats{}, c.fail(op, errBadAnswer)
	}
	return s, nil
}
