// Package sdnotify speaks the protocol of sd_notify(3): a service tells systemd
// what it does in datagrams of assignments.
package sdnotify

import (
	"errors"
	"fmt"
	"net"
	"strings"
	"time"
)

// Timeout bounds a message to systemd and the barrier after it, as
// sd_notify_barrier(3) callers usually do.
const Timeout = 5 * time.Second

// hintTimeout bounds a message that may be lost.
const hintTimeout = 20 * time.Millisecond

// Notifier sends to one socket. The zero value, without a socket, accepts and
// drops everything: the process is not supervised by systemd, or not any more.
// It is a value without state; its methods may be called from any goroutine.
type Notifier struct {
	Socket string // $NOTIFY_SOCKET: a path, or @name for an abstract one
}

// Send sends one datagram of assignments, NAME=value each. systemd applies a
// datagram as a whole. It waits up to Timeout for room in systemd's queue; an
// error that matches os.ErrDeadlineExceeded says that there was none.
func (n Notifier) Send(assignments ...string) error {
	return n.write(Timeout, assignments)
}

// SendFDs is Send with descriptors, for FDSTORE=1 and the like. They stay the
// caller's, who may close them when it returns. The kernel passes 253 at most in
// one message (SCM_MAX_FD).
func (n Notifier) SendFDs(assignments []string, fds ...int) error {
	if n.Socket == "" {
		return nil
	}
	conn, err := n.dial(Timeout)
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := sendRights(conn, join(assignments), fds); err != nil {
		return fmt.Errorf("notify systemd: %w", err)
	}
	return nil
}

// Hint sets the text systemctl status shows, if systemd takes it at once: a
// manager that reloads reads nothing for a while, and then its queue may be full.
// What is only worth reading is not worth waiting for.
func (n Notifier) Hint(status string) error {
	return n.write(hintTimeout, []string{"STATUS=" + status})
}

// Ready tells systemd that the service serves.
func (n Notifier) Ready(status string) error { return n.Send("READY=1", "STATUS="+status) }

// watchdog is the heartbeat that goes with a new main process. Each program has its own every half of WatchdogSec=, and systemd hears
// the new one's from now on: without it nearly all of that time could pass between the last of the one and the first of the other.
// systemd ignores it where nobody has set WatchdogSec=.
const watchdog = "WATCHDOG=1"

// MainPID makes pid the main process, in one datagram so that systemd never
// sees one half of it. The caller waits for the Barrier before it goes on. Afterwards this
// process is no longer heard under NotifyAccess=main, except that systemd ≥ 254
// keeps listening because of NOTIFYACCESS=all: should the new main process
// die while this one still drains, it can take the service back. Older
// versions ignore the assignment. The successor withdraws it with Sole
// when its predecessor is gone.
func (n Notifier) MainPID(pid int, status string) error {
	return n.Send(fmt.Sprintf("MAINPID=%d", pid), "READY=1", "NOTIFYACCESS=all", watchdog, "STATUS="+status)
}

// Reclaim makes this process, pid, the main one again. Whether systemd obeys
// cannot be seen from here.
func (n Notifier) Reclaim(pid int, status string) error {
	if err := n.Send(fmt.Sprintf("MAINPID=%d", pid), "READY=1", "NOTIFYACCESS=main", watchdog, "STATUS="+status); err != nil {
		return err
	}
	return n.Barrier()
}

// Sole withdraws NOTIFYACCESS=all.
func (n Notifier) Sole(status string) error { return n.Send("NOTIFYACCESS=main", "STATUS="+status) }

func (n Notifier) write(timeout time.Duration, assignments []string) error {
	if n.Socket == "" {
		return nil
	}
	conn, err := n.dial(timeout)
	if err != nil {
		return err
	}
	defer conn.Close()
	if _, err := conn.Write(join(assignments)); err != nil {
		return fmt.Errorf("notify systemd: %w", err)
	}
	return nil
}

func join(assignments []string) []byte { return []byte(strings.Join(assignments, "\n")) }

// dial connects to the notification socket. PID 1 may be slow, never absent:
// the deadline keeps a wedged one from stopping the service.
func (n Notifier) dial(timeout time.Duration) (*net.UnixConn, error) {
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: n.Socket, Net: "unixgram"})
	if err != nil {
		return nil, fmt.Errorf("notify systemd: %w", err)
	}
	conn.SetDeadline(time.Now().Add(timeout))
	return conn, nil
}

var errBarrier = errors.New("systemd did not read the message in time")
