//go:build !linux

package handoff

import (
	"errors"
	"net"
)

func findService(string) (conn *net.UnixConn, fd int, err error) {
	return nil, -1, errors.ErrUnsupported
}
func fileAt(string) (dev, ino uint64, ok bool) { return 0, 0, false }
func sameSocket(a, b int) bool                 { return false }
