package batch

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"joold/internal/session"
)

// model is a Table without its storage: a map, two slices, and the rules.
type model struct {
	config          TableConfig
	now             int64
	known           map[session.Key]*modelSession
	news, refreshes []session.Key
	since           map[session.Key]int64
	sweep, complete int
	dropped         [2]uint64 // news, refreshes
	full            uint64
}

type modelSession struct {
	session.Session // in this kernel; Expiration is unused
	dies            int64

	there     *session.Session // nil: nothing
	knownDies int64

	announced, shared int64
	from              Source // of the last word; the zero one if that was the kernel's, or nobody's
	second            bool   // nobody who translated it is known to have had the last word
	step              int
	lacking, passing  bool
	seen              int
}

func newModel(c TableConfig) *model {
	return &model{config: c, known: make(map[session.Key]*modelSession), since: make(map[session.Key]int64)}
}

func sameKind(a, b *session.Session) bool { return a.State == b.State && a.Timer == b.Timer }

func (m *model) timeout(s *session.Session) int64 {
	if ms, ok := m.config.Timeouts.Of(s.Proto, s.Timer); ok {
		return int64(ms)
	}
	return 6000
}

func (m *model) hold(s *session.Session) int64 {
	return min(m.timeout(s)*9/100, m.config.Refresh.Milliseconds())
}

func (m *model) waits(k session.Key) bool { _, ok := m.since[k]; return ok }

func (m *model) remembered() (n int) {
	for _, r := range m.known {
		if !r.passing {
			n++
		}
	}
	return n
}

// leaves is whether a session is one that the table may forget by itself.
func (m *model) leaves(k session.Key) bool {
	r := m.known[k]
	return r.dies+linger <= m.now || r.seen < m.complete && !m.waits(k)
}

// room is whether there is some, at the latest when one that is dead has left.
func (m *model) room() bool {
	n := m.remembered()
	if n < m.config.Limit {
		return true
	}
	for k := range m.known {
		if m.leaves(k) && !m.waits(k) {
			return n-1 < m.config.Limit
		}
	}
	return false
}

func (m *model) unqueue(k session.Key) {
	is := func(o session.Key) bool { return o == k }
	m.news, m.refreshes = slices.DeleteFunc(m.news, is), slices.DeleteFunc(m.refreshes, is)
	delete(m.since, k)
}

func (m *model) forget(k session.Key) {
	m.unqueue(k)
	delete(m.known, k)
}

func sameBIB(a, b session.Key) (node, mask bool) {
	return a.Proto == b.Proto && a.Src6 == b.Src6 && a.Src6Port == b.Src6Port,
		a.Proto == b.Proto && a.Src4 == b.Src4 && a.Src4Port == b.Src4Port
}

// rivals are the sessions of other BIB entries that claim an address of k's.
func (m *model) rivals(k session.Key) (rs []session.Key) {
	for o := range m.known {
		if node, mask := sameBIB(k, o); node != mask {
			rs = append(rs, o)
		}
	}
	return rs
}

func (m *model) add(s *session.Session) *modelSession {
	k := s.Key()
	for _, o := range m.rivals(k) {
		m.forget(o)
	}
	r := &modelSession{Session: *s, second: true, passing: !m.room(), seen: m.sweep}
	if r.passing {
		m.full++
	}
	m.known[k] = r
	return r
}

func (m *model) enqueue(k session.Key, refresh bool) {
	if refresh {
		m.refreshes = append(m.refreshes, k)
	} else {
		m.news = append(m.news, k)
	}
	m.since[k] = m.now
	m.trim()
}

func (m *model) promote(k session.Key) {
	if i := slices.Index(m.refreshes, k); i >= 0 {
		m.refreshes = slices.Delete(m.refreshes, i, i+1)
		m.news = append(m.news, k)
	}
}

