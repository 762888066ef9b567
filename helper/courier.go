//go:build linux

package helper

import (
	"errors"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/zdt-dev/zdt/internal/sdnotify"
)

// courier takes messages to systemd, in the order in which they are given to it. One goroutine does it: systemd may
// be busy for seconds, as it is at a daemon-reload, and nobody has to wait for that.
type courier struct {
	notifier sdnotify.Notifier // the helper's own
	bell     chan struct{}     // something was put into the queue
	stop     chan struct{}     // closed by Close
	done     chan struct{}     // closed when the goroutine has ended

	mu     sync.Mutex
	queue  []parcel
	fds    int // in the queue
	lost   uint64
	reason error // why the last one was lost
}

// parcel is a message, or a barrier.
type parcel struct {
	message
	barrier int // -1: it is a message
}

func (p parcel) close() {
	closeAll(p.FDs)
	if p.barrier >= 0 {
		unix.Close(p.barrier)
	}
}

const (
	// courierLimit and courierFDs bound what waits of the app. Beyond it is lost: the alternative is a
	// helper that grows, or one that stands still with systemd.
	courierLimit = 256
	courierFDs   = 2 * mailFDs
)

var (
	errCourierFull   = errors.New("systemd does not read its messages")
	errCourierClosed = errors.New("the helper ends")
)

// startCourier starts the goroutine. The zero notifier takes everything and tells nobody.
func startCourier(n sdnotify.Notifier) *courier {
	c := &courier{
		notifier: n,
		bell:     make(chan struct{}, 1),
		stop:     make(chan struct{}),
		done:     make(chan struct{}),
	}
	go c.run()
	return c
}

// say sends what the helper itself has to say. It never waits and is never refused.
func (c *courier) say(assignments ...string) {
	c.put(parcel{message{Assignments: assignments}, -1}, true)
}

// pass sends what the app says. The descriptors are the courier's, whatever comes. It
// never waits; too much of it is lost.
func (c *courier) pass(m message) {
	if !m.empty() {
		c.put(parcel{m, -1}, false)
	}
}

// barrier closes fd, of a BARRIER=1 of the app, when systemd has processed everything given to
// the courier before. The app then sees its end of the pipe hang up.
func (c *courier) barrier(fd int) { c.put(parcel{barrier: fd}, false) }

// Lost counts messages that did not get to systemd, with the reason of the last one.
func (c *courier) Lost() (uint64, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.lost, c.reason
}

// Close waits until everything has been taken to systemd, or until systemd has not taken
// a message for sdnotify.Timeout, and ends the goroutine. What is given to the courier later is lost.
func (c *courier) Close() {
	close(c.stop)
	<-c.done
}

func (c *courier) put(p parcel, sure bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	var refused error
	select {
	case <-c.done:
		refused = errCourierClosed
	default:
		n := len(p.FDs)
		if p.barrier >= 0 {
			n++
		}
		if !sure && (len(c.queue) >= courierLimit || c.fds+n > courierFDs) {
			refused = errCourierFull
			break
		}
		c.fds += n
		c.queue = append(c.queue, p)
		select {
		case c.bell <- struct{}{}:
		default:
		}
	}
	if refused != nil {
		c.drop(p, refused)
	}
}

// drop is called with the mutex held.
func (c *courier) drop(p parcel, reason error) {
	p.close()
	c.lost++
	c.reason = reason
}

func (c *courier) run() {
	owes := false // something was sent since the last barrier
	stopped := false
	defer func() {
		c.mu.Lock() // orders this with put
		defer c.mu.Unlock()
		for _, p := range c.queue {
			c.drop(p, errCourierClosed)
		}
		c.queue = nil
		close(c.done)
	}()
	for {
		p, found := c.take()
		if !found && stopped {
			return
		}
		if !found {
			select {
			case <-c.bell:
			case <-c.stop:
				stopped = true
			}
			continue
		}
		var err error
		switch {
		case p.barrier < 0:
			err = c.notifier.SendFDs(p.Assignments, p.FDs...)
			owes = owes || err == nil
		case owes:
			// systemd gets the app's own descriptor, closes it when it comes to the message, and nobody
			// here has to wait for that.
			err = c.notifier.SendFDs([]string{"BARRIER=1"}, p.barrier)
			owes = err != nil
		}
		if err != nil {
			c.mu.Lock()
			c.drop(p, err)
			c.mu.Unlock()
			if stopped || c.closing() {
				return // systemd has had its time
			}
			continue
		}
		p.close()
	}
}

func (c *courier) closing() bool {
	select {
	case <-c.stop:
		return true
	default:
		return false
	}
}

func (c *courier) take() (parcel, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.queue) == 0 {
		c.queue = nil // the array of a long queue is not kept
		return parcel{}, false
	}
	p := c.queue[0]
	c.queue = c.queue[1:]
	c.fds -= len(p.FDs)
	if p.barrier >= 0 {
		c.fds--
	}
	return p, true
}

// promises are messages that wait for a candidate to serve.
type promises struct {
	list []message
	fds  int
}

// add keeps a message; its descriptors are the promises'. It reports false, and
// closes them, when the candidate has promised too much: 64 messages or mailFDs descriptors.
func (p *promises) add(m message) bool {
	if m.empty() {
		return true
	}
	if len(p.list) == 64 || p.fds+len(m.FDs) > mailFDs {
		closeAll(m.FDs)
		return false
	}
	p.fds += len(m.FDs)
	p.list = append(p.list, m)
	return true
}

// keep gives all to the courier: the candidate serves.
func (p *promises) keep(c *courier) {
	for _, m := range p.list {
		c.pass(m)
	}
	*p = promises{}
}

// drop forgets all and closes the descriptors: the candidate never served.
func (p *promises) drop() {
	for _, m := range p.list {
		closeAll(m.FDs)
	}
	*p = promises{}
}
