//go:build lab

package guest

import "testing"

func TestCBaselineTutorial(t *testing.T) {
	for _, death := range Deaths {
		t.Run(death.Name, func(t *testing.T) {
			New(t, Config{}).Tutorial(C, C, death, 0) // the C daemon does not bring idle sessions back whole
		})
	}
}

func TestTutorial(t *testing.T) {
	for _, death := range Deaths {
		t.Run(death.Name, func(t *testing.T) {
			New(t, Config{}).Tutorial(Ours, Ours, death, 20000)
		})
	}
}
