package main

import (
	"cmp"
	"fmt"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"joold/internal/control"
)

// writeCluster shows how this node stands among the others, and these as a table:
// this node first, those that cannot be asked last.
func writeCluster(b *strings.Builder, s *control.Status) {
	c := s.Cluster
	if c == nil {
		return
	}
	const margin = "           "
	fmt.Fprintf(b, "%-10s %s for %v: %s", "cluster", c.State, ago(c.Since), c.Why)
	if c.Verified != nil {
		fmt.Fprintf(b, "; known to lack nothing %v ago", ago(*c.Verified))
	}
	b.WriteByte('\n')
	if c.Copying != "" {
		fmt.Fprintf(b, "%staking a copy from %s\n", margin, c.Copying)
	}
	if c.Giving > 0 {
		fmt.Fprintf(b, "%sgiving copies to %d nodes\n", margin, c.Giving)
	}
	var table strings.Builder
	w := tabwriter.NewWriter(&table, 0, 0, 2, ' ', 0)
	row := func(cells ...string) { fmt.Fprintln(w, margin+strings.Join(cells, "\t")) }
	row("NODE", "ADDRESS", "VERSION", "MODULE", "STATE", "SESSIONS", "LAG", "LOST")
	row(c.Node, cmp.Or(s.Network.Source, "-"), s.Version, s.Instance.Module, standing(c.State, c.Active), strconv.Itoa(c.Sessions), "this node", "")
	for i := range c.Nodes {
		n := &c.Nodes[i]
		state := standing(n.State, n.Active)
		switch {
		case n.Left:
			state = "has left"
		case !n.Fresh:
			state = "not met"
		case !n.Live:
			state = fmt.Sprintf("silent for %v", ago(n.Ago))
		}
		lost := strconv.FormatUint(n.Missing, 10)
		if n.Repaired > 0 {
			lost += fmt.Sprintf(", %d repaired", n.Repaired)
		}
		row(cmp.Or(n.Name, "-"), host(n.Address), cmp.Or(n.Version, "-"), n.Module, state, strconv.Itoa(n.Sessions), ago(n.Lag).String(), lost)
	}
	for _, p := range s.Peers {
		if !p.Stamped {
			row("-", p.Address, stranger(p.Stamp), "-", fmt.Sprintf("heard %v ago", ago(p.Ago)), "-", "-", "-")
		}
	}
	w.Flush()
	for l := range strings.Lines(table.String()) { // the last column's padding
		b.WriteString(strings.TrimRight(l, " \n") + "\n")
	}
	for i := range c.Nodes {
		for _, what := range c.Nodes[i].Unlike {
			fmt.Fprintf(b, "%swarning: %s is configured differently: %s\n", margin, c.Nodes[i].Name, what)
		}
	}
	for _, p := range s.Peers {
		switch p.Stamp {
		case "other key":
			fmt.Fprintf(b, "%swarning: %s signs with a key that this node has not: give this node that key too, with --net.key-file\n", margin, p.Address)
		case "other version":
			fmt.Fprintf(b, "%swarning: %s has a joold that this one does not understand: update the older\n", margin, p.Address)
		}
	}
}

// stranger is what a peer seems to run that is none of the cluster's nodes, by its
// stamp.
func stranger(stamp string) string {
	switch stamp {
	case "unstamped":
		return "C daemon"
	case "unsigned":
		return "joold, no key"
	case "other key":
		return "joold, other key"
	case "other version":
		return "joold, other stamp"
	}
	return "unknown"
}

func standing(state string, active bool) string {
	if active {
		return state + ", active"
	}
	return state
}

// host is an address without its port.
func host(address string) string {
	if i := strings.LastIndexByte(address, ':'); i >= 0 {
		return strings.Trim(address[:i], "[]")
	}
	return address
}

// minWatch is the least time between two looks.
const minWatch = 100 * time.Millisecond