func (m *model) trim() {
	for len(m.since) > m.config.Pending {
		var k session.Key
		if len(m.refreshes) > 0 {
			k = m.refreshes[0]
			m.dropped[1]++
		} else {
			k = m.news[0]
			m.dropped[0]++
		}
		m.yield(k)
	}
}

func (m *model) yield(k session.Key) {
	m.unqueue(k)
	if m.known[k].passing {
		m.forget(k)
	} else {
		m.known[k].lacking = true
	}
}

func (m *model) settle(k session.Key) {
	switch r := m.known[k]; {
	case !r.passing || m.waits(k):
	case m.remembered() < m.config.Limit:
		r.passing = false
	default:
		m.forget(k)
	}
}

func (m *model) observe(s session.Session) {
	k := s.Key()
	r := m.known[k]
	if r == nil {
		if s.Expiration == 0 {
			return
		}
		r = m.add(&s)
	}
	r.Session, r.dies, r.announced, r.from, r.second, r.seen = s, m.now+int64(s.Expiration), m.now, Source{}, false, m.sweep
	if m.waits(k) {
		if r.there == nil || !sameKind(r.there, &s) {
			m.promote(k)
		}
		return
	}
	if r.there == nil || !sameKind(r.there, &s) || r.lacking || r.knownDies <= m.now {
		m.enqueue(k, false)
		return
	}
	moved := r.dies - r.knownDies
	if moved <= min(m.timeout(&s)/100, 100) {
		return
	}
	if m.now-r.shared >= min(1000<<r.step, m.hold(&s)) || moved > m.hold(&s) {
		m.enqueue(k, true)
	}
}

func (r *modelSession) share(s session.Session, dies, now int64) {
	if r.there != nil && sameKind(r.there, &s) && r.knownDies > now {
		r.step = min(r.step+1, 6)
	} else {
		r.step = 0
	}
	r.there, r.knownDies, r.shared, r.lacking = &s, dies, now, false
}

func (r *modelSession) asOf(now int64) session.Session {
	s := r.Session
	s.Expiration = uint32(r.dies - now)
	return s
}

func (m *model) take(most int) (out []session.Session) {
	for len(out) < most && len(m.since) > 0 {
		k := slices.Concat(m.news, m.refreshes)[0]
		m.unqueue(k)
		r := m.known[k]
		if r.dies > m.now {
			out = append(out, r.asOf(m.now))
			r.share(r.Session, r.dies, m.now)
		}
		m.settle(k)
	}
	return out
}

func (m *model) unsent(ss []session.Session, retry bool) {
	for _, s := range slices.Backward(ss) {
		k := s.Key()
		r := m.known[k]
		if r == nil {
			if !retry || len(m.rivals(k)) > 0 {
				continue
			}
			r = m.add(&s)
			r.dies = m.now + int64(s.Expiration)
		}
		r.lacking, r.step = true, 0
		if m.waits(k) {
			m.promote(k)
			continue
		}
		if !retry {
			continue
		}
		if len(m.since) >= m.config.Pending && len(m.refreshes) == 0 {
			m.dropped[0]++
			m.yield(k)
			continue
		}
		m.news = slices.Insert(m.news, 0, k)
		m.since[k] = m.now
		m.trim()
	}
}

func (m *model) learn(s session.Session) {
	k := s.Key()
	if s.Expiration == 0 {
		return
	}
	if r := m.known[k]; r != nil {
		m.read(r, s)
		return
	}
	for _, o := range m.rivals(k) {
		if at := m.known[o].announced; at > 0 && m.now-at < m.config.OwnFor.Milliseconds() {
			return
		}
	}
	for _, o := range m.rivals(k) {
		m.forget(o)
	}
	if !m.room() {
		m.full++
		return
	}
	m.add(&s).dies = m.now + int64(s.Expiration)
}

func (m *model) lacksNow(r *modelSession) bool {
	return r.there == nil || !sameKind(r.there, &r.Session) || r.lacking ||
		r.dies-r.knownDies > m.hold(&r.Session)+m.timeout(&r.Session)/100
}

