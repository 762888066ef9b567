package release

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"sync"

	"golang.org/x/sys/unix"
)

// Prune deletes releases, oldest first, until at most keep of those that
// nothing protects are left. It returns what it has deleted, also on error.
//
// Protected are the current release, the one that Previous would return, the
// last committed one, those that an open transaction names, those that a live
// process executes or has open, and those whose IDs are in protect. If one of
// these cannot be found out, nothing is deleted. Releases with Damage count like
// the others. The caller holds the service's lock.
func (s *Store) Prune(ctx context.Context, keep int, protect ...string) ([]Release, error) {
	removed, err := s.prune(ctx, keep, protect)
	if err != nil {
		err = fmt.Errorf("prune releases: %w", err)
	}
	return removed, err
}

func (s *Store) prune(ctx context.Context, keep int, protect []string) (removed []Release, err error) {
	unlock, err := s.lock(ctx)
	if err != nil {
		return nil, err
	}
	defer unlock()
	releases, err := s.openReleases(false)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer releases.Close()
	if err := sweep(releases); err != nil {
		return nil, err
	}
	list, err := s.list(releases)
	if err != nil {
		return nil, err
	}
	safe, err := s.protected(protect)
	if err != nil {
		return nil, err
	}
	running := sync.OnceValues(func() (map[inode]bool, error) { return executing(releases) })
	var loose []Release
	for _, r := range list {
		if safe[r.ID] {
			continue
		}
		used, err := inUse(releases, r.ID, running)
		if err != nil {
			return nil, err
		}
		if !used {
			loose = append(loose, r)
		}
	}
	do := s.steps("prune")
	for len(loose) > max(keep, 0) {
		if err := ctx.Err(); err != nil {
			return removed, err
		}
		r := loose[0]
		loose = loose[1:]
		// First out of sight, by one rename: a crash must not leave a release
		// that lacks its program.
		tmp := tempPrefix + r.ID
		if err := do("rename", func() error {
			return unix.Renameat(int(releases.Fd()), r.ID, int(releases.Fd()), tmp)
		}); err != nil {
			return removed, fmt.Errorf("%s: %w", r.ID, err)
		}
		removed = append(removed, r)
		if err := do("remove", func() error { return removeAllAt(releases, tmp) }); err != nil {
			return removed, fmt.Errorf("%s: %w", r.ID, err)
		}
	}
	return removed, do("fsync releases", releases.Sync)
}

// protected returns the IDs that records and the caller name.
func (s *Store) protected(protect []string) (map[string]bool, error) {
	safe := make(map[string]bool)
	for _, id := range protect {
		safe[id] = true
	}
	current, err := s.currentID()
	if err != nil && !errors.Is(err, ErrNoCurrent) {
		return nil, err
	}
	safe[current] = true
	t, err := s.ReadTxn()
	if err != nil && !errors.Is(err, ErrNoTxn) {
		return nil, err
	}
	safe[t.From], safe[t.To] = true, true
	h, err := s.History()
	if err != nil {
		return nil, err
	}
	ids := line(h.Entries)
	if n := len(ids); n > 0 {
		safe[ids[n-1]] = true
	}
	for _, id := range before(ids, current) {
		if r, err := s.Get(id); err == nil {
			safe[r.ID] = true // what Previous would return
			break
		}
	}
	return safe, nil
}
