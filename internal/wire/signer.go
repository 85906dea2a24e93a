package wire

import (
	"crypto/cipher"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"slices"
	"sync"
)

// Signer stamps what one run of a node sends. It owns the epoch and the numbers
// and hands each number out once: no caller can name one, so no nonce can be used
// for two plaintexts. A node must have only one Signer. It may be used
// concurrently, and must not be copied.
type Signer struct {
	cluster string
	random  func([]byte)

	mu      sync.Mutex
	key     *key // nil if there is none
	sealing bool
	sign    cipher.AEAD // one of these two, for key and epoch; the other is nil
	seal    cipher.AEAD
	number  uint64         // the last that was handed out
	apart   uint64         // the last of those from Apart on
	head    [headSize]byte // the last trailer's, without its tag
}

// NewSigner begins a run in cluster. It signs with the first of keys, if there is
// one, and then also seals if it is told to. random fills its argument with random
// bytes: nil, which is crypto/rand, but for simulations.
func NewSigner(cluster string, keys Keys, sealing bool, random func([]byte)) *Signer {
	if random == nil {
		random = func(b []byte) { rand.Read(b) }
	}
	s := &Signer{cluster: cluster, random: random}
	copy(s.head[atMagic:], magic[:])
	s.head[atVersion] = Version
	c := ClusterOf(cluster)
	copy(s.head[atCluster:], c[:])
	s.rekey(keys, sealing)
	s.renew()
	return s
}

// Rekey has what follows signed, and sealed, with other keys. Epoch and numbers go
// on: a subkey to which it comes back sees only numbers that are new to it.
func (s *Signer) Rekey(keys Keys, sealing bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.rekey(keys, sealing)
	s.derive()
}

// Renew begins another epoch, as a new start would: for a node that learns of a
// twin, as a cloned or rolled-back machine has.
func (s *Signer) Renew() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.renew()
}

// Epoch is that of the stamps to come.
func (s *Signer) Epoch() Epoch {
	s.mu.Lock()
	defer s.mu.Unlock()
	return Epoch(s.head[atEpoch:])
}

// Last is the number that was handed out last, 0 if none was.
func (s *Signer) Last() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.number
}

// Used tells whether a number was handed out in this epoch.
func (s *Signer) Used(number uint64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if number >= Apart {
		return number-Apart <= s.apart
	}
	return number <= s.number
}

func (s *Signer) rekey(keys Keys, sealing bool) {
	s.key, s.head[atHint], s.sealing = nil, 0, false
	if keys.Signing() {
		s.key, s.head[atHint], s.sealing = &keys.keys[0], keys.keys[0].hint, sealing
	}
}

func (s *Signer) renew() {
	s.random(s.head[atEpoch : atEpoch+len(Epoch{})])
	s.number, s.apart = 0, 0
	s.derive()
}

func (s *Signer) derive() {
	epoch := Epoch(s.head[atEpoch:])
	s.sign, s.seal = nil, nil
	switch {
	case s.key == nil:
		s.sign = checksum(s.cluster)
	case s.sealing:
		s.seal = s.key.subkey(labelSeal, epoch, s.cluster)
	default:
		s.sign = s.key.subkey(labelSign, epoch, s.cluster)
	}
}

// Stamp makes a datagram of entries, which may be empty, and body, at most MaxBody
// bytes, which nodes of ours alone see. It uses entries' memory and returns it,
// grown by Overhead, and where there is a body by that and 2. Of flags only
// SecondHand and Resend are the caller's to choose.
func (s *Signer) Stamp(entries []byte, flags Flags, body []byte) []byte {
	return s.stamp(&s.number, 0, entries, flags, body)
}

// StampApart is Stamp for a datagram that not all need to have. Its number is one of
// those from Apart on, so that nobody misses it.
func (s *Signer) StampApart(entries []byte, flags Flags, body []byte) []byte {
	return s.stamp(&s.apart, Apart, entries, flags, body)
}

func (s *Signer) stamp(count *uint64, base uint64, entries []byte, flags Flags, body []byte) []byte {
	if flags&^chosen != 0 || len(body) > MaxBody {
		panic(fmt.Sprintf("wire: a stamp with flags %#x and a body of %d bytes", uint8(flags), len(body)))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if *count++; *count == Apart { // after a quarter of a million years of a million a second
		s.renew()
		*count = 1
	}
	binary.BigEndian.PutUint64(s.head[atNumber:], base|*count)
	clear(s.head[atNonce:atNumber])
	if s.key != nil {
		// The number alone makes the nonce unique. Were a machine cloned with this
		// process in it, both would go on with the same numbers.
		s.random(s.head[atNonce:atNumber])
	}
	if len(body) > 0 {
		flags |= hasBody
	}
	if s.seal == nil {
		s.head[atFlags] = byte(flags)
		b := appendBody(append(entries, 0, 0, 0, 0), body)
		b = append(b, s.head[:]...)
		return s.sign.Seal(b, s.nonce(), nil, b)
	}

	s.head[atFlags] = byte(flags | sealed)
	b := append(entries, 0, 0, 0, 0)
	copy(b[terminatorSize:], entries)
	clear(b[:terminatorSize])
	b = slices.Grow(appendBody(b, body), trailerSize)
	b = s.seal.Seal(b[:terminatorSize], s.nonce(), b[terminatorSize:], s.head[:])
	end := len(b) - tagSize
	tag := [tagSize]byte(b[end:])
	b = append(b[:end], s.head[:]...)
	return append(b, tag[:]...)
}

func (s *Signer) nonce() []byte { return s.head[atNonce : atNonce+nonceSize] }

func appendBody(b, body []byte) []byte {
	if len(body) == 0 {
		return b
	}
	b = append(b, body...)
	return binary.BigEndian.AppendUint16(b, uint16(len(body)))
}
