package guest

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// lock waits for an exclusive lock on the file at path, which it creates. Locks are flock's, so that a process that is
// killed lets go of them.
func lock(ctx context.Context, path string) (unlock func(), err error) {
	return lockOne(ctx, []string{path})
}

// lockSlot waits for one of n slots in dir. It bounds how many processes of the machine, and goroutines of each, are
// past it at the same time.
func lockSlot(ctx context.Context, dir string, n int) (unlock func(), err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	paths := make([]string, n)
	for i := range paths {
		paths[i] = filepath.Join(dir, fmt.Sprintf(".slot-%d", i))
	}
	return lockOne(ctx, paths)
}

// lockOne locks whichever of the files becomes free first. It polls, because flock cannot wait for one of several
// files, nor for a context.
func lockOne(ctx context.Context, paths []string) (func(), error) {
	retry := time.NewTicker(20 * time.Millisecond)
	defer retry.Stop()
	for {
		for _, path := range paths {
			f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR|unix.O_CLOEXEC, 0o600)
			if err != nil {
				return nil, err
			}
			// Each call opens the file anew, and flock belongs to the open file: goroutines exclude one another as well.
			err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
			if err == nil {
				return func() { f.Close() }, nil
			}
			f.Close()
			if err != unix.EWOULDBLOCK && err != unix.EINTR {
				return nil, fmt.Errorf("flock %s: %w", path, err)
			}
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-retry.C:
		}
	}
}
