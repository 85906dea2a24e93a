package main

import (
	"fmt"
	"io"
	"math"
	"slices"

	"joold/test/lab/guest"
)

// workloads are what is measured, in the order of the document.
var workloads = []struct{ name, title string }{
	{"steady", "1,000 UDP flows, 80 packets each, 8,000 a second"},
	{"later", "the minute after the first minute of 1,000 UDP flows, 8,000 packets a second"},
	{"new", "40,000 new UDP flows, 8,000 a second"},
	{"advertise", "40,000 sessions of mixed ages advertised"},
	{"advertise-big", "500,000 sessions of mixed ages advertised"},
	{"join-big", "500,000 sessions of mixed ages copied to a node that joins, new ones meanwhile, and new ones alone"},
	{"flood", "60,000 packets of 1,000 UDP flows, as fast as the guest makes them"},
	{"order", "100,000 sessions of mixed ages: what their order costs the receiver"},
}

// A quantity is something that was measured or computed from that. It is NaN where it makes no sense.
type quantity struct {
	name string
	of   func(guest.Figure) float64
}

var (
	datagrams = quantity{"datagrams", func(f guest.Figure) float64 { return float64(f.Datagrams) }}
	injected  = quantity{"entries injected", func(f guest.Figure) float64 { return float64(f.Injected) }}
	processor = quantity{"CPU of both", func(f guest.Figure) float64 { return float64(f.TicksJ + f.TicksK) }}
	arrived   = quantity{"CPU of both per session that arrived", func(f guest.Figure) float64 {
		return float64(f.TicksJ+f.TicksK) / float64(f.AtPeer)
	}}
	missing = quantity{"sessions that are not at the peer", func(f guest.Figure) float64 { return float64(f.Of - f.AtPeer) }}
	dropped = quantity{"entries dropped by J's module", func(f guest.Figure) float64 {
		if f.Dropped < 0 {
			return math.NaN()
		}
		return float64(f.Dropped)
	}}
	insertion = quantity{"K's system time per session that arrived", func(f guest.Figure) float64 {
		return float64(f.SystemK) / float64(f.AtPeer)
	}}
)

// targets bound what a daemon may need of a quantity: so much, or so many times what another needs.
var targets = []struct {
	workload, daemon string
	quantity         quantity
	most             float64
	than             string // the other daemon; "" for none
}{
	{"steady", ours, datagrams, 1. / 15, c},
	{"steady", ours, injected, 1. / 15, c},
	{"steady", ours, processor, 0.6, c},
	{"steady", often, datagrams, 1. / 10, c},
	{"steady", often, injected, 1. / 10, c},
	{"steady", often, processor, 0.6, c},
	{"later", ours, datagrams, 1. / 200, c},
	{"later", ours, injected, 1. / 200, c},
	{"new", ours, missing, 0, ""},
	{"new", ours, datagrams, 36. / 35 * 1.02, c}, // with a stamp 35 entries fit where C has 36; and hellos
	{"new", ours, processor, 1, c},
	{"new", keyed, processor, 1.1, ours},
	{"advertise", ours, missing, 0, ""},
	{"advertise", ours, arrived, 1, c},
	{"advertise-big", ours, missing, 0, ""},
	{"join-big", ours, missing, 0, ""},
	{"flood", "ours, ss-capacity kept", dropped, 1, c},
	{"flood", ours, dropped, 0, ""},
	{"order", "ours, in the table's order", insertion, 1.5, "ours, sorted"},
}

// The daemons' names in figures.
const (
	c     = "C"
	ours  = "ours"
	often = "ours, C nodes listen"
	keyed = "ours, encrypted"
)

