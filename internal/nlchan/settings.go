package nlchan

import (
	"context"
	"fmt"
	"iter"
	"net/netip"

	"github.com/mdlayher/netlink"
	"github.com/mdlayher/netlink/nlenc"

	"joold/internal/session"
)

// Knob is a setting of session synchronization, by its number in Jool
// (JNLAG_JOOLD_*), which all versions share.
type Knob uint8

// The knobs. The module checks no range.
const (
	SSEnabled              Knob = firstKnob + iota // 0 or 1
	SSFlushASAP                                    // 0 or 1; acts up to 4.1.12, deprecated since 4.1.13
	SSFlushDeadline                                // ms
	SSCapacity                                     // sessions; acts since 4.1.11
	SSMaxPayload                                   // bytes; acts up to 4.1.10
	SSMaxSessionsPerPacket                         // since 4.1.11
)

const (
	firstKnob = 27
	knobs     = 6
)

// String is the knob's name in `jool global`.
func (k Knob) String() string {
	return [knobs]string{
		"ss-enabled", "ss-flush-asap", "ss-flush-deadline", "ss-capacity", "ss-max-payload", "ss-max-sessions-per-packet",
	}[k-firstKnob]
}

func (k Knob) isBool() bool { return k == SSEnabled || k == SSFlushASAP }

// Settings are values of some of the knobs: of those that an instance has, or of
// those to be changed. They can be compared with ==.
type Settings struct {
	has   [knobs]bool
	value [knobs]uint32
}

// Set gives a knob a value.
func (s *Settings) Set(k Knob, value uint32) {
	s.has[k-firstKnob], s.value[k-firstKnob] = true, value
}

// Get is a knob's value; ok is false when it has none.
func (s Settings) Get(k Knob) (value uint32, ok bool) {
	return s.value[k-firstKnob], s.has[k-firstKnob]
}

// All are the knobs that have values.
func (s Settings) All() iter.Seq2[Knob, uint32] {
	return func(yield func(Knob, uint32) bool) {
		for i, value := range s.value {
			if s.has[i] && !yield(Knob(firstKnob+i), value) {
				return
			}
		}
	}
}

// Globals are the instance's settings that concern session synchronization.
type Globals struct {
	Pool6       session.Pool6
	Timeouts    session.Timeouts
	SyncEnabled bool // as SSEnabled, which each module has
	Settings         // without the knobs that this module lacks
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
		switch k := Knob(id); k {
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
		case SSEnabled, SSFlushASAP:
			g.Set(k, uint32(ad.Uint8()))
		case SSFlushDeadline, SSCapacity, SSMaxPayload, SSMaxSessionsPerPacket:
			g.Set(k, ad.Uint32())
		}
	})
	if err != nil {
		return Globals{}, c.fail(op, err)
	}
	const needed = 1<<attrPool6 | 1<<attrTCPEst | 1<<attrTCPTrans | 1<<attrUDP | 1<<attrICMP | 1<<SSEnabled
	if seen&needed != needed {
		return Globals{}, c.fail(op, errBadAnswer)
	}
	enabled, _ := g.Get(SSEnabled)
	g.SyncEnabled = enabled != 0
	if g.Pool6, err = session.NewPool6(pool6); err != nil {
		return Globals{}, c.fail(op, err)
	}
	return g, nil
}

// Update changes these settings, all of them or none, and nothing if there are
// none. The module makes a copy of the instance for it and writes a line to the
// kernel's log; from 4.1.9 on it also walks through the whole BIB, while which
// translation waits, and refuses with ErrOutsidePool4 for what it may find
// there. ErrNoKnob is for a module that lacks one.
func (c *Conn) Update(ctx context.Context, s Settings) error {
	const op = "change the settings"
	var attrs []netlink.Attribute
	for k, value := range s.All() {
		a := netlink.Attribute{Type: uint16(k), Data: nlenc.Uint32Bytes(value)}
		switch {
		case k == SSMaxSessionsPerPacket && !c.version.since(11):
			return c.fail(op, fmt.Errorf("%w: version %s has no %s", ErrNoKnob, c.version, k))
		case k.isBool() && value > 1:
			return c.fail(op, fmt.Errorf("%s is 0 or 1, not %d", k, value))
		case k.isBool():
			a.Data = []byte{uint8(value)}
		}
		attrs = append(attrs, a)
	}
	if len(attrs) == 0 {
		return nil
	}
	nested, err := netlink.MarshalAttributes(attrs)
	if err == nil {
		_, err = c.ask(ctx, opGlobalUpdate, make([]byte, answerSize), netlink.Attribute{Type: attrGlobals | netlink.Nested, Data: nested})
	}
	if err != nil {
		return c.fail(op, err)
	}
	return nil
}
