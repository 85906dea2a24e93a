package batch

import "joold/internal/session"

// Source is who sent a session, and what its word is worth.
type Source struct {
	From       uint32           // tells the run of a peer from every other; not 0
	Order      uint64           // of one peer's entries on a session only those count that are higher; 0: as they come
	SecondHand bool             // it has the session from others
	Timeouts   session.Timeouts // the sender's; the zero value is this instance's
}
