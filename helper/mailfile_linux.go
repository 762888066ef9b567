package helper

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// bindMailbox returns a new socket bound to path, a file's or @name. The caller closes it.
func bindMailbox(path string) (fd int, err error) {
	// 108 bytes with the final NUL (unix(7)).
	if len(path) > 107 {
		return -1, fmt.Errorf("the path has %d bytes, a unix socket's has 107 at most: choose a shorter directory", len(path))
	}
	fd, err = unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return -1, fmt.Errorf("socket: %w", err)
	}
	defer func() {
		if err != nil {
			unix.Close(fd)
		}
	}()
	// bind(2) gives the file the mode that the socket has, less the umask: it is never open to others, not
	// for a moment, and the umask, which all threads share, stays as it is.
	if err := unix.Fchmod(fd, 0o600); err != nil {
		return -1, fmt.Errorf("set mode: %w", err)
	}
	// Before bind: a datagram that came earlier would have no credentials.
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PASSCRED, 1); err != nil {
		return -1, fmt.Errorf("ask for credentials: %w", err)
	}
	// Since Linux 6.5. Without, a pidfd is opened when a datagram is read.
	unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PASSPIDFD, 1)
	err = unix.Bind(fd, &unix.SockaddrUnix{Name: path})
	if errors.Is(err, unix.EADDRINUSE) && !strings.HasPrefix(path, "@") {
		if err := clearStale(path); err != nil {
			return -1, err
		}
		err = unix.Bind(fd, &unix.SockaddrUnix{Name: path})
	}
	if err != nil {
		return -1, fmt.Errorf("bind: %w", err)
	}
	return fd, nil
}

// clearStale removes the socket of a helper that was killed. Whatever else has the name stays.
func clearStale(path string) error {
	if info, err := os.Lstat(path); err != nil || info.Mode().Type() != fs.ModeSocket {
		return fmt.Errorf("something else than a socket is there: %w", unix.EADDRINUSE)
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("socket: %w", err)
	}
	defer unix.Close(fd)
	if err := unix.Connect(fd, &unix.SockaddrUnix{Name: path}); !errors.Is(err, unix.ECONNREFUSED) {
		return fmt.Errorf("a process listens there already: %w", unix.EADDRINUSE)
	}
	if err := os.Remove(path); err != nil {
		return fmt.Errorf("remove a socket that nobody listens to: %w", err)
	}
	return nil
}

// fileID tells one file from another that has its name later.
type fileID struct{ dev, ino uint64 }

func identify(path string) (fileID, error) {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return fileID{}, err
	}
	return fileID{uint64(st.Dev), st.Ino}, nil
}
