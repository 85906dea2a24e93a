package guest

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/mdlayher/genetlink"
	"github.com/mdlayher/netlink"
)

// AddInstance makes the node's Jool instance with its pool4, and enables session synchronization.
func (n *Node) AddInstance() {
	n.lab.t.Helper()
	n.AddInstanceNamed(n.lab.Instance, n.lab.Pool6, n.lab.Pool4)
}

// AddInstanceNamed makes one more instance in the node.
func (n *Node) AddInstanceNamed(name, pool6 string, pool4 []string) {
	n.lab.t.Helper()
	var s strings.Builder
	fmt.Fprintf(&s, "jool instance add %s --netfilter --pool6 %s\n", name, pool6)
	for _, p := range pool4 {
		fmt.Fprintf(&s, "jool -i %s pool4 add --%s\n", name, p)
	}
	fmt.Fprintf(&s, "jool -i %s global update ss-enabled true\n", name)
	n.Sh(s.String())
}

// RemoveInstance takes the node's Jool instance away, with all its sessions.
func (n *Node) RemoveInstance() {
	n.lab.t.Helper()
	n.Run("jool", "instance", "remove", n.lab.Instance)
}

// Jool is the module's version on the node, as "4.1.9".
func (n *Node) Jool() string {
	n.lab.t.Helper()
	return strings.TrimSpace(n.Run("cat", versionFile))
}

// versionFile is where build.sh says which Jool a guest has.
const versionFile = "/etc/jool-version"

// A Session is an entry of Jool's session table.
type Session struct {
	ID
	State, Timer uint8
	Expires      time.Duration
}

// An ID is what makes two sessions the same.
type ID struct {
	Proto                  uint8 // 0 TCP, 1 UDP, 2 ICMP
	Src6, Dst6, Src4, Dst4 netip.AddrPort
}

func (s *Session) addresses() [4]*netip.AddrPort {
	return [4]*netip.AddrPort{&s.Src6, &s.Dst6, &s.Src4, &s.Dst4}
}

// append and parseSession are the line form in which sessions go to and from Tool. Emulated, fmt would take seconds for a table.
func (s *Session) append(b []byte) []byte {
	b = strconv.AppendUint(b, uint64(s.Proto), 10)
	for _, a := range s.addresses() {
		b = a.AppendTo(append(b, ' '))
	}
	for _, n := range []int64{int64(s.State), int64(s.Timer), s.Expires.Milliseconds()} {
		b = strconv.AppendInt(append(b, ' '), n, 10)
	}
	return append(b, '\n')
}

func (s Session) String() string { return strings.TrimSpace(string(s.append(nil))) }

func parseSession(line string) (s Session, err error) {
	f := strings.Fields(line)
	if len(f) != 8 {
		return s, fmt.Errorf("session %q has %d fields, not 8", line, len(f))
	}
	var n [4]int
	for i, text := range []string{f[0], f[5], f[6], f[7]} {
		if n[i], err = strconv.Atoi(text); err != nil {
			return s, err
		}
	}
	s.Proto, s.State, s.Timer, s.Expires = uint8(n[0]), uint8(n[1]), uint8(n[2]), time.Duration(n[3])*time.Millisecond
	for i, p := range s.addresses() {
		if *p, err = netip.ParseAddrPort(f[1+i]); err != nil {
			return s, err
		}
	}
	return s, nil
}

// Sessions is the node's session table.
func (n *Node) Sessions() map[ID]Session {
	n.lab.t.Helper()
	return n.parse(n.Run(Tool, "dump", n.lab.Instance))
}

// parse reads what Tool dumped.
func (n *Node) parse(dump string) map[ID]Session {
	n.lab.t.Helper()
	table := map[ID]Session{}
	for line := range strings.Lines(dump) {
		s, err := parseSession(line)
		if err != nil {
			n.lab.t.Fatalf("%s: %v", n.Name, err)
		}
		table[s.ID] = s
	}
	return table
}

// Load puts sessions into the node's table. Jool does not announce them.
func (n *Node) Load(sessions []Session) {
	n.lab.t.Helper()
	var lines []byte
	for i := range sessions {
		lines = sessions[i].append(lines)
	}
	if _, err := n.try(bytes.NewReader(lines), Tool, "load", n.lab.Instance); err != nil {
		n.lab.t.Fatalf("load %d sessions: %v", len(sessions), err)
	}
}