func (m *model) lacks(s session.Session) bool {
	if s.Expiration == 0 {
		return false
	}
	r := m.known[s.Key()]
	if r == nil {
		return true
	}
	m.read(r, s)
	return !m.waits(s.Key()) && m.lacksNow(r)
}

func (m *model) read(r *modelSession, s session.Session) {
	r.seen = m.sweep
	dies := m.now + int64(s.Expiration)
	mayWait := r.from.From != 0 && r.shared >= m.now-60_000
	if m.waits(s.Key()) || max(r.announced, r.shared) >= m.now-2000 || mayWait && dies-m.timeout(&s) <= r.dies-m.timeout(&r.Session) {
		return
	}
	r.Session, r.dies = s, dies
}

func (m *model) sweepOne(s session.Session, base, begun int64, all bool) (out []session.Session) {
	k := s.Key()
	dies := base + int64(s.Expiration)
	r := m.known[k]
	if r == nil {
		if dies <= m.now {
			return nil
		}
		for _, o := range m.rivals(k) {
			if m.known[o].announced >= base || m.known[o].shared >= base {
				return nil
			}
		}
		r = m.add(&s)
	}
	if !m.waits(k) && r.announced < base && r.shared < base {
		r.Session, r.dies = s, dies
	}
	if r.dies > m.now && (all && r.shared <= begun || m.lacksNow(r)) {
		m.unqueue(k)
		out = append(out, r.asOf(m.now))
		r.share(r.Session, r.dies, m.now)
	}
	m.settle(k)
	return out
}

func (m *model) accept(src Source, s session.Session) (v Verdict, rivals []session.Key) {
	if s.Expiration == 0 {
		return Stale, nil
	}
	k := s.Key()
	r := m.known[k]
	dies := m.now + int64(s.Expiration)
	alive := r != nil && r.dies > m.now && r.seen >= m.complete
	if alive {
		switch v := m.compare(r, src, &s, dies); {
		case v == Known:
			if r.there != nil && sameKind(r.there, &s) {
				dies = max(dies, r.knownDies)
			}
			r.share(s, dies, m.now)
			if !src.SecondHand {
				r.from, r.second = src, false
			}
			return v, nil
		case v != Inject:
			r.lacking = r.lacking || !sameKind(&r.Session, &s)
			return v, nil
		}
	}
	if r == nil {
		for _, o := range m.rivals(k) {
			if !m.leaves(o) {
				rivals = append(rivals, o)
			}
		}
		if len(rivals) > 0 {
			return Conflict, rivals
		}
		for _, o := range m.rivals(k) {
			m.forget(o)
		}
		if !m.room() {
			m.full++
			return Inject, nil
		}
		r = m.add(&s)
	}
	if !alive {
		r.announced, r.seen = 0, m.sweep+1
	}
	r.share(s, dies, m.now)
	r.Session, r.dies, r.from, r.second = s, dies, src, src.SecondHand
	m.unqueue(k)
	m.settle(k)
	return Inject, nil
}

func (m *model) compare(r *modelSession, src Source, s *session.Session, dies int64) Verdict {
	if r.announced > 0 && m.now-r.announced < m.config.OwnFor.Milliseconds() {
		return Own
	}
	t, was := m.timeout(s), m.timeout(&r.Session)
	updated, wasUpdated := dies-t, r.dies-was
	same := r.from.From != 0 && r.from.From == src.From
	if src.SecondHand && updated < wasUpdated+2500 || r.second && src.Order > 0 && updated < wasUpdated-2500 {
		if sameKind(&r.Session, s) && dies >= r.dies-min(t/100, 100) {
			return Known
		}
		return Stale
	}
	if !src.SecondHand && !r.second && same && src.Order > 0 && m.now-r.shared < 60_000 && src.Order <= r.from.Order {
		return Stale
	}
	if sameKind(&r.Session, s) {
		switch {
		case dies < r.dies-min(t/100, 100):
			return Stale
		case dies <= r.dies+t/10-m.hold(s):
			return Known
		}
		return Inject
	}
	if r.State == session.Established && r.Timer == s.Timer && dies >= r.dies-t/10-2000 {
		return Inject
	}
	if src.Order > 0 {
		if src.SecondHand || r.second || same || updated > wasUpdated {
			return Inject
		}
		return Stale
	}
	if r.announced > 0 && updated+2000 < r.announced || !same && r.from.From != 0 && updated+was/10+2000 < wasUpdated {
		return Stale
	}
	return Inject
}

