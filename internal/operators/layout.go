package operators

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/zdt-dev/zdt/internal/trustpath"
)

const (
	incoming = "incoming"
	answers  = "answers"
	taken    = "taken"
)

// A part is one directory of the layout.
type part struct {
	name string // "": the whole
	mode uint32 // with set-group-ID and sticky
	gid  func(group uint32) uint32
}

// layout is fixed; it is a function so that nobody can change it.
func layout() []part {
	group := func(g uint32) uint32 { return g }
	root := func(uint32) uint32 { return 0 }
	return []part{
		{"", 0o750, group},
		// Not readable: who sees the name of another's file could use it first.
		{incoming, 0o730 | unix.S_ISGID | unix.S_ISVTX, group},
		{answers, 0o750, group},
		{taken, 0o700, root},
	}
}

// Missing are the directories below path that are not there, or not as they must be for a group.
func Missing(path string, group uint32) ([]string, error) {
	var missing []string
	for _, p := range layout() {
		var st unix.Stat_t
		at := filepath.Join(path, p.name)
		err := unix.Lstat(at, &st)
		switch {
		case errors.Is(err, unix.ENOENT):
		case err != nil:
			return nil, &fs.PathError{Op: "look at", Path: at, Err: err}
		case st.Mode&unix.S_IFMT != unix.S_IFDIR:
			return nil, fmt.Errorf("%s is not a directory", at)
		case st.Uid == uint32(os.Geteuid()) && st.Gid == p.gid(group) && st.Mode&0o7777 == p.mode:
			continue
		}
		missing = append(missing, at)
	}
	return missing, nil
}

// Make makes the directories for a group, or gives them to it. The parent of path is made, too.
func Make(path string, group uint32) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	parent, err := trustpath.Dir(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer parent.Close()
	at := parent
	for _, p := range layout() {
		name := p.name
		if name == "" {
			name = filepath.Base(path)
		}
		// Closed to everybody until its group and mode are right.
		if err := unix.Mkdirat(int(at.Fd()), name, 0o700); err != nil && !errors.Is(err, unix.EEXIST) {
			return &fs.PathError{Op: "make", Path: filepath.Join(at.Name(), name), Err: err}
		}
		d, err := openDir(at, name)
		if err != nil {
			return err
		}
		err = own(d, p, group)
		if p.name == "" {
			defer d.Close()
			at = d
		} else {
			d.Close()
		}
		if err != nil {
			return err
		}
	}
	return errors.Join(at.Sync(), parent.Sync())
}

func own(d *os.File, p part, group uint32) error {
	if err := unix.Fchown(int(d.Fd()), os.Geteuid(), int(p.gid(group))); err != nil {
		return &fs.PathError{Op: "give away", Path: d.Name(), Err: err}
	}
	// After the chown, which takes set-group-ID away.
	if err := unix.Fchmod(int(d.Fd()), p.mode); err != nil {
		return &fs.PathError{Op: "set the mode of", Path: d.Name(), Err: err}
	}
	return nil
}

// Group is the group of the operators of the directory at path. The error is fs.ErrNotExist if there are none.
func Group(path string) (uint32, error) {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return 0, &fs.PathError{Op: "look at", Path: path, Err: err}
	}
	return st.Gid, nil
}

// Remove takes all of it away. No link is followed.
func Remove(path string) error {
	// Closed first: who goes on to put things there must not keep it from being empty.
	if err := os.Chmod(filepath.Join(path, incoming), 0o700); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return os.RemoveAll(path)
}

func openDir(at *os.File, name string) (*os.File, error) {
	path := filepath.Join(at.Name(), name)
	fd, err := unix.Openat(int(at.Fd()), name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	return os.NewFile(uintptr(fd), path), nil
}
