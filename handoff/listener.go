package handoff

import (
	"errors"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/zdt-dev/zdt/internal/gate"
)

// Listener is a net.Listener whose socket outlives this process. Accept waits
// while another generation serves and goes on if this one has to resume;
// it fails with net.ErrClosed once this generation is done or Close was called.
// Swap puts another socket under it.
//
// The connections it returns are tracked: a drain waits for them.
type Listener struct {
	h      *Handoff
	socket *socket // the registry's
	stop   chan struct{}
	once   sync.Once
	served sync.Once

	mu    sync.Mutex
	inner net.Listener // owns its own descriptor; Swap replaces it
	queue []net.Conn   // accepted from replaced sockets, for the next Accepts; tracked
	awake bool         // inner's Accepts were woken for queue
}

// Accept waits for the next connection. The caller owns it and must close it.
func (l *Listener) Accept() (net.Conn, error) {
	l.served.Do(func() { l.h.served(l) })
	for {
		if c := l.accepted(); c != nil {
			return c, nil
		}
		if err := l.pass(); err != nil {
			return nil, &net.OpError{Op: "accept", Net: l.Addr().Network(), Addr: l.Addr(), Err: err}
		}
		c, inner := l.next()
		if c != nil {
			return c, nil
		}
		c, err := l.accept(inner)
		if err == nil {
			return c, nil
		}
		// The gate closed while we waited, or Swap did it.
		if !errors.Is(err, os.ErrDeadlineExceeded) && l.current() == inner {
			return nil, err
		}
	}
}

// accepted returns a connection of a replaced socket. Only this process can serve
// it, so a pause of the gate does not hold it back; but no connection is served
// before READY.
func (l *Listener) accepted() net.Conn {
	if !l.h.gate.WasOpen() {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.takeQueued()
}

// next returns a connection of a replaced socket, or else the socket to accept from.
func (l *Listener) next() (net.Conn, net.Listener) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if c := l.takeQueued(); c != nil {
		return c, nil
	}
	if l.awake {
		l.awake = false
		l.h.gate.Admit(l.inner.(gate.Socket))
	}
	return nil, l.inner
}

func (l *Listener) takeQueued() net.Conn {
	if len(l.queue) == 0 {
		return nil
	}
	c := l.queue[0]
	l.queue[0] = nil
	l.queue = l.queue[1:]
	return c
}

func (l *Listener) current() net.Listener {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.inner
}

// pass waits until connections may be accepted.
func (l *Listener) pass() error {
	if l.socket.begin != nil {
		select {
		case <-l.socket.begin: // it listens
		case <-l.stop:
			return net.ErrClosed
		}
	}
	return l.h.gate.Pass(l.stop)
}

// accept counts itself as long as it may come back with a connection. A
// goroutine that the gate's deadline has woken, but that has not run yet, goes on
// as if nothing had been when a connection arrives meanwhile (Go's poller lets the
// later event win), and on a busy machine that takes a while. The drain must
// not miss that connection.
func (l *Listener) accept(inner net.Listener) (net.Conn, error) {
	t := l.h.tracker
	t.accepting.Add(1)
	c, err := inner.Accept()
	if err == nil {
		c = t.track(c, l.socket.name, nil)
	}
	t.accepting.Add(-1)
	if err != nil {
		t.wake()
		return nil, err
	}
	return c, nil
}

// Close ends this generation's use of the socket, and the next one's: a socket
// that the program closed is not handed over. Connections that Accept has
// returned stay open; those that still wait in the socket's queue are reset by the
// kernel, and those that Swap has taken out of another one's are closed.
func (l *Listener) Close() error {
	err := net.ErrClosed
	l.once.Do(func() {
		close(l.stop)
		l.h.tellLeaving(l.socket)
		l.mu.Lock()
		l.h.gate.Remove(l.inner.(gate.Socket))
		err = l.inner.Close()
		queue := l.queue
		l.queue = nil
		l.mu.Unlock()
		for _, c := range queue {
			c.Close()
		}
		l.h.closed(l)
	})
	return err
}

// Addr returns the address the socket is bound to.
func (l *Listener) Addr() net.Addr { return l.current().Addr() }

// Name returns the name under which the socket is handed over.
func (l *Listener) Name() string { return l.socket.name }

// PacketConn is a net.PacketConn whose socket outlives this process. ReadFrom
// waits while another generation serves; WriteTo works until Close, so that
// answers to what was read before still go out.
type PacketConn struct {
	h      *Handoff
	inner  net.PacketConn
	socket *socket
	read   *readSide
	stop   chan struct{}
	once   sync.Once
	served sync.Once
}

// readSide joins the gate's deadline with the program's own.
type readSide struct {
	mu     sync.Mutex
	inner  net.PacketConn
	user   time.Time
	kicked bool
}

// SetDeadline is the gate's: a time in the past kicks readers out, zero lets
// them in again under the program's own deadline.
func (r *readSide) SetDeadline(t time.Time) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.kicked = !t.IsZero()
	return r.apply()
}

func (r *readSide) setUser(t time.Time) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.user = t
	return r.apply()
}

func (r *readSide) apply() error {
	if r.kicked {
		return r.inner.SetReadDeadline(time.Unix(1, 0))
	}
	return r.inner.SetReadDeadline(r.user)
}

// expired reports whether the program's own deadline has passed.
func (r *readSide) expired() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return !r.user.IsZero() && !time.Now().Before(r.user)
}

// ReadFrom reads the next datagram.
func (p *PacketConn) ReadFrom(b []byte) (int, net.Addr, error) {
	p.served.Do(func() { p.h.served(p) })
	for {
		if err := p.h.gate.Pass(p.stop); err != nil {
			return 0, nil, &net.OpError{Op: "read", Net: p.LocalAddr().Network(), Addr: p.LocalAddr(), Err: err}
		}
		n, from, err := p.inner.ReadFrom(b)
		if errors.Is(err, os.ErrDeadlineExceeded) && !p.read.expired() {
			continue
		}
		return n, from, err
	}
}

// WriteTo sends a datagram.
func (p *PacketConn) WriteTo(b []byte, to net.Addr) (int, error) { return p.inner.WriteTo(b, to) }

// Close ends this generation's use of the socket, and the next one's.
func (p *PacketConn) Close() error {
	err := net.ErrClosed
	p.once.Do(func() {
		close(p.stop)
		p.h.gate.Remove(p.read)
		err = p.inner.Close()
		p.h.closed(p)
	})
	return err
}

// LocalAddr returns the address the socket is bound to.
func (p *PacketConn) LocalAddr() net.Addr { return p.inner.LocalAddr() }

// SetDeadline sets the read and write deadlines.
func (p *PacketConn) SetDeadline(t time.Time) error {
	return errors.Join(p.read.setUser(t), p.inner.SetWriteDeadline(t))
}

// SetReadDeadline sets the deadline of ReadFrom. While another generation
// serves, ReadFrom waits beyond it.
func (p *PacketConn) SetReadDeadline(t time.Time) error { return p.read.setUser(t) }

// SetWriteDeadline sets the deadline of WriteTo.
func (p *PacketConn) SetWriteDeadline(t time.Time) error { return p.inner.SetWriteDeadline(t) }

// SyscallConn gives access to socket options. The descriptor is the
// PacketConn's; a program that reads through it reads past the gate.
func (p *PacketConn) SyscallConn() (syscall.RawConn, error) {
	return p.inner.(syscall.Conn).SyscallConn()
}
