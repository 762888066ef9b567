package release

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// PruneOptions say what Prune keeps.
type PruneOptions struct {
	// Keep is the number of releases kept besides those that must be: the newest of those that have served, and as many
	// of those that have not.
	Keep int
	// KeepFailed is the number of releases marked as failed that are kept. The
	// newest; they do not count for Keep.
	KeepFailed int
	// Protect are the IDs of releases that must not be deleted.
	Protect []string
	// NoWait: while another process stages, or prunes, the error is ErrBusy.
	NoWait bool
	// DryRun: only tell.
	DryRun bool
}

// A KeepReason says why a release is not deleted. The words are stable.
type KeepReason string

const (
	KeepCurrent   KeepReason = "current"      // the committed one
	KeepPrevious  KeepReason = "previous"     // what a rollback would return to
	KeepCommitted KeepReason = "last-good"    // the last committed one by the history
	KeepTxn       KeepReason = "open-upgrade" // the open transaction names it
	KeepPinned    KeepReason = "pinned"
	KeepCaller    KeepReason = "protected" // the caller named it
	KeepRunning   KeepReason = "running"   // a live process executes it or has a file of it open
	KeepRecent    KeepReason = "recent"    // one of the newest
	KeepFailed    KeepReason = "failed"    // one of the last failures
)

// A Kept is a release that Prune left, and the first reason for that.
type Kept struct {
	Release Release
	Reason  KeepReason
}

// Pruned is what Prune did, or would do. Every release of the store is in it once.
type Pruned struct {
	Removed []Release // oldest first
	Kept    []Kept    // oldest first
	// Left are those that were to be removed when an error ended it.
	Left []Release
}

// Prune deletes releases, oldest first, until at most Keep of those that
// nothing protects and KeepFailed of those marked as failed are left. What it
// returns is right also on error.
//
// Protected are the current release, the one that Previous would return, the
// last committed one, those that an open transaction names, pinned ones, those
// that a live process executes or has open, and those in Protect. If one of
// these cannot be found out, nothing is deleted. Releases with Damage count like
// the others. The caller holds the service's lock, unless it is a dry run.
//
// A release goes out of sight by one rename, and is deleted then. When that is cut
// short, by the end of ctx or of the process, the next Prune or Stage deletes the rest.
func (s *Store) Prune(ctx context.Context, o PruneOptions) (Pruned, error) {
	p, err := s.prune(ctx, o)
	if err != nil {
		err = fmt.Errorf("prune releases: %w", withSpaceHint(err, s.dir))
	}
	return p, err
}

func (s *Store) prune(ctx context.Context, o PruneOptions) (Pruned, error) {
	if !o.DryRun { // which everybody may ask for; the lock file is for the owner
		wait := time.Duration(-1)
		if o.NoWait {
			wait = 0
		}
		unlock, err := s.lockWithin(ctx, wait)
		if err != nil {
			return Pruned{}, err
		}
		defer unlock()
	}
	releases, err := s.openReleases(false)
	if errors.Is(err, fs.ErrNotExist) {
		return Pruned{}, nil
	}
	if err != nil {
		return Pruned{}, err
	}
	defer releases.Close()
	do := s.steps("prune")
	if !o.DryRun {
		if err := do("sweep", func() error { return sweep(ctx, releases) }); err != nil {
			return Pruned{}, err
		}
	}
	p, err := s.planPrune(ctx, releases, o)
	if err != nil {
		return Pruned{Kept: p.Kept, Left: p.Removed}, err
	}
	if o.DryRun || len(p.Removed) == 0 {
		return p, nil
	}
	p.Left, p.Removed = p.Removed, nil
	for len(p.Left) > 0 {
		if err := ctx.Err(); err != nil {
			return p, err
		}
		r := p.Left[0]
		// First out of sight, by one rename: a crash must not leave a release
		// that lacks its program.
		tmp := tempPrefix + r.ID
		if err := do("rename", func() error {
			return unix.Renameat(int(releases.Fd()), r.ID, int(releases.Fd()), tmp)
		}); err != nil {
			return p, fmt.Errorf("%s: %w", r.ID, err)
		}
		p.Removed, p.Left = append(p.Removed, r), p.Left[1:]
		if err := do("remove", func() error { return removeAll(ctx, releases, tmp) }); err != nil {
			return p, fmt.Errorf("%s: %w", r.ID, err)
		}
	}
	return p, do("fsync releases", releases.Sync)
}

// planPrune decides about each release. What is to go is in Removed.
func (s *Store) planPrune(ctx context.Context, releases *os.File, o PruneOptions) (Pruned, error) {
	list, err := s.list(releases)
	if err != nil {
		return Pruned{}, err
	}
	safe, err := s.protected(o.Protect)
	if err != nil {
		return Pruned{}, err
	}
	h, err := s.History()
	if err != nil {
		return Pruned{}, err
	}
	served := make(map[string]bool)
	for _, e := range h.Entries {
		if e.Committed {
			served[e.To] = true
		}
	}
	use := newUsers(releases)
	var p Pruned
	// Those that have served are what one goes back to, and count by themselves: however many others were staged since push
	// none of them out.
	recent, failed := map[bool]int{true: max(o.Keep, 0), false: max(o.Keep, 0)}, max(o.KeepFailed, 0)
	for _, r := range slices.Backward(list) {
		reason, sure := safe[r.ID], true
		switch {
		case reason != "":
		case r.Pinned != nil:
			reason = KeepPinned
		case r.Failed != nil && failed > 0:
			reason, sure, failed = KeepFailed, false, failed-1
		case r.Failed == nil && recent[served[r.ID]] > 0:
			recent[served[r.ID]]--
			reason, sure = KeepRecent, false
		}
		// To ask for each file of a tree whether somebody has it open takes time, and of what stays anyway only who looks wants to know.
		if reason == "" || o.DryRun && !sure {
			running, err := use.of(ctx, r.ID)
			if err != nil {
				return Pruned{}, err
			}
			if running {
				reason = KeepRunning
			}
		}
		if reason == "" {
			p.Removed = append(p.Removed, r)
		} else {
			p.Kept = append(p.Kept, Kept{r, reason})
		}
	}
	slices.Reverse(p.Removed)
	slices.Reverse(p.Kept)
	return p, nil
}

// protected returns the IDs that records and the caller name.
func (s *Store) protected(protect []string) (map[string]KeepReason, error) {
	safe := make(map[string]KeepReason)
	add := func(id string, reason KeepReason) {
		if id != "" && safe[id] == "" {
			safe[id] = reason
		}
	}
	current, err := s.currentID()
	if err != nil && !errors.Is(err, ErrNoCurrent) {
		return nil, err
	}
	add(current, KeepCurrent)
	t, err := s.ReadTxn()
	if err != nil && !errors.Is(err, ErrNoTxn) {
		return nil, err
	}
	add(t.From, KeepTxn)
	add(t.To, KeepTxn)
	h, err := s.History()
	if err != nil {
		return nil, err
	}
	ids := line(h.Entries)
	for _, id := range before(ids, current) {
		if r, err := s.Get(id); err == nil && r.Failed == nil {
			add(r.ID, KeepPrevious) // what Previous would return
			break
		}
	}
	if n := len(ids); n > 0 {
		add(ids[n-1], KeepCommitted)
	}
	for _, id := range protect {
		add(id, KeepCaller)
	}
	return safe, nil
}
