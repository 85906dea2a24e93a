package cluster

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Part is a part of a node's configuration that should be equal on all nodes.
type Part uint8

// The parts.
const (
	Pool6 Part = iota
	Timeouts
	Pool4
	StaticBIB
	Parts // count
)

func (p Part) String() string { return [Parts]string{"pool6", "timeouts", "pool4", "static BIB"}[p] }

// Configuration is a node's, each part as lines that people can read. Their order
// does not matter.
type Configuration [Parts][]string

const (
	// maxLines of a part are compared one by one.
	maxLines = 4096
	maxBytes = 64 << 10 // of them all

	// tellAgain is between two tellings of the same lines, which go to all.
	tellAgain = 100 * time.Millisecond

	// askLinesAgain is between two questions for a part's lines, and maxNamed how many
	// of those that differ are named.
	askLinesAgain = 2 * time.Second
	maxNamed      = 8
)

func (c Configuration) sorted() (s Configuration) {
	for p := range c {
		for _, l := range c[p] {
			s[p] = append(s[p], l[:min(len(l), maxLine)])
		}
		slices.Sort(s[p])
	}
	return s
}

// hashLines is of lines that are sorted.
func hashLines(lines []string) uint32 {
	h := sha256.New()
	for _, l := range lines {
		h.Write([]byte{byte(len(l))})
		h.Write([]byte(l))
	}
	return binary.BigEndian.Uint32(h.Sum(nil))
}

// unlike is what is known of a part of a peer's configuration that is another than
// this node's.
type unlike struct {
	hash  uint32 // the part's that lines are of
	lines []string
	bytes int
	whole bool
	said  string // how it differs, once that is known
	askAt time.Time
}

// compareParts asks for the lines of what differs.
func (n *Node) compareParts(p *peer) {
	for i := range p.unlike {
		u, theirs := &p.unlike[i], p.hello.Parts[i]
		if theirs == n.parts[i] {
			*u = unlike{}
			continue
		}
		if u.hash != theirs {
			*u = unlike{hash: theirs, askAt: u.askAt}
		}
		if u.whole || !p.fresh || n.now.Before(u.askAt) || !n.control(datagramSize(16)) {
			continue
		}
		n.askLines(p, Part(i))
	}
}

func (n *Node) askLines(p *peer, part Part) {
	u := &p.unlike[part]
	u.askAt = n.now.Add(askLinesAgain)
	a := ask{p.epoch, part, uint16(len(u.lines))}
	n.say(a.append(n.body[:0]))
}

// tell answers with lines of this node's.
func (n *Node) tell(a *ask) {
	lines := n.cfg.Parts[a.part]
	lines = lines[:min(len(lines), maxLines)]
	repeats := a.part == n.told.part && a.from == n.told.from && n.now.Sub(n.told.at) < tellAgain
	if int(a.from) > len(lines) || repeats || !n.budget.detail.take(datagramSize(n.cfg.Payload), n.now) {
		return
	}
	n.told.part, n.told.from, n.told.at = a.part, a.from, n.now
	d := detail{part: a.part, hash: n.parts[a.part], from: a.from, total: uint16(len(lines)), lines: lines[a.from:]}
	n.say(d.append(n.body[:0], n.cfg.Payload-2))
}

// learn takes in lines of p's, whoever asked for them.
func (n *Node) learn(p *peer, d *detail) {
	u := &p.unlike[d.part]
	if !p.fresh || u.hash != d.hash || d.hash == n.parts[d.part] || u.whole || int(d.from) != len(u.lines) || d.total > maxLines {
		return
	}
	u.lines = append(u.lines, d.lines...)
	for _, l := range d.lines {
		u.bytes += len(l)
	}
	switch u.whole = len(u.lines) == int(d.total) || u.bytes > maxBytes; {
	case !u.whole && len(d.lines) > 0 && n.control(datagramSize(16)):
		n.askLines(p, d.part)
	case u.whole && u.bytes <= maxBytes && hashLines(u.lines) == u.hash:
		here, there := apart(n.cfg.Parts[d.part], u.lines)
		u.said = fmt.Sprintf("only here: %s; only there: %s", some(here), printable(some(there)))
	}
	if u.whole {
		u.lines = nil
	}
}

// unlikeness says what of p's configuration is not as here.
func (n *Node) unlikeness(p *peer) (said []string) {
	for i := range p.unlike {
		part, u := Part(i), &p.unlike[i]
		switch {
		case u.hash == 0 && u.lines == nil && !u.whole:
		case u.said == "":
			said = append(said, fmt.Sprintf("%s differs", part))
		default:
			said = append(said, fmt.Sprintf("%s: %s", part, u.said))
		}
	}
	return said
}

// apart is what each of two sorted lists has alone.
func apart(a, b []string) (onlyA, onlyB []string) {
	for len(a) > 0 && len(b) > 0 {
		switch c := strings.Compare(a[0], b[0]); {
		case c == 0:
			a, b = a[1:], b[1:]
		case c < 0:
			onlyA, a = append(onlyA, a[0]), a[1:]
		default:
			onlyB, b = append(onlyB, b[0]), b[1:]
		}
	}
	return append(onlyA, a...), append(onlyB, b...)
}

func some(lines []string) string {
	if len(lines) == 0 {
		return "nothing"
	}
	if more := len(lines) - maxNamed; more > 0 {
		return fmt.Sprintf("%s and %d more", strings.Join(lines[:maxNamed], ", "), more)
	}
	return strings.Join(lines, ", ")
}
