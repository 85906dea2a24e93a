package wire

import (
	"encoding/binary"
	"fmt"
	"strings"
	"testing"
	"time"
)

const (
	hexKey    = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f"
	base64Key = "ICEiIyQlJicoKSorLC0uLzAxMjM0NTY3ODk6Ozw9Pj8="
)

func TestAFileOfKeysIsRead(t *testing.T) {
	for name, file := range map[string]string{
		"hexadecimal and base64":   hexKey + "\n" + base64Key + "\n",
		"with comments":            "# ours\n\n  " + hexKey + " # since May\r\n\t" + base64Key,
		"capitals and no padding ": strings.ToUpper(hexKey) + "\n" + strings.TrimSuffix(base64Key, "="),
	} {
		k, err := ParseKeys([]byte(file))
		if err != nil || len(k.keys) != 2 || !k.Signing() {
			t.Errorf("%s: %v, %v", name, k, err)
			continue
		}
		if h := k.Hints(); len(h) != 2 || h[0] != newKey([32]byte(seq(0))).hint || h[1] != newKey([32]byte(seq(32))).hint {
			t.Errorf("%s: other keys: hints %v", name, h)
		}
	}
}

func seq(from byte) []byte {
	b := make([]byte, keySize)
	for i := range b {
		b[i] = from + byte(i)
	}
	return b
}

func TestWhatIsNoFileOfKeysIsRefusedAndNeverQuoted(t *testing.T) {
	var many strings.Builder
	for i := range MaxKeys + 1 {
		fmt.Fprintf(&many, "%s%02x\n", hexKey[:62], i)
	}
	for file, want := range map[string]string{
		"":                                    "no key",
		"# nothing\n":                         "no key",
		"\n" + hexKey[:63] + "\n":             "line 2: want a key",
		hexKey + "ab":                         "line 1: want a key",
		hexKey[:62] + "xy":                    "line 1: want a key",
		base64Key + "=":                       "line 1: want a key",
		hexKey + " " + hexKey:                 "line 1: want a key",
		strings.Repeat("00", 32):              "line 1: 32 equal bytes",
		hexKey + "\n#\n" + hexKey:             "line 3: the key of line 1 again",
		hexKey + "\n" + "\x00\x01" + "\xff\n": "line 2: want a key",
		many.String():                         "line 17: more than 16 keys",
	} {
		_, err := ParseKeys([]byte(file))
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", file, err, want)
		} else if strings.Contains(err.Error(), hexKey[:8]) || strings.Contains(err.Error(), base64Key[:8]) {
			t.Errorf("the error shows the key: %v", err)
		}
	}
}

func TestKeysAreNotPrinted(t *testing.T) {
	k := keys(t, 1, 2)
	for _, verb := range []string{"%v", "%+v", "%#v", "%s"} {
		if got := fmt.Sprintf(verb, k); got != "2 keys" {
			t.Errorf("%s prints %s", verb, got)
		}
	}
}

func FuzzParseKeys(f *testing.F) {
	f.Add([]byte(hexKey + "\n# comment\n" + base64Key))
	f.Fuzz(func(t *testing.T, file []byte) {
		k, err := ParseKeys(file)
		if (err == nil) != k.Signing() || len(k.keys) > MaxKeys {
			t.Errorf("%v, %v", k, err)
		}
	})
}

func TestKeysAreRotatedWithoutAGap(t *testing.T) {
	old, next := keys(t, 1), keys(t, 2)
	steps := []struct{ sends, hears Keys }{ // of a cluster whose nodes change one after the other
		{old, old},
		{old, keys(t, 1, 2)},
		{keys(t, 1, 2), keys(t, 1, 2)},
		{keys(t, 2, 1), keys(t, 1, 2)},
		{keys(t, 1, 2), keys(t, 2, 1)},
		{keys(t, 2, 1), keys(t, 2, 1)},
		{next, keys(t, 2, 1)},
		{next, next},
	}
	s := NewSigner(cluster, old, false, nil)
	epoch := s.Epoch()
	for i, step := range steps {
		for _, sealing := range []bool{false, true} {
			s.Rekey(step.sends, sealing)
			b := s.Stamp(entries(1), 0, nil)
			dg, verdict := NewOpener(cluster, step.hears).Open(b, now)
			if verdict != Proven || dg.Epoch != epoch || dg.Number != s.Last() {
				t.Errorf("step %d: %s, %+v", i, verdict, dg.Stamp)
			}
		}
	}
	if s.Last() != uint64(2*len(steps)) {
		t.Errorf("the numbers went to %d in %d datagrams", s.Last(), 2*len(steps))
	}
	if _, verdict := NewOpener(cluster, old).Open(s.Stamp(nil, 0, nil), now); verdict == Proven {
		t.Error("a node that has only the old key takes the new one's")
	}
}

