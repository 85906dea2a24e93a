package mcast

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// MaxPeers bounds the nodes that are each sent to.
const MaxPeers = 64

// Peers are nodes that are each sent to by unicast, instead of a group or beside
// it. ReadBatch is for one goroutine at a time; all other methods may be called
// concurrently.
type Peers struct {
	group   *Conn // nil if there is none
	in, out device
	port    uint16
	ttl     int
	peers   []*peer
	inlets  *inlets
	sockets []*anywhere // one a family

	readBuffer, writeBuffer int // asked for, then granted

	probeMu sync.Mutex           // one look at the paths at a time
	path    atomic.Pointer[path] // the narrowest; nil until there is one
}

// peer is one node that is sent to.
type peer struct {
	addr  netip.AddrPort
	scope int    // index of the interface that its address is on, where that matters
	zone  string // its name
	to    endpoint
	by    *anywhere
}

// anywhere is a socket that hears what is sent to whichever of this node's
// addresses, of one family: a peer may name any of them. What is sent comes from
// the address that the kernel selects for the way to the peer.
type anywhere struct {
	is4   bool
	rx    *receiver
	tx    *sender
	hear  *net.UDPConn
	send  *net.UDPConn // hear, unless in and out are two devices
	probe *net.UDPConn // sends nothing; connected to a peer it tells the path
}

// OpenPeers makes ready to send to the peers from a UDP port and to hear what is sent
// to it, and opens cfg.Group if that is valid. Its errors are those of Open. The port
// is shared with none but C daemons that were there before: what is sent to a node
// can only be for one.
func OpenPeers(cfg Config, port uint16, peers []netip.AddrPort) (*Peers, error) {
	p := &Peers{
		port: port, ttl: cfg.TTL,
		readBuffer: cmp.Or(cfg.ReadBuffer, DefaultBuffer), writeBuffer: cmp.Or(cfg.WriteBuffer, DefaultBuffer),
	}
	if err := p.open(cfg, peers); err != nil {
		p.Close()
		return nil, err
	}
	return p, nil
}

func (p *Peers) open(cfg Config, peers []netip.AddrPort) error {
	if err := p.check(cfg, len(peers)); err != nil {
		return p.fail("use", netip.AddrPort{}, "", err)
	}
	for _, d := range []struct {
		given string
		dev   *device
	}{{cfg.In, &p.in}, {cfg.Out, &p.out}} {
		if d.given == "" {
			continue
		}
		var err error
		if *d.dev, err = findDevice(d.given); err == nil {
			err = d.dev.isUp()
		}
		if err != nil {
			return p.fail("use", netip.AddrPort{}, d.given, err)
		}
	}
	if p.in.index == 0 {
		p.in = p.out
	}
	if p.out.index == 0 {
		p.out = p.in
	}
	var err error
	if p.inlets, err = newInlets(); err != nil {
		return p.fail("listen at", netip.AddrPort{}, p.in.name, err)
	}
	for _, to := range peers {
		if err := p.add(netip.AddrPortFrom(to.Addr().Unmap(), to.Port())); err != nil {
			return err
		}
	}
	if cfg.Group.IsValid() {
		if err := p.openGroup(cfg); err != nil {
			return err
		}
	}
	// From now on the port is this instance's.
	for _, s := range p.sockets {
		if err := errors.Join(s.share(0)...); err != nil {
			return p.fail("listen at", p.at(s.is4), p.in.name, err)
		}
	}
	p.readBuffer = granted(p.sockets[0].hear, unix.SO_RCVBUF)
	p.writeBuffer = granted(p.sockets[0].send, unix.SO_SNDBUF)
	if err := p.Refresh(); p.group == nil {
		return err
	}
	return nil
}

func (p *Peers) check(cfg Config, peers int) error {
	switch {
	case peers < 1 || peers > MaxPeers:
		return fmt.Errorf("%d peers: name 1 to %d", peers, MaxPeers)
	case p.port == 0:
		return errPort
	case cfg.Group.IsValid() && cfg.Group.Port() != p.port:
		return fmt.Errorf("port %d for the group, and %d for peers: they share one", cfg.Group.Port(), p.port)
	}
	return checkNumbers(cfg)
}

