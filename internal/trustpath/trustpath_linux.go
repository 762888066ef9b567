// Package trustpath finds out whether what lies at a path is the administrator's word: whether nobody but root, or the
// user who runs this process, could have put it there. What zdt executes as root on its own account is asked first.
package trustpath

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

var (
	// ErrUntrusted: somebody else could have written it, or could exchange it.
	ErrUntrusted = errors.New("not trusted")
	// ErrNotExecutable: it is a trusted file, but nobody may execute it.
	ErrNotExecutable = errors.New("not executable")
)

// maxLinks is the number of symbolic links followed on the way, the same as the kernel's MAXSYMLINKS.
const maxLinks = 40

// Program returns nil if the absolute path leads to a file that can be executed and that nobody but root or the caller
// can have written or can exchange: each directory on the way belongs to one of the two and is writable for nobody else,
// and so does each symbolic link. A sticky directory such as /tmp may be on the way, for what lies in it is checked in
// turn. Access control lists are not looked at: their write permissions show as the group's.
//
// It says so of the moment, and of those to come as long as those who are trusted change nothing; who
// executes the path afterwards executes what was asked about.
func Program(path string) error {
	fd, at, err := walk(path)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return fmt.Errorf("stat %s: %w", at, err)
	}
	switch {
	case st.Mode&unix.S_IFMT != unix.S_IFREG:
		return fmt.Errorf("%s is not a regular file", at)
	case !trustedOwner(st.Uid):
		return untrusted(at, fmt.Sprintf("belongs to uid %d", st.Uid))
	case st.Mode&0o022 != 0:
		return untrusted(at, fmt.Sprintf("is writable for others (mode %04o)", st.Mode&0o7777))
	case st.Mode&0o111 == 0:
		return fmt.Errorf("%s: %w", at, ErrNotExecutable)
	}
	return nil
}

// Names returns the names in the directory at the absolute path, sorted, under the same conditions: nobody but root or
// the caller can have put something into it. The error is fs.ErrNotExist if there is no such directory.
func Names(path string) ([]string, error) {
	dir, err := Dir(path)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	slices.Sort(names)
	return names, err
}

// Dir opens the directory at the absolute path for reading, under the same conditions. The caller owns it. The error is
// fs.ErrNotExist if there is none.
func Dir(path string) (*os.File, error) {
	fd, at, err := walk(path)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, fmt.Errorf("stat %s: %w", at, err)
	}
	if err := checkDir(at, &st, true); err != nil {
		return nil, err
	}
	// O_PATH was enough to pass through; reading needs a real one.
	real, err := unix.Openat(fd, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", at, err)
	}
	return os.NewFile(uintptr(real), at), nil
}

// Read returns the first bytes of the regular file at the absolute path, most of them at most, under the same conditions: nobody
// but root or the caller can have written it, and no link of anybody else leads there. more tells that there are further bytes.
func Read(path string, most int) (data []byte, more bool, err error) {
	fd, at, err := walk(path)
	if err != nil {
		return nil, false, err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, false, fmt.Errorf("stat %s: %w", at, err)
	}
	switch {
	case st.Mode&unix.S_IFMT != unix.S_IFREG:
		return nil, false, fmt.Errorf("%s is not a regular file", at)
	case !trustedOwner(st.Uid):
		return nil, false, untrusted(at, fmt.Sprintf("belongs to uid %d", st.Uid))
	case st.Mode&0o022 != 0:
		return nil, false, untrusted(at, fmt.Sprintf("is writable for others (mode %04o)", st.Mode&0o7777))
	}
	f, err := os.Open(fmt.Sprintf("/proc/self/fd/%d", fd)) // the very file that was looked at
	if err != nil {
		var perr *fs.PathError
		if errors.As(err, &perr) {
			perr.Path = at
		}
		return nil, false, err
	}
	defer f.Close()
	data, err = io.ReadAll(io.LimitReader(f, int64(most)+1))
	if err != nil {
		return nil, false, &fs.PathError{Op: "read", Path: at, Err: err}
	}
	if len(data) > most {
		return data[:most], true, nil
	}
	return data, false, nil
}

