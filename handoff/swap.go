package handoff

import (
	"errors"
	"fmt"
	"net"
	"syscall"
	"time"

	"github.com/zdt-dev/zdt/handoff/control"
	"github.com/zdt-dev/zdt/internal/gate"
	"github.com/zdt-dev/zdt/internal/netfd"
)

// ErrHandingOver says that something must wait until the handoff is over, or
// that this generation has handed over.
var ErrHandingOver = errors.New("a handoff is in progress")

// Swap puts next under the listener, in place of the socket that is there: a
// service moves to another port or interface and goes on with the same
// http.Server. Accept may run meanwhile in any number of goroutines and
// notices nothing. next takes the name over, and from now on it is what a successor
// gets under it.
//
// The old socket is closed. Before that its queue is emptied: who has a connection
// to the old address gets served, by the next Accepts. Who is in the middle of the
// handshake, or comes later, is refused by the kernel; to keep these
// too, bind next to the same address with SO_REUSEPORT while
// net.ipv4.tcp_migrate_req is 1, or keep the old address under a second name.
// A socket that systemd holds as well stays open there, with a queue that nobody
// serves: change the socket unit too. The file of an old unix socket stays.
//
// next has to be a *net.TCPListener or *net.UnixListener that listens and that nobody
// accepts from. Swap owns it when it returns nil, and then it must be neither
// used nor closed any more; its deadline is removed. When Swap returns an error
// next is the caller's still and the old socket serves on: ErrHandingOver if that
// is because a predecessor or a successor shares the old socket now, net.ErrClosed if
// the Listener was closed or the generation is done.
func (l *Listener) Swap(next net.Listener) error {
	var err error
	switch n := next.(type) {
	case *net.TCPListener:
		err = l.swap(n)
	case *net.UnixListener:
		err = l.swap(n)
	default:
		err = fmt.Errorf("a %T is no socket: want a *net.TCPListener or *net.UnixListener, as net.Listen returns them", next)
	}
	if err != nil {
		return fmt.Errorf("swap socket %q: %w", l.Name(), err)
	}
	return nil
}

// ownSocket is a net.Listener that is a socket itself.
type ownSocket interface {
	net.Listener
	syscall.Conn
	gate.Socket
}

func (l *Listener) swap(next ownSocket) error {
	fd, err := netfd.Dup(next)
	if err != nil {
		return err
	}
	err = net.ErrClosed
	l.h.do(func(m *machine) { err = m.swap(l, next, fd) })
	if err != nil {
		netfd.Close(fd)
	}
	return err
}

// inQueue is a connection that waited in a listening socket.
type inQueue struct {
	conn net.Conn
	peer net.Addr // of TCP, if it is known
}

// swap runs on the deciding goroutine, so that a successor gets the old socket
// or the new one, and the old one only together with its queue. It owns next
// and fd when it succeeds.
func (m *machine) swap(l *Listener, next ownSocket, fd int) error {
	switch {
	case m.attempt != nil || m.predecessor != nil:
		return ErrHandingOver
	case m.phase == control.Stopping:
		return net.ErrClosed
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	select {
	case <-l.stop:
		return net.ErrClosed
	default:
	}
	old := l.inner.(ownSocket)
	if old == next {
		return errors.New("it is the listener's socket already")
	}
	conns, err := emptyQueue(old)
	for _, q := range conns {
		l.queue = append(l.queue, m.h.tracker.track(q.conn, l.socket.name, q.peer))
	}
	if err != nil {
		// The old socket goes on. Whoever waits on it must come and fetch
		// what was taken out of its queue.
		if len(conns) > 0 {
			l.awake = true
			old.SetDeadline(time.Unix(1, 0))
		}
		return fmt.Errorf("empty the queue of %s: %w", old.Addr(), err)
	}
	// What waits on old comes back with an error and waits for l.mu. Nothing
	// can be done about an error of Close, and nothing is lost by it.
	m.h.tellLeaving(l.socket)
	old.Close()
	m.h.sockets.replace(l.socket, fd, next.Addr())
	m.h.gate.Remove(old)
	netfd.KeepFile(next)
	next.SetDeadline(time.Time{})
	m.h.gate.Add(next)
	l.inner, l.awake = next, false
	return nil
}
