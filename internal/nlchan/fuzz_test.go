package nlchan_test

import (
	"bytes"
	"errors"
	"net/netip"
	"os"
	"slices"
	"testing"
	"time"

	"joold/internal/nlchan"
	"joold/internal/nlchan/nlchantest"
	"joold/internal/session"
)

// Whatever comes out of the socket, the good message behind it is received,
// unless an error says that there is no use in going on.
func FuzzReceive(f *testing.F) {
	f.Add([]byte{})
	f.Add([]byte{20, 0, 0, 0, 0x21, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0})
	f.Add([]byte{36, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 254, 255, 255, 255})
	jool := slices.Concat([]byte{60, 0, 0, 0, 0x21, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0},
		[]byte("jool\x04\x01\x0f\x00\x02\x00\x00\x00edge"), make([]byte, 12))
	f.Add(append(slices.Clone(jool), 12, 0, 7, 128, 8, 0, 1, 0, 1, 2, 3, 4))
	withError := slices.Clone(jool)
	withError[29] = 1
	f.Add(append(withError, 8, 0, 1, 0, 22, 0, 0, 0, 8, 0, 2, 0, 'n', 'o', 0, 0))
	p := newPool6(f, pool6)
	good := sessionsOf(session.TCP, 2)
	goodBytes := session.Enc4113.Append(session.Enc4113.Append(nil, &good[0], p), &good[1], p)
	f.Fuzz(func(t *testing.T, datagram []byte) {
		k, i, c := dial(t, "4.1.15")
		k.Inject(datagram)
		i.Announce(good...)
		buf := make([]byte, nlchan.MessageSize)
		for {
			m, err := c.Receive(buf)
			if errors.Is(err, os.ErrDeadlineExceeded) {
				t.Fatal("the good message did not come")
			}
			if err != nil || bytes.Equal(m.Entries, goodBytes) {
				return
			}
			session.Decode(nil, m.Entries, p)
		}
	})
}

// canned is a host whose only socket says what it was given, then closes.
type canned [][]byte

func (c *canned) Socket() (nlchan.Socket, error)    { return c, nil }
func (c *canned) Module(string) (string, error)     { return "4.1.15.0", nil }
func (c *canned) InUserNamespace() bool             { return false }
func (c *canned) Send([]byte) error                 { return nil }
func (c *canned) Poll(b []byte) (int, error)        { return c.Receive(b) }
func (c *canned) Drops() uint64                     { return 0 }
func (c *canned) Join(uint32) error                 { return nil }
func (c *canned) SetReadBuffer(n int) (int, error)  { return n, nil }
func (c *canned) SetReadDeadline(t time.Time) error { return nil }
func (c *canned) Close() error                      { return nil }

func (c *canned) Receive(b []byte) (int, error) {
	if len(*c) == 0 {
		return 0, nlchan.ErrClosed
	}
	n := len((*c)[0])
	copy(b, (*c)[0])
	*c = (*c)[1:]
	return n, nil
}

// Whatever nlctrl says of a family, now or later, nothing breaks.
func FuzzControl(f *testing.F) {
	nlctrl := slices.Concat([]byte{40, 0, 0, 0, 16, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1, 2, 0, 0},
		[]byte{11, 0, 2, 0}, []byte("nlctrl\x00\x00"), []byte{6, 0, 1, 0, 16, 0, 0, 0})
	jool := slices.Concat([]byte{84, 0, 0, 0, 16, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1, 2, 0, 0},
		[]byte{9, 0, 2, 0}, []byte("Jool\x00\x00\x00\x00"), []byte{6, 0, 1, 0, 33, 0, 0, 0, 8, 0, 4, 0, 28, 0, 0, 0, 8, 0, 5, 0, 13, 0, 0, 0},
		[]byte{28, 0, 7, 128, 24, 0, 1, 128, 8, 0, 2, 0, 9, 0, 0, 0, 10, 0, 1, 0}, []byte("joold\x00\x00\x00"))
	f.Add(nlctrl)
	f.Add(jool)
	f.Add(slices.Concat(jool[:16], []byte{2, 2, 0, 0}, jool[20:])) // DELFAMILY
	f.Fuzz(func(t *testing.T, datagram []byte) {
		if c, err := nlchan.Dial("edge", nlchan.On(&canned{datagram, datagram})); err == nil {
			c.Close()
		}
		w, err := nlchan.NewWatcher(nlchan.On(&canned{nlctrl, datagram}))
		if err != nil {
			t.Fatal(err)
		}
		if err := w.Run(t.Context(), func(nlchan.Event) {}); !errors.Is(err, nlchan.ErrClosed) {
			t.Error(err)
		}
	})
}

// Whatever the module answers, each request ends.
func FuzzAnswers(f *testing.F) {
	p := newPool6(f, pool6)
	f.Add(uint8(0), []byte{})
	f.Add(uint8(1), []byte{6, 0, 1, 0, 22, 0, 0, 0, 6, 0, 2, 0, 'n', 'o', 0, 0})
	f.Add(uint8(8), []byte{5, 0, 1, 0, 0, 0, 0, 0})
	s := sessionsOf(session.UDP, 1)
	f.Add(uint8(8), session.Enc4111.Append(nil, &s[0], p))
	f.Add(uint8(0), slices.Concat([]byte{32, 0, 1, 128, 16, 0, 5, 128, 8, 0, 1, 0, 192, 0, 2, 1, 5, 0, 2, 0, 24, 0, 0, 0},
		[]byte{6, 0, 6, 0, 1, 0, 0, 0}))
	static := slices.Concat([]byte{72, 0, 1, 128}, // the BIB entry that is to be removed
		[]byte{32, 0, 1, 128, 20, 0, 1, 0, 0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 8, 6, 0, 2, 0, 1, 0, 0, 0},
		[]byte{20, 0, 2, 128, 8, 0, 1, 0, 192, 0, 2, 1, 6, 0, 2, 0, 1, 0, 0, 0}, []byte{5, 0, 3, 0, 1, 0, 0, 0}, []byte{5, 0, 4, 0, 1, 0, 0, 0})
	f.Add(uint8(0), static)
	f.Add(uint8(0), static[:len(static)-8])
	f.Fuzz(func(t *testing.T, flags uint8, attrs []byte) {
		k, _, c := dial(t, "4.1.15")
		k.Intercept(func(uint8, []byte) (nlchantest.Answer, bool) {
			return nlchantest.Answer{Flags: flags, Attrs: attrs}, true
		})
		ctx := t.Context()
		c.Hello(ctx)
		c.Globals(ctx)
		c.Pool4(ctx)
		c.StaticBIB(ctx, func(int) error { return nil })
		c.Stats(ctx)
		var settings nlchan.Settings
		settings.Set(nlchan.SSCapacity, 16384)
		c.Update(ctx, settings)
		c.RemoveBIB(ctx, session.UDP, netip.MustParseAddrPort("[2001:db8::8]:1"), netip.MustParseAddrPort("192.0.2.1:1"))
		c.Advertise(ctx)
		c.Add(s, p)
		for _, proto := range session.Protos {
			c.Sessions(ctx, proto, p, func(page []session.Session) error {
				if len(page) == 0 {
					t.Error("an empty page")
				}
				return nil
			})
		}
	})
}
