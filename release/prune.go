package release

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// Prune deletes releases, oldest first, until at most keep of those that
// nothing protects are left. It returns what it has deleted, also on error.
//
// Protected are the current release, the one that Previous would return, the
// last committed one, those that an open transaction names, those whose program
// a live process executes, and those whose IDs are in protect. If one of these
// cannot be found out, nothing is deleted. Releases with Damage count like the
// others. The caller holds the service's lock.
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
	running, err := executing(releases, os.Geteuid() == 0)
	if err != nil {
		return nil, err
	}
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

// An inode names a file whatever its path, also in another mount namespace.
type inode struct {
	major, minor uint32
	ino          uint64
}

// statInode does not follow a link in the last element unless flags say so.
func statInode(dirfd int, path string, flags, mask int) (inode, error) {
	var st unix.Statx_t
	// DONT_SYNC: do not wait for a file server that is gone.
	if err := unix.Statx(dirfd, path, flags|unix.AT_STATX_DONT_SYNC, mask, &st); err != nil {
		return inode{}, err
	}
	return inode{st.Dev_major, st.Dev_minor, st.Ino}, nil
}

// executing returns the inodes that processes execute, as far as they can be in
// the directory releases. all says that the caller may look at every process;
// else those that it may not look at are left out.
func executing(releases *os.File, all bool) (map[inode]bool, error) {
	store, err := statInode(int(releases.Fd()), "", unix.AT_EMPTY_PATH, unix.STATX_INO)
	if err != nil {
		return nil, err
	}
	proc, err := os.Open("/proc")
	if err != nil {
		return nil, err
	}
	defer proc.Close()
	names, err := proc.Readdirnames(-1)
	if err != nil {
		return nil, err
	}
	running := make(map[inode]bool)
	for _, n := range names {
		if _, err := strconv.Atoi(n); err != nil {
			continue
		}
		exe := "/proc/" + n + "/exe"
		id, err := statInode(unix.AT_FDCWD, exe, 0, unix.STATX_INO)
		if err == nil {
			running[id] = true
			continue
		}
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ESRCH) {
			continue // a kernel thread, or gone
		}
		if !all && errors.Is(err, unix.EACCES) {
			continue
		}
		// A program on somebody's FUSE mount is closed even to root, but its
		// device is told to who asks for nothing else.
		if id, devErr := statInode(unix.AT_FDCWD, exe, 0, 0); devErr == nil &&
			(id.major != store.major || id.minor != store.minor) {
			continue
		}
		return nil, fmt.Errorf("see what process %s executes: %w", n, err)
	}
	return running, nil
}

// inUse tells whether a file in the release's directory is being executed. It
// looks at all of them, so that it also works for a damaged release.
func inUse(releases *os.File, id string, running map[inode]bool) (bool, error) {
	d, err := openDirAt(int(releases.Fd()), id, id)
	if errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer d.Close()
	names, err := d.Readdirnames(-1)
	if err != nil {
		return false, err
	}
	for _, n := range names {
		file, err := statInode(int(d.Fd()), n, unix.AT_SYMLINK_NOFOLLOW, unix.STATX_INO)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return false, err
		}
		if err == nil && running[file] {
			return true, nil
		}
	}
	return false, nil
}
