//go:build lab

package guest

import "testing"

// One death will do to show that the lab is sound. The C daemon does not bring idle sessions back whole.
func TestCBaselineTutorial(t *testing.T) { New(t, Config{}).Tutorial(C, C, Deaths[0], 0) }

func TestTutorial(t *testing.T) {
	for _, death := range Deaths {
		t.Run(death.Name, func(t *testing.T) {
			New(t, Config{}).Tutorial(Ours, Ours, death, 20000)
		})
	}
}
