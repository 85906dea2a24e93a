// Package nlchantest is a model of a kernel with Jool in it, for tests without
// root and without the module: sockets, nlctrl, and a NAT64 module of any
// version with its instances, tables and joold channel.
//
// It is written from the protocol's description and shares no code with nlchan
// but types, so that one's mistakes are not the other's. It does what the module
// does where a daemon can tell; it does not translate, and nothing ages or
// expires.
package nlchantest

import (
	"encoding/binary"
	"io/fs"
	"net/netip"
	"slices"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"joold/internal/nlchan"
	"joold/internal/session"
)

// Kernel is the model. Its methods may be called from any goroutine.
type Kernel struct {
	tb testing.TB

	mu        sync.Mutex
	version   nlchan.Version
	family    uint16 // 0 while no module is loaded
	group     uint32
	nextID    uint16
	denied    bool
	container bool
	sockets   map[*socket]bool
	instances map[string]*Instance
	intercept func(op uint8, attrs []byte) (Answer, bool)
}

var _ nlchan.Host = (*Kernel)(nil)

// New is a kernel that has loaded this version of Jool, without an instance.
func New(tb testing.TB, version string) *Kernel {
	tb.Helper()
	k := &Kernel{
		tb:        tb,
		nextID:    0x20,
		sockets:   make(map[*socket]bool),
		instances: make(map[string]*Instance),
	}
	k.Load(version)
	return k
}

// Load loads a version of Jool, as modprobe does: under new ids, and without
// an instance.
func (k *Kernel) Load(version string) {
	k.tb.Helper()
	v, err := nlchan.ParseVersion(version)
	if err != nil {
		k.tb.Fatal(err)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.version = v
	k.nextID++
	k.family, k.group = k.nextID, uint32(k.nextID)+0x100
	k.notify(unix.CTRL_CMD_NEWFAMILY)
}

// Unload removes Jool, and its instances with it. Sockets stay open and hear
// nothing any more.
func (k *Kernel) Unload() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.notify(unix.CTRL_CMD_DELFAMILY)
	k.family, k.group = 0, 0
	clear(k.instances)
}

// DenyAdmin takes CAP_NET_ADMIN away, or away and into a user namespace.
func (k *Kernel) DenyAdmin(inUserNamespace bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.denied, k.container = true, inUserNamespace
}

// Answer is what Intercept may answer a request with: attributes, or an error.
type Answer struct {
	Flags   uint8
	Attrs   []byte
	Errno   syscall.Errno
	Message string
}

// Intercept lets f answer requests in the module's place, where it wants to.
// attrs are the request's.
func (k *Kernel) Intercept(f func(op uint8, attrs []byte) (Answer, bool)) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.intercept = f
}

// Instance is one NAT64 instance.
type Instance struct {
	k    *Kernel
	name string
	mark byte // what stands behind the name in messages

	pool6    session.Pool6
	timeouts session.Timeouts
	knobs    map[uint16]uint32 // ss-enabled and the like, by their attributes' types
	pool4    []nlchan.Pool4Entry
	bib      []StaticBIB
	sessions map[session.Key]session.Session
	acks     int
	adds     [][]session.Session

	translated, dropped, ads uint64
}

// StaticBIB is a BIB entry, static or not.
type StaticBIB struct {
	nlchan.BIBEntry
	Static bool
}

// AddInstance makes an instance that synchronizes, with the default timeouts
// and an empty pool4. One of this name that there is goes, as if removed before.
func (k *Kernel) AddInstance(name, pool6 string) *Instance {
	k.tb.Helper()
	p, err := session.NewPool6(netip.MustParsePrefix(pool6))
	if err != nil {
		k.tb.Fatal(err)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	i := &Instance{
		k: k, name: name, mark: 0xa5, pool6: p,
		timeouts: session.DefaultTimeouts,
		knobs:    map[uint16]uint32{27: 1, 28: 1, 29: 2000, 30: 512, 31: 1452},
		sessions: make(map[session.Key]session.Session),
	}
	if k.version.Encoding() == session.Enc4113 {
		i.knobs[28], i.knobs[32] = 0, 36
	} else if !k.version.Less(4, 1, 11) && !k.is42() {
		i.knobs[32] = 10
	}
	k.instances[name] = i
	return i
}

// RemoveInstance is `jool instance remove`: the table and settings are gone, and
// the Instance of this name announces nothing any more.
func (k *Kernel) RemoveInstance(name string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.instances, name)
}

// SetSync is `jool global update ss-enabled`.
func (i *Instance) SetSync(on bool) {
	i.k.mu.Lock()
	defer i.k.mu.Unlock()
	i.knobs[ssEnabled] = 0
	if on {
		i.knobs[ssEnabled] = 1
	}
}