// tell writes what was measured: the targets, then a table for each workload. Of several rounds it tells the median.
func tell(w io.Writer, all []guest.Figure) {
	figures := medians(all)
	fmt.Fprint(w, "| Jool | workload | daemon | quantity | measured | than | target | |\n| --- | --- | --- | --- | --- | --- | --- | --- |\n")
	for _, t := range targets {
		for _, f := range figures {
			if f.Workload != t.workload || f.Daemon != t.daemon {
				continue
			}
			got := t.quantity.of(f.Figure)
			if t.than != "" {
				other := find(figures, f.Jool, f.Workload, t.than)
				if other == nil {
					continue
				}
				got = times(got, t.quantity.of(other.Figure))
			}
			if math.IsNaN(got) {
				continue
			}
			verdict := "reached"
			if got > t.most {
				verdict = "**missed**"
			}
			than, number := "", func(n float64) string { return fmt.Sprint(n) }
			if t.than != "" {
				than, number = "times "+t.than, func(n float64) string { return fmt.Sprintf("%.3g", n) }
			}
			fmt.Fprintf(w, "| %s | %s | %s | %s | %s | %s | %s | %s |\n",
				f.Jool, f.Workload, f.Daemon, t.quantity.name, number(got), than, number(t.most), verdict)
		}
	}
	for _, workload := range workloads {
		if !slices.ContainsFunc(figures, func(f median) bool { return f.Workload == workload.name }) {
			continue
		}
		fmt.Fprintf(w, "\n### %s: %s\n\n", workload.name, workload.title)
		lags := slices.ContainsFunc(figures, func(f median) bool { return f.Workload == workload.name && f.LagMost > 0 })
		head, line := "| Jool | daemon | rounds | seconds | packets/s | messages | dropped | datagrams | entries injected | at the peer | ticks J + K | of them system | sleeps J + K | MiB J, K |",
			"| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |"
		if lags {
			head, line = head+" a new one after: half of them, all |", line+" --- |"
		}
		fmt.Fprintf(w, "%s\n%s\n", head, line)
		for _, f := range figures {
			if f.Workload != workload.name {
				continue
			}
			fmt.Fprintf(w, "| %s | %s | %d | %.1f | %.0f | %s | %s | %d | %d | %d of %d | %d + %d | %d + %d | %d + %d | %.1f, %.1f |", f.Jool, f.Daemon, f.rounds,
				f.Seconds, float64(f.Packets)/f.Seconds, counted(f.Messages), counted(f.Dropped), f.Datagrams, f.Injected, f.AtPeer, f.Of, f.TicksJ, f.TicksK, f.SystemJ, f.SystemK,
				f.SleepsJ, f.SleepsK, float64(f.ResidentJ)/1024, float64(f.ResidentK)/1024)
			if lags {
				fmt.Fprintf(w, " %d ms, %d ms |", f.LagHalf, f.LagMost)
			}
			fmt.Fprintln(w)
		}
	}
}

// counted is a count of the module's, which 4.1.9 does not keep.
func counted(n int) string {
	if n < 0 {
		return "not counted"
	}
	return fmt.Sprint(n)
}

// times is n as a multiple of another number; of nothing, nothing is one time as much.
func times(n, of float64) float64 {
	if n == 0 && of == 0 {
		return 1
	}
	return n / of
}

// A median is the middle of each number of some figures of the same thing.
type median struct {
	guest.Figure
	rounds int
}

// medians joins figures of the same, in the order of their first.
func medians(all []guest.Figure) (joined []median) {
	for _, f := range all {
		if find(joined, f.Jool, f.Workload, f.Daemon) != nil {
			continue
		}
		m := median{Figure: f}
		same := slices.DeleteFunc(slices.Clone(all), func(o guest.Figure) bool {
			return o.Jool != f.Jool || o.Workload != f.Workload || o.Daemon != f.Daemon
		})
		m.rounds = len(same)
		m.Seconds = middle(same, func(f *guest.Figure) float64 { return f.Seconds })
		for _, n := range []func(*guest.Figure) *int{
			func(f *guest.Figure) *int { return &f.Packets }, func(f *guest.Figure) *int { return &f.Messages },
			func(f *guest.Figure) *int { return &f.Dropped }, func(f *guest.Figure) *int { return &f.Datagrams },
			func(f *guest.Figure) *int { return &f.Injected }, func(f *guest.Figure) *int { return &f.AtPeer },
			func(f *guest.Figure) *int { return &f.Of }, func(f *guest.Figure) *int { return &f.TicksJ },
			func(f *guest.Figure) *int { return &f.TicksK }, func(f *guest.Figure) *int { return &f.SystemJ },
			func(f *guest.Figure) *int { return &f.SystemK }, func(f *guest.Figure) *int { return &f.SleepsJ },
			func(f *guest.Figure) *int { return &f.SleepsK }, func(f *guest.Figure) *int { return &f.ResidentJ },
			func(f *guest.Figure) *int { return &f.ResidentK },
			func(f *guest.Figure) *int { return &f.LagHalf }, func(f *guest.Figure) *int { return &f.LagMost },
		} {
			*n(&m.Figure) = int(middle(same, func(f *guest.Figure) float64 { return float64(*n(f)) }))
		}
		joined = append(joined, m)
	}
	return joined
}

// middle is the median of a number of some figures; of an even count, the mean of the two in the middle.
func middle(figures []guest.Figure, number func(*guest.Figure) float64) float64 {
	numbers := make([]float64, len(figures))
	for i := range figures {
		numbers[i] = number(&figures[i])
	}
	slices.Sort(numbers)
	n := len(numbers)
	return (numbers[(n-1)/2] + numbers[n/2]) / 2
}

func find(figures []median, jool, workload, daemon string) *median {
	i := slices.IndexFunc(figures, func(f median) bool { return f.Jool == jool && f.Workload == workload && f.Daemon == daemon })
	if i < 0 {
		return nil
	}
	return &figures[i]
}
