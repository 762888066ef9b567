package release

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// source is what the operator gives: a program, an archive or a directory. One
// descriptor, opened once.
type source struct {
	f      *os.File
	path   string // absolute, links resolved
	kind   sourceKind
	format string // of an archive
	size   int64  // bytes, when it was opened
	st     unix.Stat_t
}

type sourceKind int

const (
	sourceFile sourceKind = iota // a program
	sourceArchive
	sourceDir
)

// openSource opens what the operator gives, a link to it too.
func openSource(ctx context.Context, src string) (*source, error) {
	in, err := openSourceAt(ctx, unix.AT_FDCWD, src, 0)
	if err != nil || in.kind == sourceDir {
		return in, err
	}
	if in.size == 0 {
		in.Close()
		return nil, hint(errors.New("is empty"), "the copy or the build that made it has probably failed")
	}
	head := make([]byte, 512)
	n, err := in.f.ReadAt(head, 0)
	if err == nil || err == io.EOF {
		in.format, err = sniff(head[:n])
	}
	if err != nil {
		in.Close()
		return nil, err
	}
	if in.format != "" {
		in.kind = sourceArchive
	}
	return in, nil
}

// IsTree tells whether Stage makes a release with many files of a source: it is a directory or an archive. The error is
// that of a source of which it makes none.
func IsTree(ctx context.Context, src string) (bool, error) {
	in, err := openSource(ctx, src)
	if err != nil {
		return false, fmt.Errorf("open %q: %w", src, err)
	}
	defer in.Close()
	return in.kind != sourceFile, nil
}

// openSourceAt opens a regular file or a directory, with flags besides.
func openSourceAt(ctx context.Context, dirfd int, src string, flags int) (*source, error) {
	// First without opening it in earnest: the open of a FIFO waits, the open
	// of a device may do something.
	var fd int
	if err := retry(func() (err error) {
		fd, err = unix.Openat(dirfd, src, unix.O_PATH|unix.O_CLOEXEC|flags, 0)
		return err
	}); err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	in := &source{}
	if err := unix.Fstat(fd, &in.st); err != nil {
		return nil, err
	}
	switch in.st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
	case unix.S_IFDIR:
		in.kind = sourceDir
	default:
		return nil, errors.New("is not a regular file")
	}
	// The same inode, whatever the path leads to by now.
	magic := "/proc/self/fd/" + strconv.Itoa(fd)
	if err := in.open(magic, src); err != nil {
		return nil, err
	}
	var err error
	if in.path, err = os.Readlink(magic); err != nil {
		in.f.Close()
		return nil, err
	}
	if in.kind == sourceDir {
		return in, nil
	}

	// A read lease can only be had while nobody has the file open for writing:
	// the way to notice an scp that is not finished yet. As long as it is held,
	// whoever wants to write waits (for /proc/sys/fs/lease-break-time at most).
	// Without one the comparison in unchanged must do.
	if err := lease(ctx, in.f); err != nil {
		in.f.Close()
		return nil, err
	}
	return in, nil
}

// open opens the inode that magic leads to.
func (in *source) open(magic, name string) error {
	var fd int
	err := retry(func() (err error) {
		fd, err = unix.Open(magic, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
		return err
	})
	if err != nil {
		return err
	}
	in.f, in.size = os.NewFile(uintptr(fd), name), in.st.Size
	return nil
}

// Close ends the lease as well.
func (in *source) Close() error { return in.f.Close() }

func (in *source) hash(ctx context.Context) (string, error) {
	if _, err := in.f.Seek(0, io.SeekStart); err != nil {
		return "", err
	}
	return hashFile(ctx, in.f, nil)
}

// copyTo copies exactly size bytes to w and returns their SHA-256.
func (in *source) copyTo(ctx context.Context, w *os.File) (string, error) {
	if _, err := in.f.Seek(0, io.SeekStart); err != nil {
		return "", err
	}
	n, sum, err := pass(ctx, w, in.f, in.size)
	if err == nil && n < in.size {
		err = in.changed()
	}
	return sum, err
}

// unchanged compares what can be seen of the source with how it was opened.
// ctime cannot be set back by anybody, and also moves when the file was
// replaced under its name by a rename.
func (in *source) unchanged() error {
	var st unix.Stat_t
	if err := unix.Fstat(int(in.f.Fd()), &st); err != nil {
		return err
	}
	if st.Size != in.st.Size || st.Mtim != in.st.Mtim || st.Ctim != in.st.Ctim {
		return in.changed()
	}
	return nil
}

func (in *source) changed() error { return errChanged() }

func errChanged() error {
	return hint(errors.New("changed while it was copied"), "wait until the copy or build is finished, then try again")
}

// dropped names the attributes that matter to a program and are not copied.
func (in *source) dropped() []string {
	const caps = "security.capability"
	if n, err := unix.Fgetxattr(int(in.f.Fd()), caps, nil); err != nil || n == 0 {
		return nil
	}
	return []string{caps}
}

// retry repeats a system call that a signal has interrupted. The Go runtime
// sends itself SIGURG all the time; open on FUSE notices.
func retry(f func() error) error {
	for {
		if err := f(); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}
