package config

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"syscall"
)

// maxFile is how long a file of settings may be, in bytes.
const maxFile = 1 << 20

// readFile takes the settings of a file: a flat JSON object whose keys are the
// names of flags.
func (c *Config) readFile(path string) error {
	data, err := load(path)
	if err != nil {
		return err
	}
	if err := c.decode(data); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}

func (c *Config) decode(data []byte) error {
	members, rest, err := parseObject(data)
	if err != nil {
		return err
	}
	if len(rest) > 0 {
		return fmt.Errorf("line %d: unexpected text after the closing brace", lineOf(data, len(data)-len(rest)))
	}
	seen := make(map[string]bool)
	for _, m := range members {
		s, ok := settingNamed(m.key)
		if !ok {
			key := shorten(m.key)
			return fmt.Errorf("unknown key %q; the nearest is %q", key, nearestSetting(key))
		}
		if seen[m.key] {
			return fmt.Errorf("key %q stands here twice", m.key)
		}
		seen[m.key] = true
		if err := m.apply(c, s.kind, s.set); err != nil {
			return err
		}
	}
	return nil
}

func settingNamed(name string) (setting, bool) {
	for _, s := range settings {
		if s.name == name {
			return s, true
		}
	}
	return setting{}, false
}

// nearestSetting is the setting that a mistaken key was meant for: the one that
// the C daemon calls so, or the one spelt most alike.
func nearestSetting(key string) string {
	if k, ok := legacyNamed(slices.Concat(legacyNet, legacyMod), key); ok && k.here != "" {
		return k.here
	}
	names := make([]string, len(settings))
	for i, s := range settings {
		names[i] = s.name
	}
	return Nearest(key, names)
}

// kind is what sort of JSON value a key may have: a set of the following.
type kind uint8

const (
	text kind = 1 << iota
	number
	truth
	list // of strings
)

func (k kind) String() string {
	switch k {
	case text:
		return "a string"
	case number:
		return "a number"
	case truth:
		return "true or false"
	case text | list:
		return "a string or a list of strings"
	}
	return "a string or a number"
}

// member is one key of a JSON object, with its value as it stands there.
type member struct {
	key   string
	value json.RawMessage
}

// apply gives the member's value to set, if it is of the kind k.
func (m *member) apply(c *Config, k kind, set func(*Config, string) error) error {
	v, err := m.text(k)
	if err == nil {
		err = set(c, v)
	} else if k&text != 0 && m.isNumber() {
		// In quotes it may be what is wanted; if not, its own error tells what is.
		if err = set(new(Config), string(m.value)); err == nil {
			err = fmt.Errorf(`want a string, as in "%s"`, m.shown())
		}
	}
	if err != nil {
		return fmt.Errorf("%q: %s: %w", m.key, m.shown(), err)
	}
	return nil
}

// text is the value as a flag would have it.
func (m *member) text(k kind) (string, error) {
	first, isNumber := m.value[0], m.isNumber()
	switch {
	case first == '"' && k&text != 0:
		var s string
		err := json.Unmarshal(m.value, &s)
		return s, err
	case isNumber && k&number != 0, k&truth != 0 && (first == 't' || first == 'f'):
		return string(m.value), nil
	case first == '[' && k&list != 0:
		var l []string
		if json.Unmarshal(m.value, &l) == nil {
			return strings.Join(l, ","), nil
		}
	}
	return "", fmt.Errorf("want %s", k)
}

func (m *member) isNumber() bool {
	first := m.value[0]
	return first == '-' || '0' <= first && first <= '9'
}

// shown is the value as an error names it, on one line.
func (m *member) shown() string {
	switch {
	case m.value[0] == '{':
		return "an object"
	case m.value[0] == '[':
		return "an array"
	}
	return shorten(string(m.value))
}

// maxShown is how much of a wrong key or value an error repeats, in bytes.
const maxShown = 64

func shorten(s string) string {
	if len(s) > maxShown {
		return strings.ToValidUTF8(s[:maxShown], "") + "..."
	}
	return s
}

// load reads a file of settings. It waits for nobody to write it, as opening a
// named pipe would.
func load(path string) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !fi.Mode().IsRegular() {
		return nil, fmt.Errorf("%s: not a regular file, and settings are read from no other", path)
	}
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, err
	}
	if len(data) > maxFile {
		return nil, fmt.Errorf("%s: longer than %d bytes, which no file of settings is", path, maxFile)
	}
	return data, nil
}

// parseObject splits the JSON object at the start of data into its members, in
// their order and repetitions included. rest is what follows the object.
func parseObject(data []byte) (members []member, rest []byte, err error) {
	// The whole value first: token by token, a mistake could not be told its line.
	var object json.RawMessage
	dec := json.NewDecoder(bytes.NewReader(data))
	if err := dec.Decode(&object); err != nil {
		var syntax *json.SyntaxError
		switch {
		case errors.As(err, &syntax):
			return nil, nil, fmt.Errorf("line %d: not JSON: %w", lineOf(data, int(syntax.Offset)), err)
		case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
			return nil, nil, fmt.Errorf("line %d: not JSON: the file ends too early", lineOf(data, len(data)))
		}
		return nil, nil, err
	}
	rest = bytes.TrimSpace(data[dec.InputOffset():])

	dec = json.NewDecoder(bytes.NewReader(object))
	if open, err := dec.Token(); err != nil || open != json.Delim('{') {
		return nil, nil, errors.New(`want a JSON object: {"key": value, ...}`)
	}
	for dec.More() {
		key, err := dec.Token()
		if err != nil {
			return nil, nil, err
		}
		m := member{key: key.(string)}
		if err := dec.Decode(&m.value); err != nil {
			return nil, nil, err
		}
		members = append(members, m)
	}
	return members, rest, nil
}

// lineOf is the number of the line that holds data[offset].
func lineOf(data []byte, offset int) int {
	return 1 + bytes.Count(data[:min(max(offset, 0), len(data))], []byte{'\n'})
}