// walk opens what is at the path with O_PATH, after each element on the way was checked. at is where that is. The
// caller owns the descriptor.
func walk(to string) (fd int, at string, err error) {
	if !filepath.IsAbs(to) {
		return -1, "", fmt.Errorf("%q is not an absolute path", to)
	}
	if fd, err = unix.Open("/", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0); err != nil {
		return -1, "", fmt.Errorf("open /: %w", err)
	}
	at = "/"
	rest := split(to)
	for links := 0; len(rest) > 0; {
		here := path.Join(at, rest[0])
		next, err := step(fd, at, rest[0])
		if err != nil {
			unix.Close(fd)
			return -1, "", err
		}
		target, isLink, err := linkAt(next, here)
		if err == nil && isLink {
			unix.Close(next)
			if links++; links > maxLinks {
				err = fmt.Errorf("open %s: %w", here, unix.ELOOP)
			}
			next = fd
			rest = append(split(target), rest[1:]...)
			if err == nil && filepath.IsAbs(target) {
				at = "/"
				if next, err = unix.Open("/", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0); err == nil {
					unix.Close(fd)
					fd = next
				}
			}
			if err != nil {
				unix.Close(fd)
				return -1, "", err
			}
			continue
		}
		unix.Close(fd)
		if err != nil {
			unix.Close(next)
			return -1, "", err
		}
		fd, at, rest = next, here, rest[1:]
	}
	return fd, at, nil
}

// step goes from the directory fd to one of its elements, after the directory was checked.
func step(fd int, at, name string) (int, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return -1, fmt.Errorf("stat %s: %w", at, err)
	}
	if err := checkDir(at, &st, false); err != nil {
		return -1, err
	}
	next, err := unix.Openat(fd, name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, &fs.PathError{Op: "open", Path: path.Join(at, name), Err: err}
	}
	return next, nil
}

// linkAt returns the target if fd is a symbolic link, whose owner has to be trusted.
func linkAt(fd int, at string) (target string, isLink bool, err error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return "", false, fmt.Errorf("stat %s: %w", at, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFLNK {
		return "", false, nil
	}
	if !trustedOwner(st.Uid) {
		return "", false, untrusted(at, fmt.Sprintf("is a symbolic link of uid %d", st.Uid))
	}
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(fd, "", buf) // the empty path means fd itself, Linux 2.6.39
	if err != nil {
		return "", false, fmt.Errorf("read link %s: %w", at, err)
	}
	return string(buf[:n]), true, nil
}

// split keeps "..", which may follow a link: walking it is right there, and cutting it is not.
func split(p string) []string {
	var elems []string
	for e := range strings.SplitSeq(p, "/") {
		if e != "" && e != "." {
			elems = append(elems, e)
		}
	}
	return elems
}

func checkDir(path string, st *unix.Stat_t, last bool) error {
	switch {
	case st.Mode&unix.S_IFMT != unix.S_IFDIR:
		return &fs.PathError{Op: "open", Path: path, Err: unix.ENOTDIR}
	case !trustedOwner(st.Uid):
		return untrusted(path, fmt.Sprintf("belongs to uid %d", st.Uid))
	case !last && st.Mode&unix.S_ISVTX != 0:
		return nil
	case st.Mode&0o002 != 0:
		return untrusted(path, fmt.Sprintf("is writable for everybody (mode %04o)", st.Mode&0o7777))
	}
	// On the way a group may write if it is root's, or the caller's own (the user-private groups that
	// go with umask 002).
	own := st.Gid == 0 || st.Gid == uint32(os.Getegid())
	if st.Mode&0o020 != 0 && (last || !own) {
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
	return fmt.Errorf("%s %s: %w (it must belong to %s and be writable for nobody else)", path, why, ErrUntrusted, owner)
}
