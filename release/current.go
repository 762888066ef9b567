package release

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/zdt-dev/zdt/internal/atomicfile"
)

// Current returns the committed release, or ErrNoCurrent. If the link is there
// but its release is not usable, the error says why and the Release has its ID.
func (s *Store) Current() (Release, error) {
	id, err := s.currentID()
	if err != nil {
		return Release{}, fmt.Errorf("read current release: %w", err)
	}
	r, err := s.Get(id)
	if err != nil {
		r.ID = id
		return r, fmt.Errorf("read current release: %w", err)
	}
	return r, nil
}

func (s *Store) currentID() (string, error) {
	path := filepath.Join(s.dir, currentLink)
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(int(s.root.Fd()), currentLink, buf)
	switch {
	case errors.Is(err, unix.ENOENT):
		return "", ErrNoCurrent
	case errors.Is(err, unix.EINVAL): // there, but not a link
		return "", hint(fmt.Errorf("%s is not a symbolic link: %w", path, ErrDamaged), "move %s away", path)
	case err != nil:
		return "", fmt.Errorf("read link %s: %w", path, err)
	}
	target := string(buf[:n])
	id, ok := strings.CutPrefix(target, releasesDir+"/")
	if !ok || !ValidID(id) {
		return "", hint(fmt.Errorf("%s leads to %q: %w", path, target, ErrDamaged),
			"point it at one of the directories in %s, as %s/ID", filepath.Join(s.dir, releasesDir), releasesDir)
	}
	return id, nil
}

// Flip makes r the current release by one rename: ExecStart= leads to the old
// one or the new one at any moment, never to nothing. The link is relative, so
// that the store can be looked at from elsewhere (a mounted image, a backup).
// Flip may be repeated; it does nothing but make sure if r is current already.
//
// The caller holds the service's lock. On error the old release is current,
// unless only the last step, making it durable, failed; Current tells.
func (s *Store) Flip(r Release) error {
	if err := s.flip(r); err != nil {
		return fmt.Errorf("make %s current: %w", r.ID, withSpaceHint(err, s.dir))
	}
	return nil
}

func (s *Store) flip(r Release) error {
	do := s.steps("flip")
	// What systemd will start must be there.
	got, err := s.Get(r.ID)
	if err != nil {
		return err
	}
	// Before it is current, so that no crash leaves a committed release which
	// Previous would pass over.
	if got.Failed != nil {
		if _, err := s.unmark("flip: failed mark", r.ID, failedFile); err != nil {
			return err
		}
	}
	if err := do("sweep", func() error { return s.sweepTemps(currentLink) }); err != nil {
		return err
	}
	id, err := s.currentID()
	if err != nil && !errors.Is(err, ErrNoCurrent) && !errors.Is(err, ErrDamaged) {
		return err
	}
	if err == nil && id == r.ID {
		return do("fsync directory", s.root.Sync)
	}

	tmp, err := atomicfile.TempName(currentLink)
	if err != nil {
		return err
	}
	fd := int(s.root.Fd())
	if err := do("symlink", func() error { return unix.Symlinkat(releasesDir+"/"+r.ID, fd, tmp) }); err != nil {
		return err
	}
	if err := do("rename", func() error { return unix.Renameat(fd, tmp, fd, currentLink) }); err != nil {
		return errors.Join(err, removeAllAt(s.root, tmp))
	}
	return do("fsync directory", s.root.Sync)
}

// sweepTemps removes the temporary files for name that a crash has left. The
// caller holds the service's lock, so nobody is about to rename one.
func (s *Store) sweepTemps(name string) error { return sweepTempsAt(s.root, name) }

func sweepTempsAt(dir *os.File, name string) error {
	d, err := openDirAt(int(dir.Fd()), ".", dir.Name()) // own offset: readers may list as well
	if err != nil {
		return err
	}
	defer d.Close()
	names, err := d.Readdirnames(-1)
	if err != nil {
		return err
	}
	for _, n := range names {
		if atomicfile.IsTemp(n, name) {
			if err := removeAllAt(d, n); err != nil {
				return err
			}
		}
	}
	return nil
}

// Previous returns the release to go back to: the last one that was committed
// before the current one, as the history tells, and that is still usable. The
// order of directories or their times say nothing about that. A rollback takes
// the release that was left out of the line, so that a second rollback goes
// further back and never forward to what was just given up. One that is marked
// as failed since it was committed is passed over.
func (s *Store) Previous() (Release, error) {
	id, err := s.currentID()
	if err != nil && !errors.Is(err, ErrNoCurrent) {
		return Release{}, fmt.Errorf("find previous release: %w", err)
	}
	h, err := s.History()
	if err != nil {
		return Release{}, fmt.Errorf("find previous release: %w", err)
	}
	for _, earlier := range before(line(h.Entries), id) {
		if r, err := s.Get(earlier); err == nil && r.Failed == nil {
			return r, nil
		}
	}
	return Release{}, hint(fmt.Errorf("find previous release: %w", ErrNoPrevious),
		"zdt history shows the releases; name one that is still there with --to")
}

// line returns the IDs of the releases that were committed one upon the other,
// oldest first. A committed rollback to an earlier one cuts off what came after.
func line(entries []Entry) []string {
	var ids []string
	for _, e := range entries {
		if !e.Committed || !ValidID(e.To) {
			continue
		}
		if len(ids) == 0 && ValidID(e.From) {
			ids = append(ids, e.From) // the history was begun later than the service
		}
		if e.FromRecovered && ValidID(e.From) && ids[len(ids)-1] != e.From {
			ids = append(ids, e.From) // it has served, and zdt had not brought it
		}
		if e.Kind == KindRollback {
			if i := lastIndex(ids, e.To); i >= 0 {
				ids = ids[:i+1]
				continue
			}
		}
		if n := len(ids); n == 0 || ids[n-1] != e.To {
			ids = append(ids, e.To)
		}
	}
	return ids
}

// before returns what comes before id in the line, newest first. All of it, if
// id is not in the line: then the flip happened and its record did not.
func before(ids []string, id string) []string {
	end := lastIndex(ids, id)
	if end < 0 {
		end = len(ids)
	}
	var out []string
	for i := end - 1; i >= 0; i-- {
		if ids[i] != id {
			out = append(out, ids[i])
		}
	}
	return out
}

func lastIndex(ids []string, id string) int {
	for i := len(ids) - 1; i >= 0; i-- {
		if ids[i] == id {
			return i
		}
	}
	return -1
}
