package release

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// maxLinks is the number of symbolic links followed on the way to a directory,
// the same as the kernel's MAXSYMLINKS.
const maxLinks = 40

// maxRecord bounds what is read from the small files of the store, bytes.
const maxRecord = 1 << 20

// openTrusted opens the directory at the absolute path and returns it open for
// reading; the caller owns it. Missing directories are created when create is
// set: 0755 whatever the umask says, because the service user must be able to
// reach its program.
//
// Each element must be a directory that belongs to root or the caller and that
// nobody else can write to; a sticky directory such as /run/lock may be on the
// way, for what lies in it is checked in turn. The last element is held to more:
// no stickiness, no writable group, and it must not be a symbolic link. A link
// further up is followed if root or the caller owns it and its directory passed
// the checks: hosts where /home or /var is a link are common (ostree), and who
// could plant such a link needs no zdt to become root.
func openTrusted(path string, create bool) (*os.File, error) {
	if !filepath.IsAbs(path) {
		return nil, fmt.Errorf("%q is not an absolute path", path)
	}
	path = filepath.Clean(path)
	fd, err := unix.Open("/", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open /: %w", err)
	}
	defer func() { unix.Close(fd) }()

	rest := splitPath(path)
	at := "/" // where fd is, for messages
	for links := 0; len(rest) > 0; {
		name := rest[0]
		last := len(rest) == 1
		here := filepath.Join(at, name)

		next, err := unix.Openat(fd, name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if errors.Is(err, unix.ENOENT) && create {
			if err := makeDir(fd, name); err != nil {
				return nil, fmt.Errorf("create %s: %w", here, err)
			}
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("open %s: %w", here, err)
		}
		var st unix.Stat_t
		if err := unix.Fstat(next, &st); err != nil {
			unix.Close(next)
			return nil, fmt.Errorf("stat %s: %w", here, err)
		}
		if st.Mode&unix.S_IFMT == unix.S_IFLNK {
			target, err := readLink(next)
			unix.Close(next)
			switch {
			case err != nil:
				return nil, fmt.Errorf("read link %s: %w", here, err)
			case last:
				return nil, untrusted(here, "is a symbolic link")
			case !trustedOwner(st.Uid):
				return nil, untrusted(here, fmt.Sprintf("is a symbolic link of uid %d", st.Uid))
			case links == maxLinks:
				return nil, fmt.Errorf("open %s: %w", here, unix.ELOOP)
			}
			links++
			if filepath.IsAbs(target) {
				root, err := unix.Open("/", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
				if err != nil {
					return nil, fmt.Errorf("open /: %w", err)
				}
				unix.Close(fd)
				fd, at = root, "/"
			}
			rest = append(splitPath(target), rest[1:]...)
			continue
		}
		if err := checkDir(here, &st, last); err != nil {
			unix.Close(next)
			return nil, err
		}
		unix.Close(fd)
		fd, at, rest = next, here, rest[1:]
	}
	// O_PATH was enough to pass through; fsync and readdir need a real one.
	return openDirAt(fd, ".", path)
}

// splitPath keeps "..", which only the target of a link can contain: unlike
// filepath.Clean, walking it is right when an element before it is a link.
func splitPath(path string) []string {
	var elems []string
	for e := range strings.SplitSeq(path, "/") {
		if e != "" && e != "." {
			elems = append(elems, e)
		}
	}
	return elems
}

func readLink(fd int) (string, error) {
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(fd, "", buf) // the empty path means fd itself, Linux 2.6.39
	if err != nil {
		return "", err
	}
	return string(buf[:n]), nil
}

// makeDir makes name in the directory fd and makes that durable.
func makeDir(fd int, name string) error {
	if err := unix.Mkdirat(fd, name, 0o755); err != nil {
		if errors.Is(err, unix.EEXIST) {
			return nil // somebody was faster; the checks that follow judge it
		}
		return err
	}
	d, err := openDirAt(fd, name, name)
	if err != nil {
		return err
	}
	defer d.Close()
	if err := d.Chmod(0o755); err != nil {
		return err
	}
	parent, err := openDirAt(fd, ".", ".")
	if err != nil {
		return err
	}
	defer parent.Close()
	return parent.Sync()
}

func openDirAt(fd int, name, path string) (*os.File, error) {
	dfd, err := unix.Openat(fd, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	return os.NewFile(uintptr(dfd), path), nil
}

func checkDir(path string, st *unix.Stat_t, last bool) error {
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return fmt.Errorf("open %s: %w", path, unix.ENOTDIR)
	}
	if !trustedOwner(st.Uid) {
		return untrusted(path, fmt.Sprintf("belongs to uid %d", st.Uid))
	}
	if !last && st.Mode&unix.S_ISVTX != 0 {
		return nil
	}
	if st.Mode&0o002 != 0 {
		return untrusted(path, fmt.Sprintf("is writable for everybody (mode %04o)", st.Mode&0o7777))
	}
	// On the way a group may write if it is root's, or the caller's own (the
	// user-private groups that go with umask 002).
	ownGroup := st.Gid == 0 || st.Gid == uint32(os.Getegid())
	if st.Mode&0o020 != 0 && (last || !ownGroup) {
		return untrusted(path, fmt.Sprintf("is writable for group %d (mode %04o)", st.Gid, st.Mode&0o7777))
	}
	return nil
}

func trustedOwner(uid uint32) bool { return uid == 0 || uid == uint32(os.Geteuid()) }

func untrusted(path, why string) error {
	owner := "root"
	if os.Geteuid() != 0 {
		owner = "root or you"
	}
	return hint(fmt.Errorf("%s %s: %w", path, why, ErrUntrusted),
		"find out who changed %s; it must belong to %s and be writable for nobody else", path, owner)
}

// openFileAt opens the regular file name in dir for reading and checks that
// only root or the caller can have written it. The caller owns the file.
func openFileAt(dir *os.File, name string) (*os.File, error) {
	path := filepath.Join(dir.Name(), name)
	// O_NONBLOCK: opening a FIFO must not hang; it is refused just below.
	fd, err := unix.Openat(int(dir.Fd()), name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
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

func checkFile(f *os.File) error {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return &fs.PathError{Op: "stat", Path: f.Name(), Err: err}
	}
	switch {
	case st.Mode&unix.S_IFMT != unix.S_IFREG:
		return untrusted(f.Name(), "is not a regular file")
	case !trustedOwner(st.Uid):
		return untrusted(f.Name(), fmt.Sprintf("belongs to uid %d", st.Uid))
	case st.Mode&0o022 != 0:
		return untrusted(f.Name(), fmt.Sprintf("is writable for others (mode %04o)", st.Mode&0o7777))
	}
	return nil
}

// readRecord returns the content of a small file of the store.
func readRecord(dir *os.File, name string) ([]byte, error) {
	f, err := openFileAt(dir, name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxRecord+1))
	if err != nil {
		return nil, err
	}
	if len(data) > maxRecord {
		return nil, fmt.Errorf("%s is larger than %d bytes: %w", f.Name(), maxRecord, ErrDamaged)
	}
	return data, nil
}

// removeAllAt removes name from dir and everything in it, without following
// links. It is not an error if there is nothing.
func removeAllAt(dir *os.File, name string) error {
	return removeAll(context.Background(), dir, name)
}

// removeAll is removeAllAt as long as ctx lasts: of what is left some is gone then.
func removeAll(ctx context.Context, dir *os.File, name string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	err := unix.Unlinkat(int(dir.Fd()), name, 0)
	if err == nil || errors.Is(err, unix.ENOENT) {
		return nil
	}
	if !errors.Is(err, unix.EISDIR) {
		return &fs.PathError{Op: "remove", Path: filepath.Join(dir.Name(), name), Err: err}
	}
	d, err := openDirAt(int(dir.Fd()), name, filepath.Join(dir.Name(), name))
	if err != nil {
		return err
	}
	defer d.Close()
	names, err := d.Readdirnames(-1)
	if err != nil {
		return err
	}
	for _, n := range names {
		if err := removeAll(ctx, d, n); err != nil {
			return err
		}
	}
	if err := unix.Unlinkat(int(dir.Fd()), name, unix.AT_REMOVEDIR); err != nil {
		return &fs.PathError{Op: "remove", Path: d.Name(), Err: err}
	}
	return nil
}