// add has one more node sent to.
func (p *Peers) add(addr netip.AddrPort) error {
	if !isNode(addr) {
		return p.fail("send to", addr, "", errNoNode)
	}
	to := &peer{addr: addr, scope: p.out.index, zone: p.out.name}
	if zone := addr.Addr().Zone(); zone != "" {
		dev, err := findZone(zone)
		if err == nil && p.out.index != 0 && dev.index != p.out.index {
			err = fmt.Errorf("its address is one on the interface %s: leave one of the two out", zone)
		}
		if err != nil {
			return p.fail("send to", addr, p.out.name, err)
		}
		to.scope, to.zone = dev.index, dev.name
	}
	var err error
	if to.by, err = p.socket(addr.Addr().Is4()); err != nil {
		return p.fail("listen at", p.at(addr.Addr().Is4()), p.in.name, explain(err, p.in))
	}
	to.to = endpointAt(addr, to.scope)
	p.peers = append(p.peers, to)
	return nil
}

// at is where this node listens.
func (p *Peers) at(is4 bool) netip.AddrPort {
	if is4 {
		return netip.AddrPortFrom(netip.IPv4Unspecified(), p.port)
	}
	return netip.AddrPortFrom(netip.IPv6Unspecified(), p.port)
}

// socket is the one for a family; it opens it if it must.
func (p *Peers) socket(is4 bool) (*anywhere, error) {
	for _, s := range p.sockets {
		if s.is4 == is4 {
			return s, nil
		}
	}
	s := &anywhere{is4: is4}
	p.sockets = append(p.sockets, s)
	var err error
	if s.hear, err = p.bound(is4, p.in, p.readBuffer); err != nil {
		return nil, err
	}
	s.send = s.hear
	if p.in.index != p.out.index {
		if s.send, err = p.bound(is4, p.out, 0); err != nil {
			return nil, err
		}
	}
	if s.rx, err = newReceiver(s.hear, p.in, true); err != nil {
		return nil, err
	}
	if s.tx, err = newSender(s.send, unix.IP_PMTUDISC_DO); err != nil {
		return nil, err
	}
	var file *os.File
	if file, err = udpSocket(p.at(is4).Addr(), func(fd int) error {
		if err := deafen(fd); err != nil || p.out.index == 0 {
			return err
		}
		return unix.BindToDevice(fd, p.out.name)
	}); err != nil {
		return nil, err
	}
	if s.probe, err = polled(file); err != nil {
		return nil, err
	}
	return s, p.inlets.add(s.rx)
}

// bound opens a socket that is bound to the port and to dev, and hears what comes
// there unless readBuffer is 0. The port is shared
// until the group's sockets, which do share it, are bound. A path may lead through
// routers, so that its MTU is asked for.
func (p *Peers) bound(is4 bool, dev device, readBuffer int) (*net.UDPConn, error) {
	hops := max(1, p.ttl) // IPv4 knows no 0 here
	options := []option{
		{"IP_MULTICAST_ALL", unix.IPPROTO_IP, unix.IP_MULTICAST_ALL, 0},
		{"IP_MTU_DISCOVER", unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DO},
		{"IP_RECVTTL", unix.IPPROTO_IP, unix.IP_RECVTTL, 1},
		{"IP_TTL", unix.IPPROTO_IP, unix.IP_TTL, hops},
	}
	if !is4 {
		options = []option{
			{"IPV6_V6ONLY", unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1},
			{"IPV6_MULTICAST_ALL (Linux 4.20 and later)", unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_ALL, 0},
			{"IPV6_MTU_DISCOVER", unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_DO},
			{"IPV6_RECVHOPLIMIT", unix.IPPROTO_IPV6, unix.IPV6_RECVHOPLIMIT, 1},
			{"IPV6_UNICAST_HOPS", unix.IPPROTO_IPV6, unix.IPV6_UNICAST_HOPS, hops},
		}
	}
	options = append(options, option{"SO_REUSEADDR", unix.SOL_SOCKET, unix.SO_REUSEADDR, 1})
	at := p.at(is4)
	file, err := udpSocket(at.Addr(), func(fd int) error {
		if err := hear(fd, readBuffer); err != nil {
			return err
		}
		grow(fd, unix.SO_SNDBUFFORCE, unix.SO_SNDBUF, p.writeBuffer)
		return bindTo(fd, options, at, dev)
	})
	if err != nil {
		return nil, err
	}
	return polled(file)
}

