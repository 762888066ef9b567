//go:build !linux

package handoff

import (
	"errors"
	"os"
	"time"
)

// queueWait is how long emptyQueue waits for one more connection.
const queueWait = 20 * time.Millisecond

// emptyQueue accepts what waits in a listening socket.
func emptyQueue(ln ownSocket) ([]inQueue, error) {
	defer ln.SetDeadline(time.Time{})
	var conns []inQueue
	for {
		ln.SetDeadline(time.Now().Add(queueWait))
		c, err := ln.Accept()
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return conns, nil
		}
		if err != nil {
			return conns, err
		}
		conns = append(conns, inQueue{c, nil})
	}
}