// Whoever floods the cluster then has all that unknown senders may cost.
func TestASenderThatIsKnownGoesOverToAnotherKeyAtOnce(t *testing.T) {
	s, o := NewSigner(cluster, keys(t, 1), false, nil), NewOpener(cluster, keys(t, 1))
	hear := func(what string, want Verdict) {
		t.Helper()
		if _, verdict := o.Open(s.Stamp(entries(1), 0, nil), now); verdict != want {
			t.Errorf("%s: %s, want %s", what, verdict, want)
		}
		o.credit, o.credited = 0, now
	}
	hear("first heard", Proven)
	o.Rekey(keys(t, 2, 1))
	hear("when a key was put before its own", Proven)
	s.Rekey(keys(t, 2, 1), false)
	hear("signing with that", Proven)
	s.Rekey(keys(t, 2, 1), true)
	hear("sealing", Proven)
	o.Rekey(keys(t, 2))
	hear("when its first key was taken away", Proven)
	if len(o.subkeys) != 2 {
		t.Errorf("%d subkeys are kept", len(o.subkeys))
	}
	o.Rekey(keys(t, 3))
	hear("when all its keys were taken away", OtherKey)
}

func TestForgersOfAKnownEpochHaveEachSubkeyDerivedOnce(t *testing.T) {
	o, s := NewOpener(cluster, keys(t, 1, 2, 3)), NewSigner(cluster, keys(t, 1, 2, 3), false, nil)
	if _, verdict := o.Open(s.Stamp(entries(1), 0, nil), now); verdict != Proven {
		t.Fatal(verdict)
	}
	forged := s.Stamp(nil, 0, nil)
	trailer := forged[len(forged)-trailerSize:]
	for range 10 {
		for _, hint := range o.keys.Hints() {
			trailer[atHint] = hint
			trailer[atTag]++
			if _, verdict := o.Open(forged, now); verdict != Forged {
				t.Fatal(verdict)
			}
		}
	}
	if len(o.subkeys) != 3 {
		t.Errorf("%d subkeys are kept, want one for each key", len(o.subkeys))
	}
	for n := len(o.subkeys); n < knownEpochs; n++ { // no room to remember more
		o.subkeys[subkeyID{epoch: epochOf(n)}] = new(subkey)
	}
	o.credit, o.credited = 0, now
	trailer[atFlags] = byte(sealed)
	if _, verdict := o.Open(forged, now); verdict != Crowded {
		t.Errorf("%s when it cannot be remembered: want the work bounded as for strangers", verdict)
	}
}

func TestANewKeyIsALineOfAFileAndAnotherEachTime(t *testing.T) {
	a, b := NewKey(), NewKey()
	if k, err := ParseKeys([]byte(a + "\n" + b + "\n")); err != nil || len(k.keys) != 2 {
		t.Errorf("%v, %v", k, err)
	}
}

func TestWhoHasNoKeyOrAnotherIsNotHeard(t *testing.T) {
	ours := keys(t, 1)
	for _, sealing := range []bool{false, true} {
		b := NewSigner(cluster, ours, sealing, nil).Stamp(entries(1), 0, []byte("body"))
		for name, other := range map[string]Keys{"no key": {}, "another key": keys(t, 2)} {
			dg, verdict := NewOpener(cluster, other).Open(b, now)
			if verdict != OtherKey || dg.Body != nil || sealing == (len(dg.Entries) > 0) {
				t.Errorf("sealed %v: with %s: %s, %d bytes of entries, %d of body", sealing, name, verdict, len(dg.Entries), len(dg.Body))
			}
		}
	}
	for name, other := range map[string]Keys{"no key": {}, "another key": keys(t, 2)} {
		b := NewSigner(cluster, other, false, nil).Stamp(entries(1), 0, nil)
		want := Unsigned
		if other.Signing() {
			want = OtherKey
		}
		if _, verdict := NewOpener(cluster, ours).Open(b, now); verdict != want {
			t.Errorf("signed with %s: %s, want %s", name, verdict, want)
		}
		// It can claim to have a key.
		b[len(b)-trailerSize+atHint] = ours.Hints()[0]
		if _, verdict := NewOpener(cluster, ours).Open(b, now); verdict != Forged {
			t.Errorf("signed with %s, and claiming ours: %s", name, verdict)
		}
	}
}

