package netfd

import (
	"errors"
	"syscall"

	"golang.org/x/sys/unix"
)

// ownerOnly sets the mode of a socket that is not bound yet, from where Linux
// takes that of its file.
func ownerOnly(_, _ string, c syscall.RawConn) error {
	var operr error
	err := c.Control(func(fd uintptr) { operr = unix.Fchmod(int(fd), 0o600) })
	return errors.Join(err, operr)
}

func connectionRefused(err error) bool { return errors.Is(err, unix.ECONNREFUSED) }
