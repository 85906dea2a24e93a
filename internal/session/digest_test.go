package session

import (
	"math/rand/v2"
	"testing"
)

func TestADigestDependsOnTheSetAloneAndNotOnItsHistory(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	sessions := make([]Session, 2000)
	for i := range sessions {
		s := &sessions[i]
		for j := range s.Src6 {
			s.Src6[j] = byte(r.Uint32())
		}
		s.Src4, s.Src4Port, s.Dst4Port = [4]byte{192, 0, 2, byte(i)}, uint16(i), 443
		s.State = State(r.IntN(7))
	}
	var straight, round Digest
	for i := range sessions {
		straight.Add(sessions[i].Hash())
	}
	for _, i := range r.Perm(len(sessions)) {
		s := sessions[i]
		s.State = (s.State + 1) % states
		round.Add(s.Hash())
	}
	for _, i := range r.Perm(len(sessions)) {
		s := sessions[i]
		s.State = (s.State + 1) % states
		round.Remove(s.Hash())
		round.Add(sessions[i].Hash())
	}
	if straight != round {
		t.Fatal("the same sessions, come to in two ways, have two digests")
	}
	if differs := straight.Differs(&round); differs.Len() != 0 {
		t.Errorf("%d buckets differ between equals", differs.Len())
	}
	for i := range sessions[:100] {
		h := sessions[i].Hash()
		round.Remove(h)
		differs := straight.Differs(&round)
		if differs.Len() != 1 || !differs.Has(BucketOf(h)) {
			t.Fatalf("without one session %d buckets differ, want its own", differs.Len())
		}
		round.Add(h)
	}
}

// goldenHash is the example of PROTOCOL.md.
const goldenHash = 0x96e6120c7e0782a7

func TestHashesSpreadOverBucketsAndTellEveryField(t *testing.T) {
	base := Session{Src6: [16]byte{0x20, 1, 0xd, 0xb8, 15: 8}, Src4: [4]byte{192, 0, 2, 1}, Dst4: [4]byte{192, 0, 2, 8},
		Src6Port: 37878, Src4Port: 62805, Dst4Port: 1234, State: V4FinRcv, Expiration: 7_198_232}
	if got, want := base.Hash(), uint64(goldenHash); got != want {
		t.Errorf("the hash of PROTOCOL.md's example is %#x, want %#x", got, want)
	}
	older := base
	older.Expiration = 1
	if older.Hash() != base.Hash() {
		t.Error("age is part of the hash")
	}
	for name, change := range map[string]func(*Session){
		"src6":      func(s *Session) { s.Src6[0]++ },
		"src6's":    func(s *Session) { s.Src6[15]++ },
		"src4":      func(s *Session) { s.Src4[3]++ },
		"dst4":      func(s *Session) { s.Dst4[3]++ },
		"src6 port": func(s *Session) { s.Src6Port++ },
		"src4 port": func(s *Session) { s.Src4Port++ },
		"dst4 port": func(s *Session) { s.Dst4Port++ },
		"proto":     func(s *Session) { s.Proto++ },
		"state":     func(s *Session) { s.State++ },
		"timer":     func(s *Session) { s.Timer++ },
	} {
		s := base
		if change(&s); s.Hash() == base.Hash() {
			t.Errorf("%s is no part of the hash", name)
		}
	}
	var d Digest
	var counts [DigestBuckets]int
	const each = 200
	for i := range each * DigestBuckets { // as a load generator would make them
		s := base
		s.Src4Port, s.Src6Port = uint16(i), uint16(i)
		d.Add(s.Hash())
		counts[BucketOf(s.Hash())]++
	}
	for i, n := range counts {
		if n < each/2 || n > 2*each {
			t.Errorf("bucket %d has %d sessions, want about %d", i, n, each)
		}
	}
}