// play runs a script of operations on a table and on the model, and compares
// what they say and what they hold after each.
type play struct {
	t      testing.TB
	script []byte
	table  *Table
	model  *model
	sent   []session.Session
	sweeps []sweepNumbers // that are under way
	op     string
}

// sweepNumbers are what a sweep is known by.
type sweepNumbers struct {
	table uint8
	model int
}

func (p *play) byte() (b byte) {
	if len(p.script) > 0 {
		b, p.script = p.script[0], p.script[1:]
	}
	return b
}

// below is a number from the script, under n.
func (p *play) below(n int) int { return (int(p.byte())<<8 | int(p.byte())) % n }

func (p *play) session() session.Session {
	b := p.byte()
	s := session.Session{
		Src6: [16]byte{0x20, 1, 15: b & 3}, Src6Port: 1, Src4: [4]byte{192, 0, 2, 1}, Src4Port: uint16(b >> 2 & 3),
		Dst4: [4]byte{198, 51, 100, b >> 4 & 7}, Dst4Port: 80,
	}
	if b&0x80 == 0 { // mostly in harmony
		s.Src4Port = uint16(b & 3)
	}
	kinds := []session.Session{
		{Proto: session.UDP}, {Proto: session.TCP}, {Proto: session.TCP, State: session.V4FinRcv},
		{Proto: session.TCP, State: session.V6Init, Timer: session.TimerTrans},
		{Proto: session.TCP, State: session.V4Init, Timer: session.TimerSYN4},
	}
	kd := kinds[p.below(len(kinds))]
	s.Proto, s.State, s.Timer = kd.Proto, kd.State, kd.Timer
	timeout, _ := p.model.config.Timeouts.Of(s.Proto, s.Timer)
	s.Expiration = timeout
	switch b := p.byte(); {
	case b < 60:
		s.Expiration -= uint32(p.below(65536)) % (timeout/8 + 1)
	case b < 90:
		s.Expiration = uint32(p.below(65536)) % (timeout + 1)
	}
	return s
}

func (p *play) now() time.Time { return start.Add(time.Duration(p.model.now) * time.Millisecond) }

func (p *play) fail(format string, args ...any) {
	p.t.Helper()
	p.t.Fatalf("%s, %d bytes from the script's end: %s", p.op, len(p.script), fmt.Sprintf(format, args...))
}

func (p *play) equal(what string, got, want []session.Session) {
	p.t.Helper()
	if !slices.Equal(got, want) {
		p.fail("%s:\n got %+v\nwant %+v", what, got, want)
	}
}

// sync takes over which sessions the table has forgotten by itself.
func (p *play) sync() {
	for k := range p.model.known {
		if p.lookup(k) != nil {
			continue
		}
		if !p.model.leaves(k) {
			p.fail("the table forgot %+v", k)
		}
		p.model.forget(k)
	}
}

func (p *play) lookup(k session.Key) *record {
	s := session.Session{Src6: k.Src6, Src4: k.Src4, Dst4: k.Dst4, Src6Port: k.Src6Port, Src4Port: k.Src4Port, Dst4Port: k.Dst4Port, Proto: k.Proto}
	kk := keyOf(&s)
	if slot := p.table.find(&kk, p.table.secret.hash(&kk)); slot != 0 {
		return p.table.at(slot)
	}
	return nil
}

