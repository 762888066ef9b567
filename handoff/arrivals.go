package handoff

import (
	"net"
	"sync"
	"time"
)

// arrivals is the net.Listener through which an http.Server gets the
// connections that came from another generation.
//
// An idle one rests here until its next request begins. net/http would run the
// clock for the first request of a new connection, not the one for idle
// connections, and would spend a goroutine's stack and buffers on each.
//
// Every resting connection has a goroutine that waits for it. Close ends them and waits.
type arrivals struct {
	origin net.Listener // the one they were accepted from; lends its address
	conns  chan net.Conn
	closed chan struct{}

	mu      sync.Mutex
	resting map[net.Conn]struct{}
	shut    bool
	wg      sync.WaitGroup
}

func newArrivals(origin net.Listener) *arrivals {
	return &arrivals{origin: origin, conns: make(chan net.Conn), closed: make(chan struct{}), resting: make(map[net.Conn]struct{})}
}

func (a *arrivals) Addr() net.Addr { return a.origin.Addr() }

// Accept returns the next connection with a request, or half of one.
func (a *arrivals) Accept() (net.Conn, error) {
	select {
	case c := <-a.conns:
		return c, nil
	case <-a.closed:
		return nil, net.ErrClosed
	}
}

// Close closes the connections that rest.
func (a *arrivals) Close() error {
	a.mu.Lock()
	if a.shut {
		a.mu.Unlock()
		return net.ErrClosed
	}
	a.shut = true
	for c := range a.resting {
		c.Close()
	}
	a.mu.Unlock()
	close(a.closed)
	a.wg.Wait()
	return nil
}

// add takes a connection over. One whose client has sent half a request goes
// to the server at once: its clock runs.
func (a *arrivals) add(nc net.Conn, load cargo) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.shut {
		nc.Close()
		return
	}
	c, _ := baseConn(nc)
	c.set(connIdle)
	a.wg.Add(1)
	if len(load.Pending) > 0 {
		go func() {
			defer a.wg.Done()
			a.push(nc)
		}()
		return
	}
	c.protocol = protocolHTTP1
	c.rec.begin()
	nc.SetReadDeadline(load.deadline())
	a.resting[nc] = struct{}{}
	go func() {
		defer a.wg.Done()
		err := c.awaitReadable()
		a.mu.Lock()
		delete(a.resting, nc)
		a.mu.Unlock()
		if err != nil {
			nc.Close() // moved on, idle for too long, or ended
			return
		}
		nc.SetReadDeadline(time.Time{})
		a.push(nc)
	}()
}

func (a *arrivals) push(c net.Conn) {
	select {
	case a.conns <- c:
	case <-a.closed:
		c.Close()
	}
}
