package operators

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/zdt-dev/zdt/internal/trustpath"
)

const (
	requestSuffix   = ".request"
	draftSuffix     = ".draft" // of a request that is being written
	programSuffix   = ".program"
	signatureSuffix = ".signature"
	answerSuffix    = ".ndjson"

	// MaxProgram bounds the file of an operator, bytes: root copies it.
	MaxProgram   = 4 << 30
	maxSignature = 64 << 10
	// MaxAge is how old a request may be: who asked and went away, or was killed, does not want it any more when somebody
	// else asks for something later.
	MaxAge = 2 * time.Minute
	// leftover is how old what lies beside a request may be.
	leftover = time.Hour
	// maxEntries bounds how much of the directory is looked at in one go, maxAnswers how many answers stay.
	maxEntries = 4096
	maxAnswers = 64
	// mostAnswers bounds them also while they are young.
	mostAnswers = 1024
)

// A Box is the directory of one service's operators, as root sees it.
type Box struct {
	service  string
	base     *os.File
	incoming *os.File
	group    uint32
}

// Open opens the directory at path, which must be as Make has left it. The caller closes the box. The error is
// fs.ErrNotExist if the service has no operators.
func Open(path, service string) (*Box, error) {
	base, err := trustpath.Dir(path)
	if err != nil {
		return nil, err
	}
	b := &Box{service: service, base: base}
	var st unix.Stat_t
	if err = unix.Fstat(int(base.Fd()), &st); err == nil {
		b.group = st.Gid
		var missing []string
		if missing, err = Missing(path, b.group); err == nil && len(missing) > 0 {
			err = fmt.Errorf("%s is missing, or has another owner or mode than zdt operators gives it", strings.Join(missing, ", "))
		}
	}
	if err == nil {
		b.incoming, err = openDir(base, incoming)
	}
	if err != nil {
		base.Close()
		return nil, err
	}
	return b, nil
}

// Close closes the box.
func (b *Box) Close() { b.base.Close(); b.incoming.Close() }

// A RefusedError is a file of an operator that is not what it has to be.
type RefusedError struct {
	Name string
	Why  string
}

func (e *RefusedError) Error() string { return e.Name + " " + e.Why }

// Hint is what to do about it.
func (e *RefusedError) Hint() string { return "let zdt put it there: zdt upgrade NAME --binary FILE" }

