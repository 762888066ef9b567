//go:build !linux

package handoff

import (
	"errors"
	"net"
	"syscall"
)

func findService(string) (conn *net.UnixConn, fd int, err error) {
	return nil, -1, errors.ErrUnsupported
}
func ownerOnly(_, _ string, _ syscall.RawConn) error { return nil }
func fileAt(string) (dev, ino uint64, ok bool)       { return 0, 0, false }
func sameSocket(a, b int) bool                       { return false }
