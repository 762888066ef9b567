package netfd

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
)

// KeepFile leaves a unix socket's file in place when the listener is closed:
// it belongs to the service, not to one generation. Other listeners it lets be.
func KeepFile(ln net.Listener) {
	if u, ok := ln.(interface{ SetUnlinkOnClose(bool) }); ok {
		u.SetUnlinkOnClose(false)
	}
}

// RemoveStaleFile removes the file of a unix socket that nobody listens
// on, left by a process that was killed. Connecting alone cannot tell: Linux
// answers ECONNREFUSED for a file that is no socket at all.
func RemoveStaleFile(path string) {
	if path == "" || path[0] == '@' {
		return
	}
	if st, err := os.Lstat(path); err != nil || st.Mode().Type() != os.ModeSocket {
		return
	}
	c, err := net.Dial("unix", path)
	if err == nil {
		c.Close()
		return
	}
	if connectionRefused(err) {
		os.Remove(path)
	}
}

// ListenPrivate listens on a unix socket at path, for this user alone, and replaces
// one that nobody listens on; whether somebody does is for the caller to find out. It binds
// under a name of its own and renames, so
// that the path never leads to a socket nobody listens on and never has a wider
// mode than 0600. On Linux the mode is there before the file: chmod(2) would
// follow a link that another user has put in the file's place meanwhile. The
// file stays when the listener is closed.
func ListenPrivate(network, path string) (*net.UnixListener, error) {
	if st, err := os.Lstat(path); err == nil && st.Mode().Type() != os.ModeSocket {
		return nil, errors.New("there is something that is no socket")
	}
	tmp := filepath.Join(filepath.Dir(path), "."+filepath.Base(path)+"."+strconv.Itoa(os.Getpid()))
	os.Remove(tmp)
	lc := net.ListenConfig{Control: ownerOnly}
	ln, err := lc.Listen(context.Background(), network, tmp)
	if err != nil {
		return nil, err
	}
	KeepFile(ln)
	if runtime.GOOS != "linux" {
		err = os.Chmod(tmp, 0o600)
	}
	if err == nil {
		err = os.Rename(tmp, path)
	}
	if err != nil {
		ln.Close()
		os.Remove(tmp)
		return nil, err
	}
	return ln.(*net.UnixListener), nil
}
