package release

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/zdt-dev/zdt/internal/atomicfile"
)

// The marks lie beside the record, which never changes. They are files of their
// own, so that setting one cannot undo the other.
const (
	failedFile = "release.failed"
	pinnedFile = "release.pinned"
	markSchema = 1
)

// A Failed says that an upgrade to a release was undone. The mark keeps the
// release as evidence for a while, and keeps Previous from returning it; it
// does not keep anybody from trying it again. Flip takes it away.
type Failed struct {
	Schema int       `json:"schema"`
	TxID   string    `json:"txid"`
	Reason string    `json:"reason,omitempty"` // a stable word
	At     time.Time `json:"at"`
}

// A Pinned says that Prune must not delete a release.
type Pinned struct {
	Schema int       `json:"schema"`
	At     time.Time `json:"at"`
	Who    Who       `json:"who"`
	Why    string    `json:"why,omitempty"`
}

// MarkFailed notes that the upgrade f.TxID to a release was undone. The current
// release is never marked: an upgrade to what is committed already that fails
// says nothing about it. The caller holds the service's lock.
func (s *Store) MarkFailed(id string, f Failed) error {
	if !ValidTxID(f.TxID) {
		return fmt.Errorf("mark %s as failed: %q is not the ID of a transaction", id, f.TxID)
	}
	if current, err := s.currentID(); err == nil && current == id {
		return nil
	}
	f.Schema = markSchema
	if f.At.IsZero() {
		f.At = s.now().UTC()
	}
	if err := s.mark("fail", id, failedFile, f); err != nil {
		return fmt.Errorf("mark %s as failed: %w", id, withSpaceHint(err, s.dir))
	}
	return nil
}

// Pin protects a release from Prune until Unpin. Pinning it again replaces who
// and why.
func (s *Store) Pin(ctx context.Context, id string, p Pinned) error {
	p.Schema = markSchema
	if p.At.IsZero() {
		p.At = s.now().UTC()
	}
	err := s.locked(ctx, func() error { return s.mark("pin", id, pinnedFile, p) })
	if err != nil {
		return fmt.Errorf("pin %s: %w", id, withSpaceHint(err, s.dir))
	}
	return nil
}

// Unpin takes the pin away, and tells whether there was one.
func (s *Store) Unpin(ctx context.Context, id string) (was bool, err error) {
	err = s.locked(ctx, func() (err error) { was, err = s.unmark("unpin", id, pinnedFile); return err })
	if err != nil {
		return false, fmt.Errorf("unpin %s: %w", id, withSpaceHint(err, s.dir))
	}
	return was, nil
}

// locked runs f while nothing else changes the set of releases.
func (s *Store) locked(ctx context.Context, f func() error) error {
	unlock, err := s.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	return f()
}

// mark writes one mark of a release that need not be usable.
func (s *Store) mark(op, id, name string, v any) error {
	d, err := s.openByID(id)
	if err != nil {
		return err
	}
	defer d.Close()
	data, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	if len(data) >= maxRecord {
		return fmt.Errorf("mark has %d bytes, at most %d are allowed", len(data), maxRecord)
	}
	do := s.steps(op)
	if err := do("sweep", func() error { return sweepTempsAt(d, name) }); err != nil {
		return err
	}
	return atomicfile.WriteAt(d, name, append(data, '\n'), 0o444, do)
}

func (s *Store) unmark(op, id, name string) (was bool, err error) {
	d, err := s.openByID(id)
	if err != nil {
		return false, err
	}
	defer d.Close()
	do := s.steps(op)
	err = do("remove", func() error {
		err := unix.Unlinkat(int(d.Fd()), name, 0)
		if errors.Is(err, unix.ENOENT) {
			return nil
		}
		was = err == nil
		return err
	})
	if err != nil || !was {
		return was, err
	}
	return was, do("fsync directory", d.Sync)
}

// openByID opens the directory of a release; the caller owns it.
func (s *Store) openByID(id string) (*os.File, error) {
	if !ValidID(id) {
		return nil, ErrNoRelease
	}
	releases, err := s.openReleases(false)
	if err == nil {
		defer releases.Close()
		var d *os.File
		if d, err = s.openRelease(releases, id); err == nil {
			return d, nil
		}
	}
	if errors.Is(err, fs.ErrNotExist) {
		err = ErrNoRelease
	}
	return nil, err
}

// readMarks fills in the marks of the release in d.
func readMarks(d *os.File, r *Release) error {
	var failed Failed
	var pinned Pinned
	if ok, err := readMark(d, failedFile, &failed, &failed.Schema); err != nil {
		return err
	} else if ok {
		r.Failed = &failed
	}
	if ok, err := readMark(d, pinnedFile, &pinned, &pinned.Schema); err != nil {
		return err
	} else if ok {
		r.Pinned = &pinned
	}
	return nil
}

// readMark accepts newer schemas: that the file is there is what counts.
func readMark(d *os.File, name string, v any, schema *int) (bool, error) {
	data, err := readRecord(d, name)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	if err := json.Unmarshal(data, v); err != nil {
		return false, fmt.Errorf("%s: %w: %w", name, ErrDamaged, err)
	}
	if *schema < 1 {
		return false, fmt.Errorf("%s has no schema: %w", name, ErrDamaged)
	}
	return true, nil
}