func (p *play) step() {
	m, tab := p.model, p.table
	steps := []int64{0, 1, 7, 50, 400, 1000, 2100, 9000, 31_000, 250_000}
	m.now += steps[p.below(len(steps))]
	now := p.now()
	op := p.below(16)
	p.op = fmt.Sprintf("operation %d at %d ms", op, m.now)
	switch {
	case op < 6:
		s := p.session()
		tab.Observe([]session.Session{s}, now)
		m.observe(s)
	case op < 8:
		most := 1 + p.below(5)
		got, want := tab.Take(nil, most, now), m.take(most)
		p.equal("taken", got, want)
		p.sent = got
	case op == 8:
		retry := p.byte()&1 == 0
		tab.tick(now)
		for _, s := range slices.Backward(p.sent) {
			tab.Unsent([]session.Session{s}, retry)
			m.unsent([]session.Session{s}, retry)
			p.sync()
		}
		p.sent = nil
	case op < 12:
		s, src := p.session(), p.source()
		got, bib := tab.Accept(&src, &s, now)
		want, rivals := m.accept(src, s)
		if got != want {
			p.fail("%+v is %s, want %s", s, got, want)
		}
		if got == Conflict {
			p.conflict(bib, rivals)
		} else if got == Inject && p.byte()&7 == 0 {
			tab.Refused([]session.Session{s})
			if r := m.known[s.Key()]; r != nil && !m.waits(s.Key()) && r.announced < r.shared {
				m.forget(s.Key())
			}
		}
	case op == 12:
		s := p.session()
		if got, want := tab.Lacks(&s, now), m.lacks(s); got != want {
			p.fail("peers lack %+v: %v, want %v", s, got, want)
		}
	case op == 13:
		s, all := p.session(), p.byte()&1 == 0
		base, begun := max(1, m.now-int64(p.below(5000))), max(1, m.now-int64(p.below(9000)))
		got, through := tab.Sweep(nil, []session.Session{s}, start.Add(time.Duration(base)*time.Millisecond),
			start.Add(time.Duration(begun)*time.Millisecond), all, 1, now)
		p.equal("swept", got, m.sweepOne(s, base, begun, all))
		if through != 1 {
			p.fail("went through %d", through)
		}
		p.sent = got
	case op == 14:
		if p.byte()&1 == 0 {
			tab.Expire(now)
			break
		}
		s := p.session()
		tab.Learn(&s, now)
		m.learn(s)
	default:
		switch b := p.byte(); {
		case b < 100:
			if m.sweep == m.complete {
				m.sweep++
			}
			p.sweeps = append(p.sweeps, sweepNumbers{tab.BeginSweep(), m.sweep})
			p.sweeps = p.sweeps[max(0, len(p.sweeps)-3):]
		case b < 150 && len(p.sweeps) > 0:
			n := p.below(len(p.sweeps))
			tab.EndSweep(p.sweeps[n].table)
			m.complete = max(m.complete, p.sweeps[n].model)
			p.sweeps = slices.Delete(p.sweeps, n, n+1)
		default:
			m.config.Limit, m.config.Pending = 1+p.below(12), 1+p.below(8)
			m.config.Refresh = time.Duration(1+p.below(60)) * time.Second
			tab.Configure(m.config)
			m.trim()
		}
	}
	p.sync()
	p.compare()
}

// source is one of two peers, that numbers its words in some order, or is a C node.
func (p *play) source() Source {
	b := p.byte()
	return Source{From: uint32(1 + b&1), SecondHand: b>>1&3 == 3, Order: uint64(b >> 3)}
}

// word is how a table remembers a source.
func word(s Source) uint32 {
	if s.From == 0 {
		return 0
	}
	return s.word()
}

