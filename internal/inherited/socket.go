// Package inherited serves unix sockets that a service binds once and that each of
// its generations hands to the next: the control socket and the takeover socket.
package inherited

import (
	"errors"
	"net"
	"os"
	"time"

	"github.com/zdt-dev/zdt/internal/gate"
	"github.com/zdt-dev/zdt/internal/netfd"
)

// Socket is one process's share of such a socket. Clients that connect wait until Open or
// Own, and while it is paused, for this process or another one that has the socket. The nil
// Socket is none: its methods do nothing.
//
// The methods may be called from any goroutine, but none after Close or Leave.
type Socket struct {
	listener *net.UnixListener
	raw      int // the copy for the successor
	gate     *gate.Gate
}

// Bound makes a Socket of a listener that was just bound. The listener is the Socket's, also
// when Bound fails.
func Bound(listener *net.UnixListener) (*Socket, error) {
	raw, err := netfd.Dup(listener)
	if err != nil {
		listener.Close()
		return nil, err
	}
	return newSocket(listener, raw), nil
}

// Adopt makes a Socket of a listening descriptor. It owns fd, also when it fails.
func Adopt(fd int) (*Socket, error) {
	netfd.Claim(fd)
	ln, err := netfd.From(fd, net.FileListener)
	if err != nil {
		netfd.Close(fd)
		return nil, err
	}
	listener, ok := ln.(*net.UnixListener)
	if !ok {
		ln.Close()
		netfd.Close(fd)
		return nil, errors.New("not a unix socket")
	}
	return newSocket(listener, fd), nil
}

func newSocket(listener *net.UnixListener, raw int) *Socket {
	netfd.KeepFile(listener)
	s := &Socket{listener: listener, raw: raw, gate: gate.New(gate.Paused)}
	s.gate.Add(listener)
	return s
}

// Serve gives every connection to meet, whose it is then. It returns when the Socket is
// closed; that does not wait for it.
func (s *Socket) Serve(meet func(*net.UnixConn)) {
	if s == nil {
		return
	}
	for s.gate.Pass(nil) == nil {
		conn, err := s.listener.AcceptUnix()
		switch {
		case err == nil:
			meet(conn)
		case errors.Is(err, os.ErrDeadlineExceeded): // the gate closed meanwhile
		case errors.Is(err, net.ErrClosed):
			return
		default:
			time.Sleep(10 * time.Millisecond) // out of descriptors: try again without spinning
		}
	}
}

// FD is the copy of the socket that a successor inherits, -1 of none. It stays the Socket's,
// and has FD_CLOEXEC.
func (s *Socket) FD() int {
	if s == nil {
		return -1
	}
	return s.raw
}

// Open begins to accept.
func (s *Socket) Open() {
	if s != nil {
		s.gate.Open()
	}
}

// Own begins to accept for a process that has become the service: from now on it is the one
// whose credentials SO_PEERCRED shows to clients. The kernel takes them at listen(2).
func (s *Socket) Own() {
	if s != nil {
		netfd.ListenAgain(s.listener)
		s.gate.Open()
	}
}

// Pause stops accepting.
func (s *Socket) Pause() {
	if s != nil {
		s.gate.Pause()
	}
}

// Refuse stops accepting for good.
func (s *Socket) Refuse() {
	if s != nil {
		s.gate.Close()
	}
}

// Close ends this process's share. With a path the service is over, and its file goes before the
// socket: who finds nobody there removes it, and binds another.
func (s *Socket) Close(path string) {
	if s == nil {
		return
	}
	s.Refuse()
	if path != "" {
		os.Remove(path)
	}
	s.listener.Close()
	netfd.Close(s.raw)
}

// Leave ends this process's share but for the descriptor FD, which is the caller's now: for
// Adopt, here or in the program that is executed in this one's place.
func (s *Socket) Leave() {
	if s == nil {
		return
	}
	s.Refuse()
	s.listener.Close()
}
