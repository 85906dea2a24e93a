package cluster

import (
	"bytes"
	"encoding/hex"
	"reflect"
	"slices"
	"strings"
	"testing"

	"joold/internal/session"
	"joold/internal/wire"
)

// someHello has as much in it as a hello can have.
func someHello() *hello {
	h := &hello{
		State: Synced, Active: true, Encoding: uint8(session.Enc4113), Module: [4]uint8{4, 1, 13, 0},
		Challenge: challenge{1, 2, 3, 4, 5, 6, 7, 8}, Last: 999, Parts: [Parts]uint32{1, 2, 3, 4}, Timeouts: session.DefaultTimeouts, Name: strings.Repeat("n", maxName),
		Version: strings.Repeat("v", maxText),
	}
	h.Digest.Sessions = 20_000
	for i := range h.Digest.Buckets {
		h.Digest.Buckets[i] = uint32(i) * 0x01010101
	}
	for i := range maxEchoes {
		h.Echoes = append(h.Echoes, challenge{7: byte(i)})
	}
	return h
}

var someEpoch = wire.Epoch{0: 0xee, 11: 0x11}

// bodies are one of each kind, with how it is written when it has been read.
var bodies = []struct {
	name  string
	body  []byte
	again func(b []byte) ([]byte, bool)
}{
	{"hello", someHello().append(nil), func(b []byte) ([]byte, bool) {
		var h hello
		ok := h.parse(b)
		return h.append(nil), ok
	}},
	{"pulse", appendPulse(nil, 12345), func(b []byte) ([]byte, bool) {
		last, ok := parsePulse(b)
		return appendPulse(nil, last), ok
	}},
	{"request", appendRequest(nil, someEpoch, []wire.Range{{First: 1, Last: 1}, {First: 1000, Last: 1063}}), func(b []byte) ([]byte, bool) {
		to, ranges, ok := parseRequest(b)
		return appendRequest(nil, to, ranges), ok
	}},
	{"repair", (&repair{12345, 1, []wire.Range{{First: 7, Last: 9}}}).append(nil), func(b []byte) ([]byte, bool) {
		r, ok := parseRepair(b)
		return r.append(nil), ok
	}},
	{"gone", appendGone(nil, 12345), func(b []byte) ([]byte, bool) {
		below, ok := parseGone(b)
		return appendGone(nil, below), ok
	}},
	{"fetch", (&fetch{about{someEpoch, 99}, session.AllBuckets}).append(nil), func(b []byte) ([]byte, bool) {
		f, ok := parseFetch(b)
		return f.append(nil), ok
	}},
	{"decline", (&about{someEpoch, 99}).append(nil, kindDecline), func(b []byte) ([]byte, bool) {
		a, ok := parseDecline(b)
		return a.append(nil, kindDecline), ok
	}},
	{"copy", (&part{99, 3, 54321, true}).append(nil), func(b []byte) ([]byte, bool) {
		p, ok := parsePart(b)
		return p.append(nil), ok
	}},
	{"ack", (&ack{about{someEpoch, 99}, 17, 0x8000000000000002, 64}).append(nil), func(b []byte) ([]byte, bool) {
		a, ok := parseAck(b)
		return a.append(nil), ok
	}},
	{"ask", (&ask{someEpoch, Pool4, 3}).append(nil), func(b []byte) ([]byte, bool) {
		a, ok := parseAsk(b)
		return a.append(nil), ok
	}},
	{"detail", (&detail{Pool4, 0xcafe, 1, 3, []string{"TCP 192.0.2.1", ""}}).append(nil, 1000), func(b []byte) ([]byte, bool) {
		d, ok := parseDetail(b)
		return d.append(nil, 1<<20), ok
	}},
}

func TestABodyIsReadAsItWasWritten(t *testing.T) {
	for _, c := range bodies {
		again, ok := c.again(c.body)
		if !ok || !bytes.Equal(again, c.body) {
			t.Errorf("%s: read and written again it is\n%x\n%x, %v", c.name, c.body, again, ok)
		}
		for short := 1; short < len(c.body); short++ {
			if b, ok := c.again(c.body[:short:short]); ok && !bytes.Equal(b, c.body[:short]) {
				t.Errorf("%s: its first %d bytes are taken for a whole one", c.name, short)
			}
		}
	}
	want := someHello()
	var got hello
	if got.parse(append(want.append(nil), "of a later version"...)); !reflect.DeepEqual(&got, want) {
		t.Errorf("a hello with more behind it is\n%+v, want\n%+v", got, want)
	}
}