// Waiting are the IDs of the requests there are, at most 64 at a time.
func (b *Box) Waiting() ([]string, error) {
	names, err := b.names()
	var ids []string
	for _, name := range names {
		id, ok := strings.CutSuffix(name, requestSuffix)
		if !ok || !ValidID(id) || len(ids) == 64 {
			continue
		}
		// A directory could not be taken away, and would be there again and again.
		var st unix.Stat_t
		if unix.Fstatat(int(b.incoming.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW) == nil && st.Mode&unix.S_IFMT != unix.S_IFDIR {
			ids = append(ids, id)
		}
	}
	return ids, err
}

func (b *Box) names() ([]string, error) {
	d, err := openDir(b.base, incoming) // another offset each time
	if err != nil {
		return nil, err
	}
	defer d.Close()
	names, err := d.Readdirnames(maxEntries)
	if errors.Is(err, io.EOF) {
		err = nil
	}
	slices.Sort(names)
	return names, err
}

// Taken is a request that is nobody's any more but root's.
type Taken struct {
	ID      string
	UID     int // whose file it was
	Request Request
}

// Take takes a request away and returns it. It is gone whatever is wrong with it; UID is -1 if that cannot be told.
func (b *Box) Take(id string, now time.Time) (Taken, error) {
	t := Taken{ID: id, UID: -1}
	name := id + requestSuffix
	f, st, err := b.open(name, maxRequest, -1)
	// Before it is read: a request is carried out once at most.
	gone := b.remove(name)
	if err != nil {
		return t, err
	}
	defer f.Close()
	t.UID = int(st.Uid)
	if gone != nil {
		return t, fmt.Errorf("take %s: %w", name, gone)
	}
	// Of the inode: nobody can set it.
	if age := now.Sub(time.Unix(st.Ctim.Unix())); age > MaxAge || age < -MaxAge {
		return t, &RefusedError{name, fmt.Sprintf("is %v old: whoever asked has gone away", age.Round(time.Second))}
	}
	data, err := io.ReadAll(io.LimitReader(f, maxRequest+1))
	if err != nil {
		return t, fmt.Errorf("read %s: %w", name, err)
	}
	t.Request, err = ParseRequest(data, b.service)
	if err != nil {
		return t, &RefusedError{name, "is refused: " + err.Error()}
	}
	return t, nil
}

// Sweep removes leftovers: what lies beside no request for long and, with all, whatever there is, so that nobody can leave
// anything that keeps requests from being seen.
func (b *Box) Sweep(now time.Time, all bool) error {
	if all {
		return b.empty()
	}
	names, err := b.names()
	for _, name := range names {
		ext := filepath.Ext(name)
		if !ValidID(strings.TrimSuffix(name, ext)) || !slices.Contains([]string{requestSuffix, draftSuffix, programSuffix, signatureSuffix}, ext) {
			continue
		}
		var st unix.Stat_t
		if serr := unix.Fstatat(int(b.incoming.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW); serr != nil {
			continue // taken back
		}
		if now.Sub(time.Unix(st.Ctim.Unix())) > leftover {
			err = errors.Join(err, b.remove(name))
		}
	}
	return err
}

// empty removes all that lies in incoming. No link is followed.
func (b *Box) empty() error {
	root, err := os.OpenRoot(filepath.Join(b.base.Name(), incoming))
	if err != nil {
		return err
	}
	defer root.Close()
	d, err := root.Open(".")
	if err != nil {
		return err
	}
	defer d.Close()
	names, err := d.Readdirnames(-1)
	for _, name := range names {
		err = errors.Join(err, root.RemoveAll(name))
	}
	return err
}

// Drop removes what lies beside a request of uid that was refused. What belongs to somebody else has only the same name.
func (b *Box) Drop(id string, uid int) {
	for _, suffix := range []string{programSuffix, signatureSuffix} {
		var st unix.Stat_t
		if unix.Fstatat(int(b.incoming.Fd()), id+suffix, &st, unix.AT_SYMLINK_NOFOLLOW) == nil && int(st.Uid) == uid {
			b.remove(id + suffix)
		}
	}
}

// remove removes a name, which is a file's.
func (b *Box) remove(name string) error {
	err := unix.Unlinkat(int(b.incoming.Fd()), name, 0)
	if err == nil || errors.Is(err, unix.ENOENT) {
		return nil
	}
	return &fs.PathError{Op: "remove", Path: filepath.Join(b.incoming.Name(), name), Err: err}
}

// open opens a file that an operator has made; owner is who it must belong to, -1: to anybody but root.
func (b *Box) open(name string, most int64, owner int) (*os.File, unix.Stat_t, error) {
	var st unix.Stat_t
	// First without opening it in earnest: the open of a FIFO waits, the open of a device may do something.
	fd, err := unix.Openat(int(b.incoming.Fd()), name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, st, &fs.PathError{Op: "open", Path: filepath.Join(b.incoming.Name(), name), Err: err}
	}
	defer unix.Close(fd)
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, st, fmt.Errorf("look at %s: %w", name, err)
	}
	if why := b.refuses(&st, most, owner); why != "" {
		return nil, st, &RefusedError{name, why}
	}
	// The same inode, whatever the name stands for by now.
	rfd, err := unix.Open("/proc/self/fd/"+strconv.Itoa(fd), unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, st, fmt.Errorf("open %s: %w", name, err)
	}
	return os.NewFile(uintptr(rfd), name), st, nil
}

// refuses says what is wrong with a file; "" for nothing.
func (b *Box) refuses(st *unix.Stat_t, most int64, owner int) string {
	switch {
	case st.Mode&unix.S_IFMT == unix.S_IFLNK:
		return "is a symbolic link"
	case st.Mode&unix.S_IFMT != unix.S_IFREG:
		return "is not a regular file"
	case st.Nlink != 1:
		return "has other names (hard links)"
	case st.Uid == 0:
		return "belongs to root, who need not ask"
	case owner >= 0 && int(st.Uid) != owner:
		return fmt.Sprintf("belongs to uid %d, and the request to uid %d", st.Uid, owner)
	case st.Gid != b.group:
		// What was made here has it; what was moved here from elsewhere, and may be another user's, has not.
		return fmt.Sprintf("has the group %d, and not that of the operators: it was not made here", st.Gid)
	case st.Mode&0o022 != 0:
		return fmt.Sprintf("can be written by others than its owner (mode %04o)", st.Mode&0o7777)
	case st.Size == 0:
		return "is empty"
	case st.Size > most:
		return fmt.Sprintf("has %d bytes, at most %d are taken", st.Size, most)
	}
	return ""
}

// Answer makes the file in which root answers a request; operators can read it. The caller owns it.
func (b *Box) Answer(id string) (*os.File, error) {
	d, err := openDir(b.base, answers)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	if err := thin(d, maxAnswers-1, time.Now()); err != nil {
		return nil, err
	}
	// It gets its name when operators may read it: whoever asked looks for it by that, and opens it at once.
	own, err := NewID()
	if err != nil {
		return nil, err
	}
	name, unnamed := id+answerSuffix, ".new-"+own
	fd, err := unix.Openat(int(d.Fd()), unnamed, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_APPEND|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, &fs.PathError{Op: "make", Path: filepath.Join(d.Name(), unnamed), Err: err}
	}
	f := os.NewFile(uintptr(fd), filepath.Join(d.Name(), name))
	defer unix.Unlinkat(int(d.Fd()), unnamed, 0)
	if err := errors.Join(f.Chown(-1, int(b.group)), f.Chmod(0o640)); err != nil {
		f.Close()
		return nil, err
	}
	if err := unix.Linkat(int(d.Fd()), unnamed, int(d.Fd()), name, 0); err != nil {
		f.Close()
		return nil, &fs.PathError{Op: "make", Path: filepath.Join(d.Name(), name), Err: err}
	}
	return f, nil
}

// thin leaves the newest files, and those that somebody may still be about to open, up to a bound.
func thin(d *os.File, keep int, now time.Time) error {
	entries, err := os.ReadDir(d.Name())
	if err != nil || len(entries) <= keep {
		return err
	}
	type file struct {
		name string
		at   time.Time
	}
	var files []file
	for _, e := range entries {
		if fi, err := e.Info(); err == nil {
			files = append(files, file{e.Name(), fi.ModTime()})
		}
	}
	slices.SortFunc(files, func(a, b file) int { return b.at.Compare(a.at) })
	for i, old := range files[min(keep, len(files)):] {
		if i+keep >= mostAnswers || now.Sub(old.at) > MaxAge {
			unix.Unlinkat(int(d.Fd()), old.name, 0)
		}
	}
	return nil
}
