package release

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// source is the operator's file. One descriptor, opened once.
type source struct {
	f    *os.File
	path string // absolute, links resolved
	size int64  // bytes, when it was opened
	st   unix.Stat_t
}

func openSource(ctx context.Context, src string) (*source, error) {
	// First without opening it in earnest: the open of a FIFO waits, the open
	// of a device may do something.
	var fd int
	if err := retry(func() (err error) { fd, err = unix.Open(src, unix.O_PATH|unix.O_CLOEXEC, 0); return err }); err != nil {
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
		return nil, hint(errors.New("is a directory"), "give the program itself")
	default:
		return nil, errors.New("is not a regular file")
	}
	if in.st.Size == 0 {
		return nil, hint(errors.New("is empty"), "the copy or the build that made it has probably failed")
	}
	// The same inode, whatever the path leads to by now.
	magic := "/proc/self/fd/" + strconv.Itoa(fd)
	var rfd int
	err := retry(func() (err error) {
		rfd, err = unix.Open(magic, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
		return err
	})
	if err != nil {
		return nil, err
	}
	in.f = os.NewFile(uintptr(rfd), src)
	in.size = in.st.Size
	if in.path, err = os.Readlink(magic); err != nil {
		in.f.Close()
		return nil, err
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

// Close ends the lease as well.
func (in *source) Close() error { return in.f.Close() }

func (in *source) hash(ctx context.Context) (string, error) {
	if _, err := in.f.Seek(0, io.SeekStart); err != nil {
		return "", err
	}
	return hashFile(ctx, in.f)
}

// copyTo copies exactly size bytes and returns their SHA-256.
func (in *source) copyTo(ctx context.Context, w io.Writer) (string, error) {
	if _, err := in.f.Seek(0, io.SeekStart); err != nil {
		return "", err
	}
	h := sha256.New()
	buf := make([]byte, copyChunk)
	for left := in.size; left > 0; {
		if err := ctx.Err(); err != nil {
			return "", err
		}
		n, err := in.f.Read(buf[:min(left, copyChunk)])
		if err == io.EOF {
			return "", in.changed()
		}
		if err != nil {
			return "", err
		}
		h.Write(buf[:n])
		if _, err := w.Write(buf[:n]); err != nil {
			return "", err
		}
		left -= int64(n)
	}
	return hex.EncodeToString(h.Sum(nil)), nil
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

func (in *source) changed() error {
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
// sends itself SIGURG all the time; fallocate on tmpfs and open on FUSE notice.
func retry(f func() error) error {
	for {
		if err := f(); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}