// WaitSessions waits until the node has all these sessions.
func (n *Node) WaitSessions(want []Session) {
	n.lab.t.Helper()
	n.lab.Wait(fmt.Sprintf("%d sessions in %s", len(want), n.Name), func() (string, bool) {
		missing := Missing(want, n.Sessions())
		return fmt.Sprintf("%d missing", missing), missing == 0
	})
}

// Missing counts the sessions that a table lacks.
func Missing(want []Session, table map[ID]Session) (count int) {
	for _, s := range want {
		if _, ok := table[s.ID]; !ok {
			count++
		}
	}
	return count
}

// tcpEstablished is Jool's default tcp-est-timeout; RFC 6146 has 4 minutes more.
const tcpEstablished = 2 * time.Hour

// IdleTable makes n established TCP sessions that look as if they had been made over the whole timeout; each has at least floor
// left to live. It fits the tutorial's pool4 and leaves some ports to live traffic. Load it before there is any, which might take its ports.
func (l *Lab) IdleTable(n int, floor time.Duration) []Session {
	l.t.Helper()
	prefix, err := netip.ParsePrefix(l.Pool6)
	if err != nil {
		l.t.Fatalf("pool6: %v", err)
	}
	rnd := rand.New(rand.NewPCG(6146, uint64(n)))
	const ports = 4000
	sessions := make([]Session, n)
	for i := range sessions {
		client := netip.MustParseAddr("2001:db8::").As16()
		binary.BigEndian.PutUint32(client[12:], uint32(0x10000+i%ports%1000))
		server := netip.AddrFrom4([4]byte{198, 51, 100, byte(1 + i/ports%250)})
		port := uint16(1024 + i/ports/250)
		sessions[i] = Session{
			ID: ID{
				Src6: netip.AddrPortFrom(netip.AddrFrom16(client), uint16(20000+i%ports/1000)),
				Dst6: netip.AddrPortFrom(Embed(prefix, server), port),
				Src4: netip.AddrPortFrom(netip.MustParseAddr("192.0.2.1"), uint16(61001+i%ports)),
				Dst4: netip.AddrPortFrom(server, port),
			},
			Expires: floor + time.Duration(rnd.Int64N(int64(tcpEstablished-floor))),
		}
	}
	return sessions
}

// Embed is RFC 6052's IPv4-embedded IPv6 address: bits 64 to 71 stay zero.
func Embed(pool6 netip.Prefix, v4 netip.Addr) netip.Addr {
	b := pool6.Masked().Addr().As16()
	i := pool6.Bits() / 8
	for _, octet := range v4.As4() {
		if i == 8 {
			i++
		}
		b[i] = octet
		i++
	}
	return netip.AddrFrom16(b)
}

// What follows runs in a process of its own, inside a node's namespace, and speaks Jool's Generic Netlink.

const (
	opSessionForeach = 25
	opAdd            = 27 // in 4.1

	attrSessions = 7
	attrOffset   = 8
	attrProto    = 11
)

type jool struct {
	conn     *genetlink.Conn
	family   genetlink.Family
	version  [4]byte
	instance string
}

func dialJool(instance string) (*jool, error) {
	conn, err := genetlink.Dial(nil)
	if err != nil {
		return nil, err
	}
	family, err := conn.GetFamily("Jool")
	if err != nil {
		return nil, fmt.Errorf("look up Jool's netlink family: %w", err)
	}
	text, err := os.ReadFile("/sys/module/jool_common/version")
	if err != nil {
		return nil, err
	}
	j := &jool{conn: conn, family: family, instance: instance}
	if _, err := fmt.Sscanf(string(text), "%d.%d.%d.%d", &j.version[0], &j.version[1], &j.version[2], &j.version[3]); err != nil {
		return nil, fmt.Errorf("module version %q: %w", text, err)
	}
	return j, nil
}

// request returns the reply's attributes and whether there are more entries.
func (j *jool) request(op uint8, attrs []byte, flags netlink.HeaderFlags) ([]byte, bool, error) {
	header := make([]byte, 28, 28+len(attrs))
	copy(header, "jool")
	copy(header[4:], j.version[:])
	header[8] = 2 // NAT64
	copy(header[12:27], j.instance)
	replies, err := j.conn.Execute(genetlink.Message{
		Header: genetlink.Header{Command: op, Version: j.family.Version},
		Data:   append(header, attrs...),
	}, j.family.ID, netlink.Request|flags)
	if err != nil {
		return nil, false, fmt.Errorf("Jool operation %d: %w", op, err)
	}
	for _, r := range replies {
		if len(r.Data) < 28 {
			continue // an acknowledgement
		}
		if r.Data[9]&1 != 0 {
			return nil, false, fmt.Errorf("Jool operation %d refused: %q", op, r.Data[28:])
		}
		return r.Data[28:], r.Data[9]&8 != 0, nil
	}
	return nil, false, nil
}

