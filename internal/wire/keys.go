package wire

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
)

// keySize is a key's, in bytes.
const keySize = 32

// MaxKeys bounds the keys of a cluster: rotating them takes two.
const MaxKeys = 16

// Keys are a cluster's, in the order of its file: the first signs, and each
// verifies. None means that nothing is signed. They have no printable form.
type Keys struct{ keys []key }

// Signing tells whether there is a key to sign with.
func (k Keys) Signing() bool { return len(k.keys) > 0 }

// Hints are what stamps call the keys, in their order. They tell nothing of them.
func (k Keys) Hints() []uint8 {
	hints := make([]uint8, len(k.keys))
	for i := range k.keys {
		hints[i] = k.keys[i].hint
	}
	return hints
}

func (k Keys) String() string   { return fmt.Sprintf("%d keys", len(k.keys)) }
func (k Keys) GoString() string { return k.String() }

// key is what subkeys are derived from.
type key struct {
	prk  []byte // of HKDF
	hint uint8  // not 0
}

// ParseKeys reads a file of keys: one a line, of 32 random bytes, in hexadecimal
// or base64. Empty lines, and what follows a #, are left out. Errors name the line
// and never what it says.
func ParseKeys(file []byte) (Keys, error) {
	var k Keys
	seen := make(map[[keySize]byte]int)
	n := 0
	for line := range strings.Lines(string(file)) {
		n++
		line, _, _ = strings.Cut(line, "#")
		if line = strings.TrimSpace(line); line == "" {
			continue
		}
		secret, err := parseKey(line)
		if err != nil {
			return Keys{}, fmt.Errorf("line %d: %w", n, err)
		}
		if first, ok := seen[secret]; ok {
			return Keys{}, fmt.Errorf("line %d: the key of line %d again: each may stand there once", n, first)
		}
		if len(k.keys) == MaxKeys {
			return Keys{}, fmt.Errorf("line %d: more than %d keys: take out those that no node signs with any more", n, MaxKeys)
		}
		seen[secret] = n
		k.keys = append(k.keys, newKey(secret))
	}
	if len(k.keys) == 0 {
		return Keys{}, errors.New("no key: want one of 32 bytes, in hexadecimal or base64, on a line of its own")
	}
	return k, nil
}

// NewKey is a random key, as a line of a file of keys has it.
func NewKey() string {
	var secret [keySize]byte
	rand.Read(secret[:])
	return base64.StdEncoding.EncodeToString(secret[:])
}

func parseKey(s string) (secret [keySize]byte, err error) {
	var b []byte
	if len(s) == hex.EncodedLen(keySize) {
		b, err = hex.DecodeString(s)
	} else {
		b, err = base64.RawStdEncoding.Strict().DecodeString(strings.TrimSuffix(s, "="))
	}
	if err != nil || len(b) != keySize {
		return secret, errors.New("want a key of 32 bytes: 64 hexadecimal digits, or 44 characters of base64")
	}
	secret = [keySize]byte(b)
	if strings.Count(string(b), string(b[:1])) == keySize {
		return secret, errors.New("32 equal bytes are no key: it must be random")
	}
	return secret, nil
}

// The labels of what is derived. They have one length, so that what follows them
// cannot be taken for another label's.
const (
	hkdfSalt  = "joold stamp"
	labelHint = "joold 1 hint"
	labelSign = "joold 1 sign"
	labelSeal = "joold 1 seal"
)

// must is for errors that depend on lengths alone, which are constants here.
func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func newKey(secret [keySize]byte) key {
	prk := must(hkdf.Extract(sha256.New, secret[:], []byte(hkdfSalt)))
	return key{prk: prk, hint: 1 + must(hkdf.Expand(sha256.New, prk, labelHint, 1))[0]%255}
}

// subkey is what signs, or seals, the datagrams of one epoch in one cluster.
func (k *key) subkey(label string, epoch Epoch, cluster string) cipher.AEAD {
	secret := must(hkdf.Expand(sha256.New, k.prk, label+string(epoch[:])+cluster, keySize))
	return must(cipher.NewGCM(must(aes.NewCipher(secret))))
}

// checksum is the tag's maker where nobody has a key: one that everybody can
// compute. It finds what was damaged, or was meant for another cluster; it stops
// no forger. It is faster than a hash, and there is one way to make a tag.
func checksum(cluster string) cipher.AEAD {
	k := newKey([keySize]byte{}) // which no file may hold
	return k.subkey(labelSign, Epoch{}, cluster)
}