func TestTheLargestHelloFitsAnyPath(t *testing.T) {
	const narrowest = 1280 - 40 - 8 - wire.Overhead - 2
	if size := len(someHello().append(nil)); size > narrowest {
		t.Errorf("it has %d bytes; there are %d", size, narrowest)
	}
}

func TestRangesThatMakeNoSenseAreRefused(t *testing.T) {
	for name, ranges := range map[string][]wire.Range{
		"beyond what goes to all": {{First: wire.Apart - 1, Last: wire.Apart}},
		"past the end":            {{First: ^uint64(0), Last: ^uint64(0) - 1}},
		"too many":                make([]wire.Range, maxRanges+1),
	} {
		if _, ok := parseRepair((&repair{ranges: ranges}).append(nil)); ok {
			t.Errorf("%s: taken", name)
		}
	}
}

func FuzzABodyThatIsReadIsWrittenTheSame(f *testing.F) {
	for _, c := range bodies {
		f.Add(c.body)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) == 0 {
			return
		}
		for _, c := range bodies {
			if kindOf(c.body) != kindOf(b) {
				continue
			}
			again, ok := c.again(b)
			if !ok {
				continue
			}
			once, ok := c.again(again)
			if !ok || !bytes.Equal(once, again) {
				t.Errorf("%s: %x is written %x and then %x", c.name, b, again, once)
			}
			if len(again) > len(b) {
				t.Errorf("%s: %x is written longer: %x", c.name, b, again)
			}
		}
	})
}

// The examples of PROTOCOL.md.
func TestBodiesAreTheBytesOfTheProtocol(t *testing.T) {
	for name, want := range map[string]string{
		"pulse":   "02" + "0000000000003039",
		"request": "04" + "ee0000000000000000000011" + "02" + "0000000000000001" + "0000" + "00000000000003e8" + "003f",
		"repair":  "05" + "0000000000003039" + "01" + "01" + "0000000000000007" + "0002",
		"gone":    "06" + "0000000000003039",
		"fetch":   "07" + "ee0000000000000000000011" + "00000063" + strings.Repeat("ff", 16),
		"decline": "08" + "ee0000000000000000000011" + "00000063",
		"copy":    "09" + "00000063" + "00000003" + "000000000000d431" + "01",
		"ack":     "0a" + "ee0000000000000000000011" + "00000063" + "00000011" + "8000000000000002" + "0040",
		"ask":     "0b" + "ee0000000000000000000011" + "02" + "0003",
		"detail":  "0c" + "02" + "0000cafe" + "0001" + "0003" + "0d" + hex.EncodeToString([]byte("TCP 192.0.2.1")) + "00",
	} {
		i := slices.IndexFunc(bodies, func(c struct {
			name  string
			body  []byte
			again func(b []byte) ([]byte, bool)
		}) bool {
			return c.name == name
		})
		if got := hex.EncodeToString(bodies[i].body); got != want {
			t.Errorf("%s is\n%s, want\n%s", name, got, want)
		}
	}
	h := someHello()
	h.Name, h.Version, h.Echoes = "j", "1.0", h.Echoes[1:2]
	b := h.append(nil)
	if want := "01010503" + "04010d00" + "0102030405060708" + "00000000000003e7" + "00000001000000020000000300000004" +
		"006ddd00" + "0003a980" + "000493e0" + "0000ea60" + "00004e20"; hex.EncodeToString(b[:60]) != want {
		t.Errorf("a hello begins\n%x, want\n%s", b[:60], want)
	}
	if want := "016a" + "03312e30" + "01" + "0000000000000001"; hex.EncodeToString(b[60+4*session.DigestBuckets:]) != want {
		t.Errorf("a hello ends\n%x, want\n%s", b[60+4*session.DigestBuckets:], want)
	}
}