// share lets others bind to the port, or not.
func (s *anywhere) share(on int) []error {
	errs := make([]error, 0, 2)
	for _, conn := range []*net.UDPConn{s.hear, s.send} {
		errs = append(errs, control(conn, func(fd int) error {
			return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, on)
		}))
	}
	return errs
}

// openGroup joins the group; what is for this node alone the peers' sockets hear.
func (p *Peers) openGroup(cfg Config) error {
	is4 := cfg.Group.Addr().Unmap().Is4()
	if _, err := p.socket(is4); err != nil {
		return p.fail("listen at", p.at(is4), p.in.name, explain(err, p.in))
	}
	c := &Conn{group: netip.AddrPortFrom(cfg.Group.Addr().Unmap(), cfg.Group.Port()), inlets: p.inlets, shared: true, beside: true}
	p.group = c
	cfg.NoReuse = false // the port is this node's already, and nobody else gets it
	return c.open(cfg)
}

// ReadBatch is as Conn's; what comes to the group and to each family are kinds of
// their own.
func (p *Peers) ReadBatch(ds []Datagram) (int, error) {
	n, err := p.inlets.read(ds)
	if err != nil {
		return 0, p.fail("receive at", netip.AddrPort{}, p.in.name, err)
	}
	return n, nil
}

// SetReadDeadline is as Conn's.
func (p *Peers) SetReadDeadline(t time.Time) error { return p.inlets.setReadDeadline(t) }

// Write sends b to the group and to each peer. It succeeds if one of them was sent
// to, unless b does not fit one of the paths: that, and what others were not sent,
// is ErrTooBig. It waits and fails as Conn's, and waits for the group and for one peer
// at the most.
func (p *Peers) Write(b []byte) error {
	sent, wait := false, true
	var failed, tooBig error
	note := func(err error) {
		switch {
		case err == nil:
			sent = true
		case errors.Is(err, ErrTooBig):
			tooBig = err
		case failed == nil:
			failed = err
		}
	}
	if p.group != nil {
		note(p.group.Write(b))
	}
	for _, to := range p.peers {
		err := p.send(b, to.addr, to.by, &to.to, wait)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			wait = false
		}
		note(err)
	}
	switch {
	case tooBig != nil:
		_ = p.Refresh() // if there is no path any more, the next datagrams will tell
		return tooBig
	case sent:
		return nil
	}
	return failed
}

// WriteTo is as Conn's.
func (p *Peers) WriteTo(b []byte, to netip.AddrPort) error {
	to = netip.AddrPortFrom(to.Addr().Unmap(), to.Port())
	if isNode(to) {
		for _, s := range p.sockets {
			if s.is4 == to.Addr().Is4() {
				dest := endpointAt(to, p.scope(to.Addr()))
				return p.send(b, to, s, &dest, true)
			}
		}
	}
	return p.fail("send to", to, p.out.name, errNoNode)
}

// scope is the index of the interface that a link-local address is on.
func (p *Peers) scope(a netip.Addr) int {
	switch {
	case !a.IsLinkLocalUnicast():
		return 0
	case p.out.index != 0:
		return p.out.index
	}
	for _, to := range p.peers {
		if to.addr.Addr().Zone() == a.Zone() {
			return to.scope
		}
	}
	dev, _ := findZone(a.Zone()) // without one the kernel says what is wrong
	return dev.index
}

func (p *Peers) send(b []byte, to netip.AddrPort, s *anywhere, dest *endpoint, wait bool) error {
	err := s.tx.write(b, dest, wait)
	if err == nil {
		return nil
	}
	if errors.Is(err, unix.EMSGSIZE) {
		err = fmt.Errorf("%w: it has %d bytes", ErrTooBig, len(b))
	}
	return p.fail("send to", to, p.out.name, err)
}