// SetTimeouts is `jool global update` of all four.
func (i *Instance) SetTimeouts(t session.Timeouts) {
	i.k.mu.Lock()
	defer i.k.mu.Unlock()
	i.timeouts = t
}

// AddPool4 is `jool pool4 add`.
func (i *Instance) AddPool4(entries ...nlchan.Pool4Entry) {
	i.k.mu.Lock()
	defer i.k.mu.Unlock()
	i.pool4 = append(i.pool4, entries...)
}

// AddBIB adds entries to the BIB.
func (i *Instance) AddBIB(entries ...StaticBIB) {
	i.k.mu.Lock()
	defer i.k.mu.Unlock()
	i.bib = append(i.bib, entries...)
}

// Put writes sessions into the table, without announcing them.
func (i *Instance) Put(sessions ...session.Session) {
	i.k.mu.Lock()
	defer i.k.mu.Unlock()
	for _, s := range sessions {
		i.sessions[s.Key()] = s
	}
}

// Table is the instance's sessions, by protocol and address as in a dump.
func (i *Instance) Table() []session.Session {
	i.k.mu.Lock()
	defer i.k.mu.Unlock()
	var table []session.Session
	for _, proto := range session.Protos {
		table = append(table, i.table(proto)...)
	}
	return table
}

// CountTranslated adds to the packets that the instance has translated.
func (i *Instance) CountTranslated(packets uint64) {
	i.k.mu.Lock()
	defer i.k.mu.Unlock()
	i.translated += packets
}

// CountDropped adds to the announcements that the instance's full queue dropped.
func (i *Instance) CountDropped(sessions uint64) {
	i.k.mu.Lock()
	defer i.k.mu.Unlock()
	i.dropped += sessions
}

// ACKs is how many acknowledgements the instance got.
func (i *Instance) ACKs() int {
	i.k.mu.Lock()
	defer i.k.mu.Unlock()
	return i.acks
}

// Adds are the JOOLD_ADDs that the instance got, in order.
func (i *Instance) Adds() [][]session.Session {
	i.k.mu.Lock()
	defer i.k.mu.Unlock()
	return slices.Clone(i.adds)
}

// Announce puts sessions into the table, and sends one message with them to
// whoever hears the channel, unless synchronization is off.
func (i *Instance) Announce(sessions ...session.Session) {
	i.Put(sessions...)
	i.k.mu.Lock()
	defer i.k.mu.Unlock()
	if i.knobs[ssEnabled] != 0 {
		i.announce(sessions)
	}
}

func (i *Instance) announce(sessions []session.Session) {
	var entries []byte
	for n := range sessions {
		entries = i.k.version.Encoding().Append(entries, &sessions[n], i.pool6)
	}
	i.multicast(attr(7|unix.NLA_F_NESTED, entries))
}

// AnnounceRaw sends a message of this instance with arbitrary attributes.
func (i *Instance) AnnounceRaw(attrs []byte) {
	i.k.mu.Lock()
	defer i.k.mu.Unlock()
	i.multicast(attrs)
}

// multicast is silent once the instance has been removed.
func (i *Instance) multicast(attrs []byte) {
	if i.k.instances[i.name] == i {
		i.k.multicast(i.k.group, i.k.joolMessage(0, 0, i.name, i.mark, attrs))
	}
}

// Overrun makes every socket that hears the channel lose a message: its next
// Receive fails with ENOBUFS. It comes about by itself where more is announced
// than nlchan.ReadBuffer holds.
func (k *Kernel) Overrun() {
	k.mu.Lock()
	defer k.mu.Unlock()
	for s := range k.sockets {
		if s.groups[k.group] {
			s.lose()
		}
	}
}

// Inject gives a datagram, whatever it holds, to whoever hears the channel. The
// kernel makes no empty ones.
func (k *Kernel) Inject(datagram []byte) {
	if len(datagram) == 0 {
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.multicast(k.group, slices.Clone(datagram))
}

// Listeners is how many sockets hear the channel.
func (k *Kernel) Listeners() (n int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for s := range k.sockets {
		if k.group != 0 && s.groups[k.group] {
			n++
		}
	}
	return n
}

// Module is nlchan.Host's.
func (k *Kernel) Module(name string) (string, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.family == 0 || name != "jool" && name != "jool_common" {
		return "", fs.ErrNotExist
	}
	return k.version.String(), nil
}

// InUserNamespace is nlchan.Host's.
func (k *Kernel) InUserNamespace() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.container
}

func (k *Kernel) is42() bool { return k.version.Revision == 255 }

func (k *Kernel) multicast(group uint32, msg []byte) {
	for s := range k.sockets {
		if s.groups[group] {
			s.deliver(msg)
		}
	}
}