// Without a key there is nothing to seal with, and a checksum is anybody's to make.
func TestWhatClaimsToBeSealedWithoutAKeyIsDamaged(t *testing.T) {
	b := NewSigner(cluster, Keys{}, false, nil).Stamp(nil, 0, nil)
	trailer, tag := b[len(b)-trailerSize:], len(b)-tagSize
	trailer[atFlags] |= byte(sealed)
	copy(b[tag:], checksum(cluster).Seal(nil, nonce(b), nil, b[:tag]))
	for name, k := range map[string]Keys{"no key": {}, "a key": keys(t, 1)} {
		if dg, verdict := NewOpener(cluster, k).Open(b, now); verdict != Damaged || dg.Body != nil {
			t.Errorf("with %s: %s, %d bytes of body", name, verdict, len(dg.Body))
		}
	}
}

func TestKeysOfOneHintAreAllTried(t *testing.T) {
	both := keys(t, 1, 2)
	both.keys[0].hint = both.keys[1].hint
	for _, sealing := range []bool{false, true} {
		b := NewSigner(cluster, keys(t, 2), sealing, nil).Stamp(entries(1), 0, nil)
		o := NewOpener(cluster, both)
		for range 2 { // at first by trying, then since it is known
			if dg, verdict := o.Open(b, now); verdict != Proven || len(dg.Entries) != 40 {
				t.Errorf("sealed %v: %s", sealing, verdict)
			}
			o.credit = 0
		}
	}
}

func TestAnEpochCannotBeSwappedForAnother(t *testing.T) {
	k := keys(t, 1)
	a, b := NewSigner(cluster, k, false, nil), NewSigner(cluster, k, false, nil)
	o := NewOpener(cluster, k)
	dg := a.Stamp(entries(1), 0, nil)
	o.Open(b.Stamp(entries(1), 0, nil), now) // it is known
	epoch := b.Epoch()
	copy(dg[len(dg)-trailerSize+atEpoch:], epoch[:])
	if _, verdict := o.Open(dg, now); verdict != Forged {
		t.Errorf("%s", verdict)
	}
}

func TestForgersOfNewEpochsCostBoundedWorkAndNoMemory(t *testing.T) {
	k := keys(t, 1)
	o := NewOpener(cluster, k)
	friend := NewSigner(cluster, k, false, nil)
	if _, verdict := o.Open(friend.Stamp(nil, 0, nil), now); verdict != Proven {
		t.Fatal(verdict)
	}
	forged := friend.Stamp(entries(1), 0, nil)
	count := func(n int, at time.Time) (derived int) {
		for i := range n {
			forged[len(forged)-trailerSize+atEpoch] = byte(i)
			forged[len(forged)-trailerSize+atEpoch+1]++
			switch _, verdict := o.Open(forged, at); verdict {
			case Forged:
				derived++
			case Crowded:
			default:
				t.Fatal(verdict)
			}
		}
		return derived
	}
	if n := count(5000, now); n != derivationBurst-1 {
		t.Errorf("%d subkeys were derived at once, want %d", n, derivationBurst-1)
	}
	if n := count(5000, now.Add(10*time.Millisecond)); n != derivationRate/100 {
		t.Errorf("%d in ten milliseconds, want %d", n, derivationRate/100)
	}
	if n := count(5000, now.Add(time.Hour)); n != derivationBurst {
		t.Errorf("%d after an hour, want %d", n, derivationBurst)
	}
	if n := count(5000, now); n != 0 {
		t.Errorf("%d when the clock went back, want none", n)
	}
	if len(o.subkeys) != 1 {
		t.Errorf("%d subkeys are kept, want the friend's alone", len(o.subkeys))
	}
	if _, verdict := o.Open(friend.Stamp(nil, 0, nil), now); verdict != Proven {
		t.Errorf("meanwhile the friend is %s", verdict)
	}
}

func TestSendersThatAreHeardKeepTheirSubkeysWhenOthersComeAndGo(t *testing.T) {
	k := keys(t, 1)
	o := NewOpener(cluster, k)
	friend := NewSigner(cluster, k, false, nil)
	at := now
	for range 3 * knownEpochs {
		at = at.Add(time.Millisecond)
		for _, s := range []*Signer{friend, NewSigner(cluster, k, false, nil)} { // the latter from a recording
			if _, verdict := o.Open(s.Stamp(nil, 0, nil), at); verdict != Proven {
				t.Fatal(verdict)
			}
		}
		if len(o.subkeys) > knownEpochs {
			t.Fatalf("%d subkeys are kept", len(o.subkeys))
		}
	}
	o.credit = 0
	if _, verdict := o.Open(friend.Stamp(nil, 0, nil), at); verdict != Proven {
		t.Errorf("the friend was forgotten: %s", verdict)
	}
}

func epochOf(n int) (e Epoch) {
	binary.BigEndian.PutUint64(e[:], uint64(n))
	return e
}
