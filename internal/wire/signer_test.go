package wire

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"flag"
	"math"
	"os"
	"slices"
	"sync"
	"testing"
)

func TestEveryNumberIsHandedOutOnce(t *testing.T) {
	s := NewSigner(cluster, keys(t, 1), false, nil)
	const senders, each = 8, 500
	seen := make([][]uint64, senders)
	var wg sync.WaitGroup
	for i := range senders {
		wg.Go(func() {
			for range each {
				dg, _ := Parse(s.Stamp(nil, 0, nil))
				seen[i] = append(seen[i], dg.Number)
			}
		})
	}
	wg.Wait()
	all := make(map[uint64]bool)
	for _, numbers := range seen {
		for _, n := range numbers {
			if all[n] || n == 0 || n > senders*each {
				t.Fatalf("number %d", n)
			}
			all[n] = true
		}
	}
}

func TestStartsHaveEpochsOfTheirOwn(t *testing.T) {
	seen := make(map[Epoch]bool)
	for range 1000 {
		e := NewSigner(cluster, Keys{}, false, nil).Epoch()
		if seen[e] || e == (Epoch{}) {
			t.Fatalf("epoch %x again", e)
		}
		seen[e] = true
	}
	s := NewSigner(cluster, Keys{}, false, nil)
	s.Stamp(nil, 0, nil)
	before := s.Epoch()
	if s.Renew(); s.Epoch() == before || s.Last() != 0 {
		t.Errorf("renewed: epoch %x after %x, last number %d", s.Epoch(), before, s.Last())
	}
}

func TestAfterTheHighestNumberComesAnotherEpoch(t *testing.T) {
	k := keys(t, 1)
	s := NewSigner(cluster, k, false, nil)
	s.number = Apart - 2
	epoch := s.Epoch()
	last, _ := Parse(s.Stamp(nil, 0, nil))
	next, verdict := NewOpener(cluster, k).Open(s.Stamp(nil, 0, nil), now)
	if last.Epoch != epoch || last.Number != Apart-1 || next.Epoch == epoch || next.Number != 1 || verdict != Proven {
		t.Errorf("%+v, then %+v (%s)", last.Stamp, next.Stamp, verdict)
	}
}

// A machine cloned while its daemon runs is two senders with one epoch and one
// number.
func TestWhatNotAllNeedToHaveIsCountedApart(t *testing.T) {
	s := NewSigner(cluster, Keys{}, false, nil)
	var got []uint64
	for _, stamp := range []func([]byte, Flags, []byte) []byte{s.Stamp, s.StampApart, s.StampApart, s.Stamp} {
		dg, kind := Parse(stamp(nil, 0, nil))
		if kind != Stamped {
			t.Fatalf("a datagram is %v", kind)
		}
		got = append(got, dg.Number)
	}
	if want := []uint64{1, Apart | 1, Apart | 2, 2}; !slices.Equal(got, want) || s.Last() != 2 {
		t.Errorf("numbers are %x, the last %d, want %x and 2", got, s.Last(), want)
	}
}

func TestTwinsUseNoNonceTwiceAndAreHeardOnce(t *testing.T) {
	k := keys(t, 1)
	for _, sealing := range []bool{false, true} {
		epoch := func(salts func([]byte)) func([]byte) {
			return func(b []byte) {
				if len(b) == len(Epoch{}) {
					clear(b)
					return
				}
				salts(b)
			}
		}
		twins := []*Signer{
			NewSigner(cluster, k, sealing, epoch(replayable(1))), NewSigner(cluster, k, sealing, epoch(replayable(2))),
		}
		o := NewOpener(cluster, k)
		var w Window
		nonces := make(map[string]bool)
		for range 1000 {
			for i, s := range twins {
				b := s.Stamp(entries(1+i), 0, nil)
				if n := string(nonce(b)); nonces[n] {
					t.Fatalf("nonce %x again", n)
				} else {
					nonces[n] = true
				}
				dg, verdict := o.Open(b, now)
				want := []Arrival{InOrder, Duplicate}[i]
				if got := w.Note(dg.Number); verdict != Proven || got != want {
					t.Fatalf("twin %d: %s, %s, want %s", i, verdict, got, want)
				}
			}
		}
	}
}

