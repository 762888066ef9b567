package main

import (
	"fmt"
	"net"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// notifySocket plays systemd's part: a service says READY to it.
type notifySocket struct {
	conn  *net.UnixConn
	ready chan time.Time // when a READY=1 came; buffered
	done  chan struct{}
}

func listenNotify(path string) (*notifySocket, error) {
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		return nil, fmt.Errorf("notify socket: %w", err)
	}
	n := &notifySocket{conn: conn, ready: make(chan time.Time, 16), done: make(chan struct{})}
	go n.read()
	return n, nil
}

func (n *notifySocket) read() {
	defer close(n.done)
	buf, oob := make([]byte, 4096), make([]byte, 1024)
	for {
		size, oobSize, _, _, err := n.conn.ReadMsgUnix(buf, oob)
		at := time.Now()
		if err != nil {
			return
		}
		// A barrier passes once its descriptor is closed.
		if messages, err := unix.ParseSocketControlMessage(oob[:oobSize]); err == nil {
			for _, m := range messages {
				fds, _ := unix.ParseUnixRights(&m)
				for _, fd := range fds {
					unix.Close(fd)
				}
			}
		}
		for line := range strings.Lines(string(buf[:size])) {
			if strings.TrimSpace(line) == "READY=1" {
				n.ready <- at
			}
		}
	}
}

func (n *notifySocket) close() {
	n.conn.Close()
	<-n.done
}
