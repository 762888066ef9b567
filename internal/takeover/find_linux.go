package takeover

import (
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"time"

	"github.com/zdt-dev/zdt/internal/netfd"
	"golang.org/x/sys/unix"
)

// find connects to the process that listens at path. When nobody does,
// this process listens there, and fd is the listening socket; fd is -1 otherwise.
//
// Both happen under a lock on the directory. Two containers that start at the
// same time would each find nobody, and the service would run twice.
func find(path string) (conn *net.UnixConn, fd int, err error) {
	unlock, err := lockDirectory(filepath.Dir(path))
	if err != nil {
		return nil, -1, err
	}
	defer unlock()
	conn, err = net.DialUnix("unixpacket", nil, &net.UnixAddr{Name: path, Net: "unixpacket"})
	switch {
	case err == nil:
		return conn, -1, nil
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ECONNREFUSED):
	case errors.Is(err, unix.EPROTOTYPE):
		return nil, -1, fmt.Errorf("%w: another kind of socket listens there; the takeover socket needs a path of its own", err)
	case errors.Is(err, unix.EACCES):
		return nil, -1, fmt.Errorf("%w: run both processes as the same user, or this one as root", err)
	default:
		return nil, -1, err
	}
	ln, err := netfd.ListenPrivate("unixpacket", path)
	if err != nil {
		return nil, -1, err
	}
	defer ln.Close()
	fd, err = netfd.Dup(ln)
	return nil, fd, err
}

// lockDirectory waits for the lock that a process holds while it looks for the
// service and, if there is none, becomes it. Whoever can read the directory can hold
// the lock: so the wait has an end.
func lockDirectory(dir string) (unlock func(), err error) {
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open directory %s: %w; old and new process have to share it", dir, err)
	}
	for deadline := time.Now().Add(helloTimeout); ; time.Sleep(5 * time.Millisecond) {
		err := unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB)
		switch {
		case err == nil:
			return func() { unix.Close(fd) }, nil
		case err == unix.EINTR, err == unix.EWOULDBLOCK && time.Now().Before(deadline):
		default:
			unix.Close(fd)
			return nil, fmt.Errorf("lock directory %s: %w", dir, err)
		}
	}
}

// fileAt identifies the file at path, the link itself if it is one.
func fileAt(path string) (dev, ino uint64, ok bool) {
	var st unix.Stat_t
	if path == "" || unix.Lstat(path, &st) != nil {
		return 0, 0, false
	}
	return uint64(st.Dev), st.Ino, true
}

// SameSocket reports whether two descriptors lead to one socket.
func SameSocket(a, b int) bool {
	var sa, sb unix.Stat_t
	return unix.Fstat(a, &sa) == nil && unix.Fstat(b, &sb) == nil && sa.Dev == sb.Dev && sa.Ino == sb.Ino
}