func TestAFlagThatIsNotTheCallersToChooseIsAMistake(t *testing.T) {
	for _, f := range []func(*Signer){
		func(s *Signer) { s.Stamp(nil, sealed, nil) },
		func(s *Signer) { s.Stamp(nil, hasBody, nil) },
		func(s *Signer) { s.Stamp(nil, 0, make([]byte, MaxBody+1)) },
	} {
		s := NewSigner(cluster, Keys{}, false, nil)
		func() {
			defer func() {
				if recover() == nil {
					t.Error("it was stamped")
				}
			}()
			f(s)
		}()
		if s.Last() != 0 {
			t.Error("it took a number")
		}
	}
}

var update = flag.Bool("update", false, "write testdata/stamps.json anew")

// vector is a datagram, and all that went into it.
type vector struct {
	Name     string  `json:"name"`
	Cluster  string  `json:"cluster"`
	Key      hexText `json:"key,omitempty"`
	Sealed   bool    `json:"sealed,omitempty"`
	Epoch    hexText `json:"epoch"`
	Salt     hexText `json:"salt"`
	Number   uint64  `json:"number"`
	Flags    Flags   `json:"flags"`
	Entries  hexText `json:"entries"`
	Body     hexText `json:"body,omitempty"`
	Datagram hexText `json:"datagram"`
}

type hexText []byte

func (h hexText) MarshalText() ([]byte, error) { return hex.AppendEncode(nil, h), nil }
func (h *hexText) UnmarshalText(b []byte) (err error) {
	*h, err = hex.AppendDecode(nil, b)
	return err
}

func (v *vector) keys(t *testing.T) (k Keys) {
	if v.Key != nil {
		var err error
		if k, err = ParseKeys([]byte(base64.StdEncoding.EncodeToString(v.Key))); err != nil {
			t.Fatal(err)
		}
	}
	return k
}

func (v *vector) signer(t *testing.T) *Signer {
	s := NewSigner(v.Cluster, v.keys(t), v.Sealed, func(b []byte) {
		if copy(b, v.Salt); len(b) == len(v.Epoch) {
			copy(b, v.Epoch)
		}
	})
	s.number = v.Number - 1
	return s
}

func newVectors() (vs []vector) {
	epoch, none := hexText(seq(0xa0)[:12]), hexText{0, 0, 0, 0}
	salt := hexText{0xc0, 0xc1, 0xc2, 0xc3}
	for _, v := range []vector{
		{Name: "entries, without a key", Salt: none, Number: 1, Entries: entries(2)},
		{Name: "control, without a key", Cluster: cluster, Salt: none, Number: 1 << 32, Body: hexText("control")},
		{Name: "entries, signed", Cluster: cluster, Key: seq(0), Salt: salt, Number: 0x0102030405060708, Flags: SecondHand, Entries: entries(2)},
		{Name: "entries and body, signed", Key: seq(32), Salt: salt, Number: 2, Flags: Resend, Entries: entries(1), Body: hexText("numbers")},
		{Name: "entries, sealed", Cluster: cluster, Key: seq(0), Sealed: true, Salt: salt, Number: math.MaxUint64, Entries: entries(2)},
		{Name: "entries and body, sealed", Key: seq(0), Sealed: true, Salt: salt, Number: 3, Flags: Resend | SecondHand, Entries: entries(1), Body: hexText("numbers")},
		{Name: "control, sealed", Cluster: cluster, Key: seq(0), Sealed: true, Salt: salt, Number: 4, Body: hexText("control")},
	} {
		v.Epoch = epoch
		vs = append(vs, v)
	}
	return vs
}

