package daemon

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"joold/internal/cluster"
)

// keptFor is how long a note lasts: a daemon that was away for longer has missed
// more than may be told to be nothing.
const keptFor = 30 * time.Second

// note is what a daemon leaves for the next one, should it end while its node is in
// sync: how the instance was then. If the instance still is as one that went on from
// there, its table was kept, and a restart of the daemon alone does not make its node
// one that lacks anything but what was said meanwhile.
//
// That is nothing where the node goes on translating: its own kernel has what is new.
// A backup lacks it, and must not call itself in sync before it has fetched it: where
// there is a third node, that should take over. So an instance that has never
// translated is not believed, though Jool 4.1.12 and later would tell whether it is the
// same one: it counts the sessions that it was given (SSS_RCVD), as it does packets.
// (Neither the number of sessions nor the machine's boot id tell that: an instance that
// was made anew is filled again, without a boot.) To spare a backup the copy, the note
// would have to say how far each sender's numbers had been heard, with all of that in
// the kernel, so that the rest could be asked for by number. One that translated once,
// and is a backup now, cannot be told from a node that translates and has no traffic: it
// is believed, and lacks what was said within keptFor for as long as a copy takes.
type note struct {
	Written    time.Time `json:"written"`
	Translated uint64    `json:"translated"` // packets
	Sessions   uint64    `json:"sessions"`
}

// fits tells whether an instance with these counts may be the one that is noted.
func (n *note) fits(translated, sessions uint64, now time.Time) bool {
	age := now.Sub(n.Written)
	return age >= 0 && age < keptFor && n.Translated > 0 && translated >= n.Translated && sessions >= n.Sessions/2
}

// leaveNote notes how l's instance is, if its node is in sync; else what was noted
// must not be believed any more.
func (d *Daemon) leaveNote(l *link) {
	if d.notePath == "" {
		return
	}
	if !d.out.synced(l) {
		d.dropNote()
		return
	}
	b, err := json.Marshal(note{time.Now(), l.stats.Translated, l.stats.Sessions})
	if err == nil {
		err = replaceFile(d.notePath, b)
	}
	if err != nil {
		d.limit.Warn("cannot leave a note for the next daemon: when it starts its node is not in sync at first", "err", err)
	}
}

// dropNote takes back what was noted.
func (d *Daemon) dropNote() {
	if d.notePath == "" {
		return
	}
	if err := os.Remove(d.notePath); err != nil && !errors.Is(err, fs.ErrNotExist) {
		d.limit.Warn("cannot remove the note for the next daemon", "err", err)
	}
}

// replaceFile writes a file that nobody finds half-written.
func replaceFile(path string, b []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		os.Remove(f.Name())
	}
	return err
}

// wasKept tells, by the note of the daemon before, whether l's instance has the table
// that it had then. It believes nobody else's note.
func (d *Daemon) wasKept(l *link) bool {
	if d.notePath == "" {
		return false
	}
	info, err := os.Lstat(d.notePath)
	if err != nil || !info.Mode().IsRegular() || info.Size() > 1024 {
		return false
	}
	if stat, ok := info.Sys().(*syscall.Stat_t); !ok || int(stat.Uid) != os.Geteuid() {
		return false
	}
	b, err := os.ReadFile(d.notePath)
	n, ok := parseNote(b)
	return err == nil && ok && n.fits(l.stats.Translated, l.stats.Sessions, time.Now())
}

func parseNote(b []byte) (n note, ok bool) {
	err := json.Unmarshal(b, &n)
	return n, err == nil
}

// synced tells whether l's node is, and its kernel has all.
func (o *outlet) synced(l *link) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.link == l && o.member.Status().State == cluster.Synced && !o.member.behind
}
