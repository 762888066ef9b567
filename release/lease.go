package release

import (
	"context"
	"errors"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// lease keeps writers away from f until it is closed. It needs the file's owner
// or CAP_LEASE and a file system that has leases; elsewhere it does nothing.
// It waits a moment for a writer: one that has closed the file can have forked
// shortly before, and its child keeps the descriptor until its exec.
func lease(ctx context.Context, f *os.File) error {
	const tries = 10
	pause := time.Millisecond
	for range tries {
		_, err := unix.FcntlInt(f.Fd(), unix.F_SETLEASE, unix.F_RDLCK)
		if !errors.Is(err, unix.EAGAIN) {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pause):
		}
		pause = min(2*pause, 100*time.Millisecond)
	}
	return hint(errors.New("is being written by another process"), "wait until the copy or build is finished")
}

// settle returns when nobody has the program open for writing any more: such a
// file cannot be executed (ETXTBSY). O_CLOEXEC does not prevent it, for a child
// that another goroutine has forked keeps our descriptor until its exec.
func settle(ctx context.Context, d *os.File, program string) error {
	// A fork by Go holds this lock until the child is on its way into the new
	// program, however long that takes.
	syscall.ForkLock.Lock()
	syscall.ForkLock.Unlock() //nolint:staticcheck // empty on purpose
	// But the kernel lets the parent of a vfork go on some microseconds before
	// it closes the child's descriptors (seen with Linux 6.18). It gives no
	// read lease while there is a writer.
	f, err := openProgram(d, program)
	if err != nil {
		return err
	}
	defer f.Close()
	return lease(ctx, f)
}