// joolMessage is a whole message of Jool's family. filler stands behind the
// name, where the module has memory that it did not clear.
func (k *Kernel) joolMessage(seq uint32, flags uint8, instance string, filler byte, attrs []byte) []byte {
	var b []byte
	if !k.version.Less(4, 1, 5) {
		b = append(b, "jool"...)
	}
	b = append(b, k.version.Major, k.version.Minor, k.version.Revision, k.version.Dev, 2, flags, 0, 0)
	name := slices.Repeat([]byte{filler}, 16)
	name[copy(name, instance)] = 0
	return generic(k.family, seq, 0, append(append(b, name...), attrs...))
}

// generic is a netlink and a generic netlink header and a body.
func generic(family uint16, seq uint32, cmd uint8, body []byte) []byte {
	var b []byte
	b = binary.NativeEndian.AppendUint32(b, uint32(20+len(body)))
	b = binary.NativeEndian.AppendUint16(b, family)
	b = binary.NativeEndian.AppendUint16(b, 0)
	b = binary.NativeEndian.AppendUint32(b, seq)
	b = binary.NativeEndian.AppendUint32(b, 0)
	b = append(b, cmd, 2, 0, 0)
	return append(b, body...)
}

// netlinkError is an NLMSG_ERROR.
func netlinkError(seq uint32, errno syscall.Errno) []byte {
	var b []byte
	b = binary.NativeEndian.AppendUint32(b, 36)
	b = binary.NativeEndian.AppendUint16(b, unix.NLMSG_ERROR)
	b = binary.NativeEndian.AppendUint16(b, 0)
	b = binary.NativeEndian.AppendUint32(b, seq)
	b = binary.NativeEndian.AppendUint32(b, 0)
	b = binary.NativeEndian.AppendUint32(b, uint32(-int32(errno)))
	return append(b, make([]byte, 16)...)
}

func (k *Kernel) notify(cmd uint8) {
	k.multicast(ctrlGroup, generic(unix.GENL_ID_CTRL, 0, cmd, k.describe("Jool")))
}

const ctrlGroup = unix.GENL_ID_CTRL

// describe is what nlctrl says of a family; nil when there is none.
func (k *Kernel) describe(name string) []byte {
	var id uint16
	var header, maxAttr, group uint32
	var groupName string
	switch {
	case name == "nlctrl":
		id, maxAttr, group, groupName = unix.GENL_ID_CTRL, 10, ctrlGroup, "notify"
	case name == "Jool" && k.family != 0:
		id, group, groupName = k.family, k.group, "joold"
		header, maxAttr = 28, 13
		if k.version.Less(4, 1, 5) {
			header = 24
		}
		if k.is42() {
			maxAttr = 14
		}
	default:
		return nil
	}
	groups := attr(1|unix.NLA_F_NESTED, slices.Concat(attr32(2, group), attr(1, append([]byte(groupName), 0))))
	return slices.Concat(
		attr(unix.CTRL_ATTR_FAMILY_NAME, append([]byte(name), 0)),
		attr16(unix.CTRL_ATTR_FAMILY_ID, id),
		attr32(unix.CTRL_ATTR_VERSION, 2),
		attr32(unix.CTRL_ATTR_HDRSIZE, header),
		attr32(unix.CTRL_ATTR_MAXATTR, maxAttr),
		attr(unix.CTRL_ATTR_MCAST_GROUPS|unix.NLA_F_NESTED, groups),
	)
}

func attr(typ uint16, body []byte) []byte {
	b := binary.NativeEndian.AppendUint16(nil, uint16(4+len(body)))
	b = binary.NativeEndian.AppendUint16(b, typ)
	b = append(b, body...)
	return append(b, make([]byte, -len(body)&3)...)
}

func attr8(typ uint16, v uint8) []byte { return attr(typ, []byte{v}) }

func attr16(typ uint16, v uint16) []byte {
	return attr(typ, binary.NativeEndian.AppendUint16(nil, v))
}

func attr32(typ uint16, v uint32) []byte {
	return attr(typ, binary.NativeEndian.AppendUint32(nil, v))
}

func attr64(typ uint16, v uint64) []byte {
	return attr(typ, binary.NativeEndian.AppendUint64(nil, v))
}

// parse takes attributes apart; the model trusts what nlchan sends no more than
// the kernel does.
func parse(b []byte) (map[uint16][]byte, bool) {
	m := make(map[uint16][]byte)
	for len(b) >= 4 {
		length := int(binary.NativeEndian.Uint16(b))
		if length < 4 || length > len(b) {
			return nil, false
		}
		m[binary.NativeEndian.Uint16(b[2:])] = b[4:length]
		b = b[min((length+3)&^3, len(b)):]
	}
	return m, len(b) == 0
}
