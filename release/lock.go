package release

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// A Holder says who holds a service's lock. It is written into the lock file,
// for messages only: the kernel's lock decides, never this text.
type Holder struct {
	Proc
	TxID  string    `json:"txid,omitempty"`
	Phase Phase     `json:"phase,omitempty"`
	Since time.Time `json:"since"`
	Who   Who       `json:"who"`
	// Orders: it takes an operator's decisions, SIGUSR1 to promote, SIGUSR2 to abort. Another process
	// would be killed by them.
	Orders bool `json:"orders,omitempty"`
}

// HeldError tells that somebody else holds the lock. Holder is zero if that
// process did not say who it is (yet): flock(1) of a script, for instance.
type HeldError struct {
	Path   string
	Holder Holder
}

func (e *HeldError) Error() string {
	h := e.Holder
	if h.PID == 0 {
		return fmt.Sprintf("%s is locked by another process", e.Path)
	}
	s := fmt.Sprintf("locked by pid %d (%s) since %s", h.PID, h.Who, h.Since.Local().Format(time.DateTime))
	if h.TxID != "" {
		s += ", upgrade " + h.TxID
	}
	if h.Phase != "" {
		s += ", phase " + string(h.Phase)
	}
	return s
}

// Hint returns what the operator can do next.
func (e *HeldError) Hint() string {
	return "wait for it with --wait, or look at it with zdt watch"
}

// A Lock is the right to change one service. It ends with Release, or with
// the process, however that dies.
type Lock struct {
	f      *os.File
	holder Holder
	behind int64 // where the phase is written
}

// Acquire takes the lock file at path, an absolute path such as
// /run/lock/zdt/NAME.lock, and writes h into it (its pid, start time and Since
// are filled in). While somebody else holds it Acquire tries for the duration
// wait: 0 tries once, a negative one until ctx ends. It then fails with a
// *HeldError; if ctx ended, the error is that of ctx as well.
//
// The directory is created if it is missing, and must not be writable for
// others: a service user who can put files there could impersonate a holder.
//
// The file stays when the lock is released. Whoever waits has it open already;
// if it were removed, the next one would make a new file, and both would hold
// "the" lock.
func Acquire(ctx context.Context, path string, h Holder, wait time.Duration) (*Lock, error) {
	l, err := acquire(ctx, path, h, wait)
	var held *HeldError
	if err != nil && !errors.As(err, &held) {
		return nil, fmt.Errorf("lock %s: %w", path, withRightsHint(err))
	}
	return l, err
}

func acquire(ctx context.Context, path string, h Holder, wait time.Duration) (*Lock, error) {
	dir, err := openTrusted(filepath.Dir(path), true)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	f, err := openLockFile(dir, filepath.Base(path))
	if err != nil {
		return nil, err
	}
	if err := flockWait(ctx, f, wait); err != nil {
		if errors.Is(err, unix.EWOULDBLOCK) || ctx.Err() != nil {
			held, _ := readHolder(f) // what cannot be read is not said
			err = &HeldError{Path: path, Holder: held}
			if ctx.Err() != nil {
				err = errors.Join(ctx.Err(), err)
			}
		}
		f.Close()
		return nil, err
	}
	h.Proc, err = ProcOf(os.Getpid())
	if err == nil {
		h.Since = time.Now().UTC()
		l := &Lock{f: f, holder: h}
		if err = l.write(); err == nil {
			return l, nil
		}
	}
	unlockClose(f)
	return nil, err
}

// SetPhase tells readers how far the holder has come.
//
// The kernel lets a reader see half of a write. So who holds the lock is written once, and the phase into a line of its own behind
// it, of which a half is no phase: whoever looks finds the holder at any time, and to find nobody means that he is gone.
func (l *Lock) SetPhase(p Phase) error {
	l.holder.Phase = p
	_, err := l.f.WriteAt(fmt.Appendf(nil, "%-*s\n", phaseWidth, p), l.behind)
	return err
}

// phaseWidth is the room for a phase.
const phaseWidth = 16

func (l *Lock) write() error {
	data, err := json.Marshal(l.holder)
	if err != nil {
		return err
	}
	if err := l.f.Truncate(0); err != nil { // of a holder that died
		return err
	}
	_, err = l.f.WriteAt(append(data, '\n'), 0)
	l.behind = int64(len(data)) + 1
	return err
}

// Release gives the lock back. The text of the holder goes with it.
func (l *Lock) Release() error {
	err := l.f.Truncate(0)
	return errors.Join(err, unlockClose(l.f))
}

// ReadHolder tells who holds the lock file at path, without touching the lock:
// a reader that tried it would make others fail. ok is false if nobody does, or
// if who wrote the text is dead. Only root (the user, for user services) may
// read it: others get fs.ErrPermission, because everybody who can open a file
// can also lock it.
func ReadHolder(path string) (h Holder, ok bool, err error) {
	dir, err := openTrusted(filepath.Dir(path), false)
	if err == nil {
		defer dir.Close()
		var f *os.File
		if f, err = openFileAt(dir, filepath.Base(path)); err == nil {
			defer f.Close()
			h, err = readHolder(f)
		}
	}
	if errors.Is(err, fs.ErrNotExist) {
		return Holder{}, false, nil
	}
	if err != nil {
		return Holder{}, false, fmt.Errorf("read lock %s: %w", path, err)
	}
	if h.PID == 0 || !h.Alive() {
		return Holder{}, false, nil
	}
	return h, true, nil
}

// readHolder returns a zero Holder for an empty file.
func readHolder(f *os.File) (Holder, error) {
	data, err := io.ReadAll(io.NewSectionReader(f, 0, maxRecord))
	if err != nil || len(data) == 0 {
		return Holder{}, err
	}
	who, phase, _ := bytes.Cut(data, []byte{'\n'})
	var h Holder
	if err := json.Unmarshal(who, &h); err != nil {
		return Holder{}, fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	if p := Phase(bytes.TrimSpace(phase)); p.Valid() { // else it was read half-way
		h.Phase = p
	}
	return h, nil
}

// openLockFile opens or makes a lock file that nobody else can open.
func openLockFile(dir *os.File, name string) (*os.File, error) {
	path := filepath.Join(dir.Name(), name)
	fd, err := unix.Openat(int(dir.Fd()), name,
		unix.O_RDWR|unix.O_CREAT|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0o600)
	if errors.Is(err, unix.ELOOP) {
		return nil, untrusted(path, "is a symbolic link")
	}
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	f := os.NewFile(uintptr(fd), path)
	if err := checkFile(f); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// flockWait locks f. It asks again and again because a flock(2) that waits
// cannot be ended by a context. When wait is over (never, if negative) the
// error is EWOULDBLOCK.
func flockWait(ctx context.Context, f *os.File, wait time.Duration) error {
	const first, most = 5 * time.Millisecond, 200 * time.Millisecond
	deadline := time.Now().Add(wait)
	for pause := first; ; pause = min(2*pause, most) {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil || !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			return err
		}
		if wait >= 0 {
			left := time.Until(deadline)
			if left <= 0 {
				return unix.EWOULDBLOCK
			}
			pause = min(pause, left)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pause):
		}
	}
}

// unlockClose unlocks before it closes: a child that was forked a moment ago
// and has not reached its exec yet shares the lock and would keep it.
func unlockClose(f *os.File) error {
	return errors.Join(unix.Flock(int(f.Fd()), unix.LOCK_UN), f.Close())
}