// fail is about a node, or if that is not valid about the port.
func (p *Peers) fail(op string, node netip.AddrPort, device string, err error) error {
	if !node.IsValid() {
		node = p.at(false)
	}
	return &Error{Op: op, Node: node, Device: device, Err: err}
}

// MaxPayload is the number of bytes that a datagram to all may hold.
func (p *Peers) MaxPayload() int {
	n := MaxDatagram
	if p.group != nil {
		n = p.group.MaxPayload()
	}
	if path := p.path.Load(); path != nil {
		n = min(n, path.mtu-headers(path.source))
	}
	return n
}

// errNoPeer is why nothing can be sent.
var errNoPeer = errors.New("no route leads to any of the peers")

// Refresh looks at the paths again: the narrowest counts. One that is not there is
// left out, unless none is.
func (p *Peers) Refresh() error {
	p.probeMu.Lock()
	defer p.probeMu.Unlock()
	var narrowest *path
	failed := fmt.Errorf("%w", errNoPeer)
	for _, to := range p.peers {
		var found path
		err := control(to.by.probe, func(fd int) (err error) {
			found, err = findPath(fd, sockaddr(to.addr, device{index: to.scope}), to.zone)
			return err
		})
		switch {
		case err != nil:
			failed = fmt.Errorf("%w (%v: %w)", errNoPeer, to.addr, err)
		case narrowest == nil || found.mtu-headers(found.source) < narrowest.mtu-headers(narrowest.source):
			narrowest = &found
		}
	}
	if narrowest == nil {
		return p.fail("find the path to", p.peers[0].addr, p.out.name, failed)
	}
	p.path.Store(narrowest)
	return nil
}

// Check is as Conn's. Where there is a group, it is Away only if that is, too, or if
// either interface is down: then nobody is heard, or nobody sent to.
func (p *Peers) Check() (Change, error) {
	for _, d := range []device{p.in, p.out} {
		if change, err := d.check(); err != nil {
			return change, p.fail("use", netip.AddrPort{}, d.name, err)
		}
	}
	before := p.MaxPayload()
	source := p.Local().Source
	away := p.Refresh()
	if errors.Is(away, net.ErrClosed) {
		return Reopen, away
	}
	change, err := Away, away
	if p.group != nil {
		change, err = p.group.Check()
	}
	switch {
	case change == Reopen, change == Away && away != nil, change == Unchanged && err != nil:
		return change, err
	case change == Changed, p.MaxPayload() != before, p.Local().Source != source:
		return Changed, nil
	}
	return Unchanged, nil
}

// Carrier is as Conn's.
func (p *Peers) Carrier() bool {
	return p.in.hasCarrier() && p.out.hasCarrier() && (p.group == nil || p.group.Carrier())
}

// Local describes what was opened as of the last look at the paths.
func (p *Peers) Local() Local {
	var l Local
	if p.group != nil {
		l = p.group.Local()
	} else {
		l = Local{In: p.in.name, Out: p.out.name}
	}
	for _, to := range p.peers {
		l.Peers = append(l.Peers, to.addr)
	}
	if path := p.path.Load(); path != nil && p.group == nil {
		l.Source, l.MTU = path.source, path.mtu
	}
	l.Port, l.ReadBuffer, l.WriteBuffer = p.port, p.readBuffer, p.writeBuffer
	return l
}

// Drops is as Conn's.
func (p *Peers) Drops() (n uint64) {
	for _, s := range p.sockets {
		n += s.rx.drops()
	}
	if p.group != nil {
		n += p.group.Drops()
	}
	return n
}

// Close is as Conn's.
func (p *Peers) Close() error {
	var errs []error
	for _, s := range p.sockets {
		if s.rx != nil {
			s.rx.drops() // which the kernel is about to forget
		}
	}
	if p.group != nil {
		errs = append(errs, p.group.Close())
	}
	if p.inlets != nil {
		errs = append(errs, p.inlets.close())
	}
	for _, s := range p.sockets {
		conns := []*net.UDPConn{s.hear, s.probe}
		if s.send != s.hear {
			conns = append(conns, s.send)
		}
		for _, conn := range slices.DeleteFunc(conns, func(c *net.UDPConn) bool { return c == nil }) {
			errs = append(errs, conn.Close())
		}
	}
	return errors.Join(errs...)
}
