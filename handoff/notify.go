package handoff

import (
	"errors"
	"fmt"
	"net"
	"strings"
	"time"
)

// notifier speaks sd_notify(3). The zero value, without a socket, accepts and
// drops everything: the process is not supervised by systemd, or not any more.
type notifier struct {
	socket string // $NOTIFY_SOCKET: a path, or @name for an abstract one
}

// send sends one datagram of assignments. systemd applies a datagram as a whole.
func (n notifier) send(assignments ...string) error {
	if n.socket == "" {
		return nil
	}
	conn, err := n.dial()
	if err != nil {
		return err
	}
	defer conn.Close()
	if _, err := conn.Write([]byte(strings.Join(assignments, "\n"))); err != nil {
		return fmt.Errorf("notify systemd: %w", err)
	}
	return nil
}

// hint sets the text systemctl status shows, if systemd takes it at once: a
// manager that reloads reads nothing for a while, and then its queue may be full.
// What is only worth reading is not worth waiting for.
func (n notifier) hint(status string) error {
	if n.socket == "" {
		return nil
	}
	conn, err := n.dial()
	if err != nil {
		return err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(hintTimeout))
	if _, err := conn.Write([]byte("STATUS=" + status)); err != nil {
		return fmt.Errorf("notify systemd: %w", err)
	}
	return nil
}

// dial connects to the notification socket. PID 1 may be slow, never absent:
// the deadline keeps a wedged one from stopping the service.
func (n notifier) dial() (*net.UnixConn, error) {
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: n.socket, Net: "unixgram"})
	if err != nil {
		return nil, fmt.Errorf("notify systemd: %w", err)
	}
	conn.SetDeadline(time.Now().Add(notifyTimeout))
	return conn, nil
}

// notifyTimeout bounds a message to systemd and the barrier after it, as
// sd_notify_barrier(3) callers usually do.
const notifyTimeout = 5 * time.Second

// hintTimeout bounds a message that may be lost.
const hintTimeout = 20 * time.Millisecond

// ready tells systemd that the service serves.
func (n notifier) ready(status string) error { return n.send("READY=1", "STATUS="+status) }

// mainPID makes pid the main process, in one datagram so that systemd never
// sees one half of it. The caller waits for the barrier before it goes on. Afterwards this
// process is no longer heard under NotifyAccess=main, except that systemd ≥ 254
// keeps listening because of NOTIFYACCESS=all: should the new main process
// die while this one still drains, it can take the service back. Older
// versions ignore the assignment. The successor withdraws it by sending
// NOTIFYACCESS=main when its predecessor is gone.
func (n notifier) mainPID(pid int, status string) error {
	return n.send(fmt.Sprintf("MAINPID=%d", pid), "READY=1", "NOTIFYACCESS=all", "STATUS="+status)
}

// reclaim makes this process the main one again. Whether systemd obeys cannot
// be seen from here.
func (n notifier) reclaim(pid int, status string) error {
	if err := n.send(fmt.Sprintf("MAINPID=%d", pid), "READY=1", "NOTIFYACCESS=main", "STATUS="+status); err != nil {
		return err
	}
	return n.barrier()
}

// sole withdraws NOTIFYACCESS=all.
func (n notifier) sole(status string) error { return n.send("NOTIFYACCESS=main", "STATUS="+status) }

var errBarrier = errors.New("systemd did not read the message in time")