// dump writes the instance's session table, a line each.
func (j *jool) dump(w io.Writer) error {
	for proto := range uint8(3) {
		err := j.each(proto, func(s *Session) error {
			_, err := w.Write(s.append(nil))
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// each calls f with each session of a protocol.
func (j *jool) each(proto uint8, f func(*Session) error) error {
	var last *Session
	for more := true; more; {
		ae := netlink.NewAttributeEncoder()
		ae.Uint8(attrProto, proto)
		if last != nil {
			ae.Nested(attrOffset, last.encode)
		}
		attrs, err := ae.Encode()
		if err != nil {
			return err
		}
		var reply []byte
		if reply, more, err = j.request(opSessionForeach, attrs, 0); err != nil {
			return err
		}
		ad, err := netlink.NewAttributeDecoder(reply)
		if err != nil {
			return err
		}
		for ad.Next() {
			last = &Session{ID: ID{Proto: proto}}
			ad.Nested(last.decode)
			if err := f(last); err != nil {
				return err
			}
		}
		if err := ad.Err(); err != nil {
			return err
		}
	}
	return nil
}

// load adds the sessions, the oldest first: Jool's insertion is quadratic in any other order.
func (j *jool) load(sessions []Session) error {
	slices.SortFunc(sessions, func(a, b Session) int { return cmp.Compare(a.Expires, b.Expires) })
	for part := range slices.Chunk(sessions, 300) {
		ae := netlink.NewAttributeEncoder()
		ae.Nested(attrSessions, func(entries *netlink.AttributeEncoder) error {
			for _, s := range part {
				switch {
				case j.version[2] <= 11:
					entries.Nested(1, s.encode)
				case j.version[2] >= 13:
					entries.Bytes(1, s.compact())
				default:
					return fmt.Errorf("the lab has no module %v", j.version)
				}
			}
			return nil
		})
		attrs, err := ae.Encode()
		if err != nil {
			return err
		}
		if _, _, err := j.request(opAdd, attrs, netlink.Acknowledge); err != nil {
			return err
		}
	}
	return nil
}

// encode writes the nested form, which every version uses in dumps and versions up to 4.1.11 on the channel.
func (s Session) encode(ae *netlink.AttributeEncoder) error {
	for i, a := range s.addresses() {
		ae.Nested(uint16(1+i), func(ae *netlink.AttributeEncoder) error {
			ae.Bytes(1, a.Addr().AsSlice())
			ae.Uint16(2, a.Port())
			return nil
		})
	}
	ae.Uint8(5, s.Proto)
	ae.Uint8(6, s.State)
	ae.Uint8(7, s.Timer)
	ae.Uint32(8, uint32(s.Expires.Milliseconds()))
	return nil
}

func (s *Session) decode(ad *netlink.AttributeDecoder) error {
	for ad.Next() {
		switch t := ad.Type(); t {
		case 1, 2, 3, 4:
			ad.Nested(func(ad *netlink.AttributeDecoder) error {
				var addr netip.Addr
				var port uint16
				for ad.Next() {
					switch ad.Type() {
					case 1:
						addr, _ = netip.AddrFromSlice(ad.Bytes())
					case 2:
						port = ad.Uint16()
					}
				}
				*s.addresses()[t-1] = netip.AddrPortFrom(addr, port)
				return nil
			})
		case 6:
			s.State = ad.Uint8()
		case 7:
			s.Timer = ad.Uint8()
		case 8:
			s.Expires = time.Duration(ad.Uint32()) * time.Millisecond
		}
	}
	return nil
}

// compact is the channel's form from 4.1.13 on.
func (s Session) compact() []byte {
	b := append([]byte{}, s.Src6.Addr().AsSlice()...)
	b = append(b, s.Src4.Addr().AsSlice()...)
	b = append(b, s.Dst4.Addr().AsSlice()...)
	b = binary.BigEndian.AppendUint32(b, uint32(s.Expires.Milliseconds()))
	for _, v := range []uint16{s.Src6.Port(), s.Src4.Port(), s.Dst4.Port(), s.flags()} {
		b = binary.BigEndian.AppendUint16(b, v)
	}
	return b
}

func (s Session) flags() uint16 { return uint16(s.Proto)<<5 | uint16(s.State)<<2 | uint16(s.Timer) }
