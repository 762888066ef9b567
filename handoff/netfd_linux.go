package handoff

import (
	"errors"
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

// unreadBytes returns what the kernel has received on a connection and nobody
// has read (SIOCINQ), 0 when it cannot be told.
func unreadBytes(c net.Conn) int {
	s, ok := c.(syscall.Conn)
	if !ok {
		return 0
	}
	raw, err := s.SyscallConn()
	if err != nil {
		return 0
	}
	n := 0
	raw.Control(func(fd uintptr) { n, _ = unix.IoctlGetInt(int(fd), unix.SIOCINQ) })
	return n
}

func outOfDescriptors(err error) bool {
	return errors.Is(err, unix.EMFILE) || errors.Is(err, unix.ENFILE)
}