func TestStampsAreThoseOfTheVectors(t *testing.T) {
	const file = "testdata/stamps.json"
	if *update {
		vs := newVectors()
		for i := range vs {
			v := &vs[i]
			v.Datagram = v.signer(t).Stamp(bytes.Clone(v.Entries), v.Flags, v.Body)
		}
		b, err := json.MarshalIndent(vs, "", "  ")
		if err == nil {
			err = os.WriteFile(file, append(b, '\n'), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var vs []vector
	if err := json.Unmarshal(b, &vs); err != nil {
		t.Fatal(err)
	}
	if len(vs) != len(newVectors()) {
		t.Errorf("%d vectors, want %d", len(vs), len(newVectors()))
	}
	for _, v := range vs {
		if got := v.signer(t).Stamp(bytes.Clone(v.Entries), v.Flags, v.Body); !bytes.Equal(got, v.Datagram) {
			t.Errorf("%s:\n%x, want\n%x", v.Name, got, v.Datagram)
		}
		if got := byTheBook(t, &v); !bytes.Equal(got, v.Datagram) {
			t.Errorf("%s: docs/PROTOCOL.md makes it\n%x, not\n%x", v.Name, got, v.Datagram)
		}
		dg, verdict := NewOpener(v.Cluster, v.keys(t)).Open(v.Datagram, now)
		if (verdict == Proven) != (v.Key != nil) || !bytes.Equal(dg.Entries, v.Entries) || !bytes.Equal(dg.Body, v.Body) ||
			dg.Number != v.Number || dg.Flags&chosen != v.Flags || dg.Sealed() != v.Sealed {
			t.Errorf("%s: %s, %+v", v.Name, verdict, dg)
		}
	}
}

// byTheBook is a datagram as docs/PROTOCOL.md has it, from nothing of this package.
func byTheBook(t *testing.T, v *vector) []byte {
	join := func(parts ...[]byte) []byte { return bytes.Join(parts, nil) }
	u64 := func(n uint64) (b []byte) {
		for i := 56; i >= 0; i -= 8 {
			b = append(b, byte(n>>i))
		}
		return b
	}
	key, epoch := []byte(v.Key), []byte(v.Epoch)
	if v.Key == nil {
		key, epoch = make([]byte, 32), make([]byte, 12)
	}
	prk, err := hkdf.Extract(sha256.New, key, []byte("joold stamp"))
	if err != nil {
		t.Fatal(err)
	}
	expand := func(info string, n int) []byte {
		b, err := hkdf.Expand(sha256.New, prk, info, n)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	purpose, flags, hint := "sign", byte(v.Flags), byte(0)
	if v.Key != nil {
		hint = 1 + expand("joold 1 hint", 1)[0]%255
	}
	var body []byte
	if len(v.Body) > 0 {
		flags |= 0x10
		body = join(v.Body, []byte{byte(len(v.Body) >> 8), byte(len(v.Body))})
	}
	if v.Sealed {
		purpose = "seal"
		flags |= 0x20
	}
	name := sha256.Sum256([]byte(v.Cluster))
	nonce := join(v.Salt, u64(v.Number))
	head := join([]byte{'j', 'd', 1, flags}, name[:3], []byte{hint}, v.Epoch, nonce)
	block, err := aes.NewCipher(expand("joold 1 "+purpose+string(epoch)+v.Cluster, 32))
	if err != nil {
		t.Fatal(err)
	}
	gcm, err := cipher.NewGCM(block)
	if err != nil {
		t.Fatal(err)
	}
	zero := make([]byte, 4)
	if v.Sealed {
		c := gcm.Seal(nil, nonce, join(v.Entries, body), head)
		return join(zero, c[:len(c)-16], head, c[len(c)-16:])
	}
	front := join(v.Entries, zero, body, head)
	return join(front, gcm.Seal(nil, nonce, nil, front))
}
