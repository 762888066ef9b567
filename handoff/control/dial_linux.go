package control

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// dial pins the socket's inode before it connects, so that a service user who
// swaps the path for a symlink to some other, privileged socket gains nothing.
// Connecting through /proc/self/fd works on O_PATH descriptors of sockets.
func dial(ctx context.Context, path string) (net.Conn, Cred, error) {
	fd, err := openNoSymlinks(path)
	if err != nil {
		return nil, Cred{}, &os.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, Cred{}, err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFSOCK {
		return nil, Cred{}, errors.New("not a socket")
	}
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", "/proc/self/fd/"+strconv.Itoa(fd))
	if err != nil {
		return nil, Cred{}, err
	}
	cred, err := PeerCred(conn.(*net.UnixConn))
	if err != nil {
		conn.Close()
		return nil, Cred{}, err
	}
	return conn, cred, nil
}

// PeerCred reads SO_PEERCRED: for a client the process that called listen(2),
// for a server the one that called connect(2).
func PeerCred(conn *net.UnixConn) (Cred, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return Cred{}, err
	}
	var ucred *unix.Ucred
	var operr error
	if err := raw.Control(func(fd uintptr) {
		ucred, operr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil {
		return Cred{}, err
	}
	if operr != nil {
		return Cred{}, fmt.Errorf("SO_PEERCRED: %w", operr)
	}
	return Cred{PID: int(ucred.Pid), UID: ucred.Uid}, nil
}

// openNoSymlinks opens path, without a symbolic link anywhere in it, with
// O_PATH. Element by element and not with openat2(2): RestrictSUIDSGID=yes in
// the service's own unit, where ExecReload= runs zdt, makes that ENOSYS.
func openNoSymlinks(path string) (int, error) {
	dir := unix.AT_FDCWD
	elems := strings.Split(filepath.Clean(path), "/")
	if elems[0] == "" {
		elems[0] = "/"
	}
	for i, elem := range elems {
		flags := unix.O_PATH | unix.O_CLOEXEC | unix.O_NOFOLLOW
		if i < len(elems)-1 {
			flags |= unix.O_DIRECTORY // with O_NOFOLLOW a link is ENOTDIR
		}
		fd, err := unix.Openat(dir, elem, flags, 0)
		if dir != unix.AT_FDCWD {
			unix.Close(dir)
		}
		if err != nil {
			return -1, err
		}
		dir = fd
	}
	return dir, nil
}