func (p *play) conflict(b BIB, rivals []session.Key) {
	m := p.model
	own, found := false, false
	var all []session.Key
	for k, r := range m.known {
		if k.Proto != b.Proto || k.Src6 != b.Src6 || k.Src6Port != b.Src6Port || k.Src4 != b.Src4 || k.Src4Port != b.Src4Port {
			continue
		}
		all = append(all, k)
		found = found || slices.Contains(rivals, k)
		own = own || r.announced > 0 && m.now-r.announced < m.config.OwnFor.Milliseconds()
	}
	if !found || own != b.Own {
		p.fail("in the way is %+v, own %v, of %+v", b, own, rivals)
	}
	if !own {
		p.table.RemoveBIB(b)
		for _, k := range all {
			if p.lookup(k) != nil {
				p.fail("%+v outlives its BIB entry", k)
			}
			m.forget(k)
		}
	}
}

// compare holds all that the table has against the model, and the table's parts
// against each other.
func (p *play) compare() {
	m, tab := p.model, p.table
	checkTable(p.t, tab)
	if tab.records != len(m.known) {
		p.fail("%d sessions, want %d", tab.records, len(m.known))
	}
	var digest session.Digest
	for k, want := range m.known {
		if want.there != nil {
			told := want.Session
			told.State, told.Timer = want.there.State, want.there.Timer
			digest.Add(told.Hash())
		}
		r := p.lookup(k)
		if r == nil {
			p.fail("%+v is missing", k)
			return
		}
		expect := *want
		got := modelSession{
			Session: r.asOf(0), dies: r.dies.get() - beforeEpoch, shared: r.shared.get(), announced: r.announced.get(),
			from: expect.from, second: r.flags&secondHand != 0, step: int(r.step()), lacking: r.flags&lacking != 0, passing: r.flags&passing != 0,
		}
		expect.there, expect.knownDies, expect.seen = nil, 0, 0
		got.Expiration, expect.Expiration = 0, 0
		if expect.shared > 0 {
			expect.shared += beforeEpoch
		}
		if expect.announced > 0 {
			expect.announced += beforeEpoch
		}
		if want := word(expect.from); r.from != want {
			p.fail("%+v was told by %#x, want %#x", k, r.from, want)
		}
		if got != expect {
			p.fail("%+v\n got %+v\nwant %+v", k, got, expect)
		}
		if (want.there == nil) != (r.there == nothing) ||
			want.there != nil && (kindOf(want.there) != r.there || want.knownDies != r.known.get()-beforeEpoch) {
			p.fail("peers know %+v as %d, dying at %d, want %+v, at %d", k, r.there, r.known.get()-beforeEpoch, want.there, want.knownDies)
		}
		if m.waits(k) != (r.waits != 0) {
			p.fail("%+v waits: %v", k, r.waits != 0)
		}
	}
	if digest != *tab.Digest() {
		p.fail("the digest is another than that of the sessions as peers know them")
	}
	since, ok := tab.Due()
	if ok != (len(m.since) > 0) {
		p.fail("due: %v, want %d", ok, len(m.since))
	}
	first := int64(1 << 62)
	if len(m.news) > 0 {
		first = m.since[m.news[0]]
	}
	if len(m.refreshes) > 0 {
		k := m.refreshes[0]
		first = min(first, m.since[k]+min(150, m.timeout(&m.known[k].Session)/100))
	}
	if tab.News() != len(m.news) {
		p.fail("%d news wait, want %d", tab.News(), len(m.news))
	}
	if ok && since.Sub(start).Milliseconds() != first {
		p.fail("due since %d ms, want %d", since.Sub(start).Milliseconds(), first)
	}
	c := tab.Counts()
	if c.DroppedNews != m.dropped[0] || c.DroppedRefreshes != m.dropped[1] || c.Full != m.full {
		p.fail("counted %+v, want %v dropped, %d without room", c, m.dropped, m.full)
	}
	if c.Pending > m.config.Pending || c.Sessions > MaxTable {
		p.fail("%+v is beyond %+v", c, m.config)
	}
}

