package handoff

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// watch waits for many descriptors at once: an epoll(7) of its own, with one
// goroutine that waits for that in Go's poller. A descriptor in it costs the kernel's
// entry and one of a map, and a single system call when it comes.
//
// The descriptors stay the caller's, who removes each before it closes it: an entry
// ends by itself only when the sender of a connection has closed its copy too.
type watch struct {
	epoll *os.File
	done  chan struct{} // closed when its goroutine has ended

	mu     sync.Mutex
	fd     int // of epoll; -1 when it is closed
	rings  map[ticket]func()
	serial int32
}

func newWatch() (*watch, error) {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("epoll_create: %w", err)
	}
	// Go's poller takes a file that it is given non-blocking.
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("epoll: %w", err)
	}
	w := &watch{epoll: os.NewFile(uintptr(fd), "epoll"), done: make(chan struct{}), fd: fd, rings: make(map[ticket]func())}
	raw, err := w.epoll.SyscallConn()
	if err != nil {
		w.epoll.Close()
		return nil, err
	}
	go w.run(raw)
	return w, nil
}

// ticket is for one stay of a descriptor in a watch. Numbers of descriptors
// come again, and so may an event of the one before.
type ticket struct{ fd, serial int32 }

// add calls ring once, as soon as there is something to read from fd or its
// stream has ended, and forgets it. ring must not block.
func (w *watch) add(fd int, ring func()) (ticket, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.serial++
	t := ticket{int32(fd), w.serial}
	event := unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLRDHUP, Fd: t.fd, Pad: t.serial}
	if err := unix.EpollCtl(w.fd, unix.EPOLL_CTL_ADD, fd, &event); err != nil {
		return t, fmt.Errorf("epoll_ctl: %w", err)
	}
	w.rings[t] = ring
	return t, nil
}

// remove forgets a descriptor. It reports false when that is not there any more: its ring was or is called.
func (w *watch) remove(t ticket) bool { return w.take(t) != nil }

func (w *watch) take(t ticket) (ring func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	ring = w.rings[t]
	if ring != nil {
		delete(w.rings, t)
		unix.EpollCtl(w.fd, unix.EPOLL_CTL_DEL, int(t.fd), nil)
	}
	return ring
}

func (w *watch) run(raw syscall.RawConn) {
	defer close(w.done)
	var events [128]unix.EpollEvent
	raw.Read(func(fd uintptr) (ended bool) {
		for {
			n, err := unix.EpollWait(int(fd), events[:], 0)
			switch {
			case errors.Is(err, unix.EINTR):
			case err != nil:
				return true
			case n == 0:
				return false // until Go's poller sees the next
			}
			for _, e := range events[:max(n, 0)] {
				if ring := w.take(ticket{e.Fd, e.Pad}); ring != nil {
					ring()
				}
			}
		}
	})
}

// close ends the waiting. Afterwards no ring is called, and remove still tells
// which were not.
func (w *watch) close() {
	w.mu.Lock()
	w.fd = -1
	w.mu.Unlock()
	w.epoll.Close()
	<-w.done
}
