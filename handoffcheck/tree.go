package handoffcheck

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

// A tree is the file system as a process sees it that has root for its root directory, such as /proc/PID/root. What the service's user has put
// into it leads nowhere else, by openat2 (Linux 5.6).
type tree struct{ root string }

// open opens a path with flags beside O_CLOEXEC, and waits for nobody at the other end of a FIFO.
func (t tree) open(path string, flags uint64) (*os.File, error) {
	root, err := unix.Open(t.root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s: %v", t.root, err) // the process has ended: that says nothing about path
	}
	defer unix.Close(root)
	if flags&unix.O_PATH == 0 { // openat2 refuses what makes no sense
		flags |= unix.O_NONBLOCK
	}
	fd, err := unix.Openat2(root, path, &unix.OpenHow{
		Flags: flags | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	})
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	return os.NewFile(uintptr(fd), path), nil
}

// stat fails only for what is certainly not there.
func (t tree) stat(path string) (fs.FileInfo, error) {
	f, err := t.open(path, unix.O_PATH)
	switch {
	case err == nil:
		defer f.Close()
		return f.Stat()
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ENOTDIR):
		return nil, err
	}
	return nil, nil
}

// has reports whether a file is there, or may be.
func (t tree) has(path string) bool {
	_, err := t.stat(path)
	return err == nil
}
