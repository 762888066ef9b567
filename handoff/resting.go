package handoff

import (
	"errors"
	"fmt"
	"net"
	"syscall"
	"time"

	"github.com/zdt-dev/zdt/internal/netfd"
)

// rested lies under an idle HTTP connection that came from another generation,
// until its next request begins: the bare descriptor. Most connections of a service
// are idle. To make a net.Conn of each takes a dozen system calls, for which all
// others of the batch wait, and a goroutine takes kilobytes.
//
// It is a net.Conn as far as a conn at rest needs one. Whatever happens to the
// connection, be it a request, its end, its deadline or the wish of a mover, wakes it: revive
// puts the real one in its place. The conn over it guards it with mu.
type rested struct {
	net.Conn // nil: nobody reads, writes or asks for addresses
	fd       int
	owner    net.Conn // what is tracked
	home     *arrivals
	watch    *watch // nil until it rests
	ticket   ticket
	deadline *time.Timer
}

// settle begins the rest of a connection. It reports false when there is none for it.
func (c *conn) settle(home *arrivals, w *watch) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	r, ok := c.net.(*rested)
	if !ok || c.woken || r.fd < 0 || w == nil {
		return false
	}
	t, err := w.add(r.fd, func() { go home.await(r.owner) })
	if err != nil {
		return false
	}
	r.home, r.watch, r.ticket = home, w, t
	r.SetReadDeadline(c.deadline)
	return true
}

// awake hands the connection to a goroutine, unless one has it already.
func (r *rested) awake() {
	if r.watch.remove(r.ticket) {
		go r.home.await(r.owner)
	}
}

// SetReadDeadline wakes at t.
func (r *rested) SetReadDeadline(t time.Time) error {
	if r.watch == nil {
		return nil
	}
	r.noDeadline()
	if !t.IsZero() {
		r.deadline = time.AfterFunc(time.Until(t), r.awake)
	}
	return nil
}

func (r *rested) noDeadline() {
	if r.deadline != nil {
		r.deadline.Stop()
	}
}

// Close ends the rest for good.
func (r *rested) Close() error {
	if r.fd < 0 {
		return net.ErrClosed
	}
	r.noDeadline()
	if r.watch != nil && r.watch.remove(r.ticket) {
		defer r.home.left(r.owner)
	}
	netfd.Close(r.fd)
	r.fd = -1
	return nil
}

// SyscallConn, Control, Read and Write make it a syscall.Conn, whose descriptor
// can be looked at.
func (r *rested) SyscallConn() (syscall.RawConn, error) { return bareFD(r.fd), nil }

type bareFD int

func (fd bareFD) Control(f func(uintptr)) error {
	if fd < 0 {
		return net.ErrClosed
	}
	f(uintptr(fd))
	return nil
}

func (bareFD) Read(func(uintptr) bool) error  { return errors.ErrUnsupported }
func (bareFD) Write(func(uintptr) bool) error { return errors.ErrUnsupported }

// revive makes a real connection of nc when it rests.
func revive(nc net.Conn) error {
	c, _ := baseConn(nc)
	c.mu.Lock()
	defer c.mu.Unlock()
	r, ok := c.net.(*rested)
	switch {
	case !ok:
		return nil
	case r.fd < 0:
		return net.ErrClosed
	}
	made, err := netfd.From(r.fd, net.FileConn)
	if err != nil {
		return err
	}
	switch w := nc.(type) {
	case *tcpConn:
		w.TCPConn, ok = made.(*net.TCPConn)
	case *unixConn:
		w.UnixConn, ok = made.(*net.UnixConn)
	}
	if !ok {
		made.Close()
		return fmt.Errorf("a %T does not move", made)
	}
	r.noDeadline()
	netfd.Close(r.fd)
	r.fd = -1
	c.net, c.unbounded = made, false
	if c.woken {
		return c.enforce(time.Unix(1, 0))
	}
	return c.enforce(c.deadline)
}
