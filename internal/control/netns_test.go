package control

import (
	"strings"
	"testing"

	"joold/internal/nstest"
)

func TestInstancesNamedAlikeInOtherNamespacesHaveOtherSockets(t *testing.T) {
	here, err := Path("default")
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{here: true}
	for range 2 {
		ns := nstest.New(t)
		var first, again string
		ns.Do(func() {
			first, err = Path("default")
			if err != nil {
				t.Error(err)
			}
			again, _ = Path("default")
		})
		if first != again || !strings.HasPrefix(first, Dir+"/default@") {
			t.Errorf("got %s, then %s", first, again)
		}
		if seen[first] {
			t.Errorf("%s is used twice", first)
		}
		seen[first] = true
	}
}
