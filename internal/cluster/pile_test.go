package cluster

import (
	"math/rand/v2"
	"slices"
	"testing"

	"joold/internal/session"
)

func TestAPileGivesBackInOrder(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	for n := range 200 {
		var p, none pile
		var want []session.Placed
		for range n {
			s := session.Place(Ref(rnd.Uint32N(1<<24)), session.Proto(rnd.IntN(3)), session.Timer(rnd.IntN(3)), rnd.Int64N(50))
			p.push(s)
			want = append(want, s)
		}
		if p.before(&none) != (n > 0) || none.before(&p) {
			t.Fatalf("which of %d and none comes first is wrong", n)
		}
		slices.Sort(want)
		for i, s := range want {
			if got := p.pop(); got != s {
				t.Fatalf("%d of %d is %x, want %x", i, n, got, s)
			}
		}
		if len(p) != 0 {
			t.Fatalf("%d are left of %d", len(p), n)
		}
	}
}
