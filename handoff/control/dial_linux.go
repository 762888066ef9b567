package control

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// dial pins the socket's inode before it connects, so that a service user who
// swaps the path for a symlink to some other, privileged socket gains nothing.
// openat2 needs Linux 5.6; connecting through /proc/self/fd works on O_PATH
// descriptors of sockets.
func dial(ctx context.Context, path string) (net.Conn, Cred, error) {
	fd, err := unix.Openat2(unix.AT_FDCWD, path, &unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_CLOEXEC | unix.O_NOFOLLOW,
		Resolve: unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
	})
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
