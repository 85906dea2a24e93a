package wire

import (
	"bytes"
	"crypto/cipher"
	"slices"
	"time"
)

// Verdict is what an Opener makes of a datagram.
type Verdict uint8

// The verdicts.
const (
	Unstamped    Verdict = iota // a C node's
	Intact                      // stamped without a key, as is the way of this cluster
	Proven                      // by one of the keys
	Unsigned                    // intact, but not proven, and there are keys
	OtherVersion                // of the stamp, which is not known here
	OtherCluster                // not for this one
	OtherKey                    // signed with a key that is not known here, if any is
	Trailing                    // entries, and then something that is no stamp
	Damaged                     // on its way, or no datagram of any node; or forged without a key
	Forged                      // it names a key of ours, which has not signed it
	Crowded                     // of a sender yet unknown, while too many claim to be one
	Verdicts                    // count
)

func (v Verdict) String() string {
	return [Verdicts]string{"unstamped", "intact", "proven", "unsigned", "other version", "other cluster",
		"other key", "trailing", "damaged", "forged", "crowded"}[v]
}

const (
	// knownEpochs bounds the senders whose subkeys are kept: more than are
	// remembered as peers, and at most two subkeys each.
	knownEpochs = 256

	// A datagram of an epoch that is not known takes a subkey to be derived, which
	// is ten times what it costs to refuse it otherwise. Forgers can have that done
	// so often a second, after so many at once.
	derivationRate  = 2000
	derivationBurst = 64
)

// Opener takes the datagrams of a cluster apart and tells which are what they
// claim to be. It says nothing of replays: that is for whoever keeps the numbers. It is for one
// goroutine at a time.
type Opener struct {
	cluster  string
	short    Cluster
	keys     Keys
	checksum cipher.AEAD

	subkeys  map[subkeyID]*subkey // of epochs that have proven themselves, under one key at the least
	clock    uint64               // counts their uses
	credit   float64              // derivations
	credited time.Time            // when that was so

	room []byte // what was sealed
}

type subkeyID struct {
	epoch  Epoch
	key    int
	sealed bool
}

type subkey struct {
	cipher.AEAD
	used uint64 // clock's time
}

// NewOpener makes an Opener for cluster, in which any of keys may sign.
func NewOpener(cluster string, keys Keys) *Opener {
	return &Opener{
		cluster: cluster, short: ClusterOf(cluster), keys: keys, checksum: checksum(cluster),
		subkeys: make(map[subkeyID]*subkey), credit: derivationBurst,
	}
}

// Rekey has what follows judged by other keys. Senders stay known by those that
// stay among them.
func (o *Opener) Rekey(keys Keys) {
	subkeys := make(map[subkeyID]*subkey, len(o.subkeys))
	for id, sub := range o.subkeys {
		was := o.keys.keys[id.key].prk
		id.key = slices.IndexFunc(keys.keys, func(k key) bool { return bytes.Equal(k.prk, was) })
		if id.key >= 0 {
			subkeys[id] = sub
		}
	}
	o.keys, o.subkeys = keys, subkeys
}

// Open takes b apart and judges it. Where the stamp proves nothing it is what is
// claimed, and entries are for whoever does without proof; sealed ones, and a
// body, are there only if they were opened. They are part of b, or if they were
// sealed, of what the next Open overwrites. now is for bounding the work.
func (o *Opener) Open(b []byte, now time.Time) (Datagram, Verdict) {
	dg, kind := Parse(b)
	verdict := OtherCluster
	switch {
	case kind == Plain:
		verdict = Unstamped
	case kind == Torn:
		verdict = Trailing
	case kind == Newer:
		verdict = OtherVersion
	case dg.Cluster != o.short:
	case dg.Hint == 0:
		verdict = o.check(b, &dg)
	default:
		verdict = o.prove(b, &dg, now)
	}
	if verdict != Intact && verdict != Proven && verdict != Unsigned {
		dg.Body = nil
	}
	return dg, verdict
}

// check is for a datagram that nobody signed.
func (o *Opener) check(b []byte, dg *Datagram) Verdict {
	switch {
	case dg.Sealed(), !o.verify(o.checksum, b):
		return Damaged
	case o.keys.Signing():
		return Unsigned
	}
	return Intact
}