// checkTable holds the parts of a table against each other.
func checkTable(t testing.TB, tab *Table) {
	t.Helper()
	used, passers, waiting := 0, 0, 0
	for slot := uint32(1); slot < tab.top; slot++ {
		r := tab.at(slot)
		if r.flags&inUse == 0 {
			continue
		}
		used++
		if r.flags&passing != 0 {
			passers++
		}
		if r.waits != 0 {
			waiting++
			if tab.place(r.waits).slot != slot {
				t.Fatalf("slot %d waits in a place of slot %d", slot, tab.place(r.waits).slot)
			}
		}
		if got := tab.find(&r.key, tab.secret.hash(&r.key)); got != slot {
			t.Fatalf("slot %d is found at %d", slot, got)
		}
		node, mask := tab.findNode(&r.key), tab.findMask(&r.key)
		if node == 0 || node != mask {
			t.Fatalf("the BIB entry of slot %d is found at %d and %d", slot, node, mask)
		}
		if n := tab.ring(slot); tab.ring(n.next).prev != slot || tab.ring(n.prev).next != slot ||
			!tab.at(n.next).sameNode(&r.key) || !tab.at(n.next).sameMask(&r.key) {
			t.Fatalf("slot %d is in no ring", slot)
		}
	}
	free := 0
	for slot := tab.free; slot != 0; slot = tab.at(slot).waits {
		free++
	}
	if used != tab.records || passers != tab.passers || waiting != tab.Pending() || free+used != int(tab.top)-1 {
		t.Fatalf("%d records, %d passing, %d waiting, %d free of %d; counted %d, %d, %d",
			used, passers, waiting, free, tab.top-1, tab.records, tab.passers, tab.Pending())
	}
	for _, q := range []*queue{&tab.news, &tab.refreshes} {
		n, last := 0, uint32(0)
		for at := q.first; at != 0; at = tab.place(at).next {
			if tab.place(at).prev != last || tab.queueOf(tab.place(at)) != q {
				t.Fatalf("place %d is not in its queue", at)
			}
			last = at
			n++
		}
		if n != q.len || last != q.last {
			t.Fatalf("a queue of %d ends after %d", q.len, n)
		}
	}
	for _, x := range []*index{&tab.sessions, &tab.nodes, &tab.masks} {
		words := 0
		for i, g := range x.segments {
			if i > 0 && g == x.segments[i-1] {
				continue
			}
			n := 0
			for _, w := range g.words {
				if w != 0 {
					n++
				}
			}
			if n != int(g.used) {
				t.Fatalf("a segment of %d counts %d", n, g.used)
			}
			words += n
		}
		if x == &tab.sessions && words != used {
			t.Fatalf("%d sessions in the index of %d", words, used)
		}
	}
}

func playScript(t testing.TB, script []byte) {
	c := tableConfig
	c.Limit, c.Pending = 10, 6
	p := &play{t: t, script: script, model: newModel(c), table: NewTable(c)}
	p.model.now = 1
	p.table.tick(start)
	for len(p.script) > 0 {
		p.step()
	}
}

var tableSeed = flag.Uint64("table.seed", 0, "play the table's model test with this seed alone")

func TestTheTableIsItsModel(t *testing.T) {
	seeds := []uint64{*tableSeed}
	if *tableSeed == 0 {
		seeds = nil
		for range 60 {
			seeds = append(seeds, rand.Uint64()|1)
		}
	}
	for _, seed := range seeds {
		script := make([]byte, 8000)
		r := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8), byte(seed >> 16), byte(seed >> 24),
			byte(seed >> 32), byte(seed >> 40), byte(seed >> 48), byte(seed >> 56)})
		r.Read(script)
		t.Run(fmt.Sprintf("table.seed=%d", seed), func(t *testing.T) { playScript(t, script) })
		if t.Failed() {
			return
		}
	}
}

func FuzzTable(f *testing.F) {
	r := rand.NewChaCha8([32]byte{1})
	for range 8 {
		script := make([]byte, 2000)
		r.Read(script)
		f.Add(script)
	}
	f.Fuzz(func(t *testing.T, script []byte) { playScript(t, script) })
}
