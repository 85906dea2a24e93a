package batch

const (
	// newer is by how much, in ms, a word that is not first-hand must be newer than
	// what is known to count: ages that have passed through several hands are not
	// exact.
	newer = 2500

	// orderFor is for how long, in ms, the order of a sender's words decides: what
	// the network turns around comes sooner, and a record has room for so many only.
	orderFor = 60_000

	orderBits = 24
)

// Source is who sent a session, and what its word is worth.
type Source struct {
	From       uint32 // tells the run of a peer from every other; not 0
	Order      uint64 // of one peer's entries on a session only those count that are higher; 0, a C node's: as they come
	SecondHand bool   // the sender has the session from others, or does not know
}

// word is what a record keeps of a source: the sender, which is one of 255, and the
// order. It is not 0.
func (s *Source) word() uint32 {
	return (s.From%255+1)<<orderBits | uint32(s.Order)&(1<<orderBits-1)
}

// same tells whether the last word on a session was its sender's.
func (s *Source) same(r *record) bool { return r.from != 0 && r.from>>orderBits == s.word()>>orderBits }

// overtaken tells whether its sender has told better since.
func (s *Source) overtaken(r *record, now int64) bool {
	return s.Order != 0 && s.same(r) && now-r.shared.get() < orderFor && int32((s.word()-r.from)<<(32-orderBits)) <= 0
}