// prove looks for the key that has signed b: first among those under which this
// sender has proven itself, so that it is heard whatever others claim.
func (o *Opener) prove(b []byte, dg *Datagram, now time.Time) Verdict {
	verdict := OtherKey
	for i := range o.keys.keys {
		if o.keys.keys[i].hint != dg.Hint {
			continue
		}
		verdict = Forged
		if sub := o.subkeys[subkeyID{dg.Epoch, i, dg.Sealed()}]; sub != nil && o.fits(sub, b, dg) {
			return o.use(sub)
		}
	}
	for i := range o.keys.keys {
		id := subkeyID{dg.Epoch, i, dg.Sealed()}
		if o.keys.keys[i].hint != dg.Hint || o.subkeys[id] != nil {
			continue
		}
		known := len(o.subkeys) < knownEpochs && o.knows(dg.Epoch)
		if !known && !o.afford(now) {
			verdict = Crowded
			break
		}
		sub := o.derive(id)
		fits := o.fits(sub, b, dg)
		if fits || known { // so that each is derived once, whatever is forged
			o.remember(id, sub)
		}
		if fits {
			return o.use(sub)
		}
	}
	return verdict
}

// knows tells whether epoch has proven itself under any key: it may go over to
// another at any time.
func (o *Opener) knows(epoch Epoch) bool {
	for i := range o.keys.keys {
		if o.subkeys[subkeyID{epoch, i, false}] != nil || o.subkeys[subkeyID{epoch, i, true}] != nil {
			return true
		}
	}
	return false
}

func (o *Opener) fits(sub *subkey, b []byte, dg *Datagram) bool {
	if dg.Sealed() {
		return o.unseal(sub, b, dg)
	}
	return o.verify(sub, b)
}

// use notes that sub is of use.
func (o *Opener) use(sub *subkey) Verdict {
	o.clock++
	sub.used = o.clock
	return Proven
}

func (o *Opener) derive(id subkeyID) *subkey {
	label := labelSign
	if id.sealed {
		label = labelSeal
	}
	return &subkey{AEAD: o.keys.keys[id.key].subkey(label, id.epoch, o.cluster)}
}

// remember keeps a subkey in the place of the one that was of no use the longest.
func (o *Opener) remember(id subkeyID, sub *subkey) {
	if len(o.subkeys) >= knownEpochs {
		var oldest subkeyID
		least := ^uint64(0)
		for id, s := range o.subkeys {
			if s.used < least {
				oldest, least = id, s.used
			}
		}
		delete(o.subkeys, oldest)
	}
	o.subkeys[id] = sub
}

// afford tells whether one more subkey may be derived, and if so, counts it.
func (o *Opener) afford(now time.Time) bool {
	if passed := now.Sub(o.credited); o.credited.IsZero() || passed > 0 {
		o.credit = min(derivationBurst, o.credit+passed.Seconds()*derivationRate)
		o.credited = now
	}
	if o.credit < 1 {
		return false
	}
	o.credit--
	return true
}

// verify checks the tag of a datagram that is not sealed: all before it is
// authenticated.
func (o *Opener) verify(a cipher.AEAD, b []byte) bool {
	tag := len(b) - tagSize
	_, err := a.Open(o.room[:0], nonce(b), b[tag:], b[:tag])
	return err == nil
}

// unseal decrypts into room of its own, so that b can be tried with another key.
func (o *Opener) unseal(a cipher.AEAD, b []byte, dg *Datagram) bool {
	head, tag := len(b)-trailerSize, len(b)-tagSize
	o.room = append(append(o.room[:0], b[terminatorSize:head]...), b[tag:]...)
	plain, err := a.Open(o.room[:0], nonce(b), o.room, b[head:tag])
	if err != nil {
		return false
	}
	entries, body, ok := cutBody(plain, dg.Flags)
	dg.Entries, dg.Body = entries, body
	return ok
}

func nonce(b []byte) []byte {
	trailer := b[len(b)-trailerSize:]
	return trailer[atNonce : atNonce+nonceSize]
}
