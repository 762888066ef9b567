//go:build !linux

package handoff

import (
	"errors"
	"net"
	"os"
	"time"
)

// queueWait is how long emptyQueue waits for one more connection.
const queueWait = 20 * time.Millisecond

// emptyQueue accepts what waits in a listening socket.
func emptyQueue(ln ownSocket) ([]net.Conn, error) {
	defer ln.SetDeadline(time.Time{})
	var conns []net.Conn
	for {
		ln.SetDeadline(time.Now().Add(queueWait))
		c, err := ln.Accept()
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return conns, nil
		}
		if err != nil {
			return conns, err
		}
		conns = append(conns, c)
	}
}
