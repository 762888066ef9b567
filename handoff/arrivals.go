package handoff

import (
	"maps"
	"net"
	"slices"
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
// A watch waits for those that rest, a goroutine for each that something has
// happened to. Close ends them, wg is for who waits.
type arrivals struct {
	origin net.Listener // the one they were accepted from; lends its address
	conns  chan net.Conn
	closed chan struct{}

	mu      sync.Mutex // taken after a conn's
	watch   *watch     // there while connections rest
	resting map[net.Conn]struct{}
	shut    bool
	wg      sync.WaitGroup // of those that rest or are pushed
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

// Close closes the connections that rest. It does not wait for those whose fate is the
// other generation's to tell: net/http calls it with a lock held that
// every connection of the server needs.
func (a *arrivals) Close() error {
	a.mu.Lock()
	if a.shut {
		a.mu.Unlock()
		return net.ErrClosed
	}
	a.shut = true
	resting := slices.Collect(maps.Keys(a.resting))
	a.mu.Unlock()
	close(a.closed)
	for _, c := range resting {
		c.Close()
	}
	return nil
}

// add takes a connection over. One whose client has sent half a request goes
// to the server at once: its clock runs.
func (a *arrivals) add(nc net.Conn, load cargo) {
	c, _ := baseConn(nc)
	c.set(connIdle)
	c.trim = true
	w, ok := a.enter(nc)
	switch {
	case !ok:
		nc.Close()
	case len(load.Pending) > 0:
		go a.serve(nc)
	default:
		c.protocol = protocolHTTP1
		c.rec.begin()
		nc.SetReadDeadline(load.deadline())
		if !c.settle(a, w) {
			go a.await(nc)
		}
	}
}

// enter reports false when nothing is taken any more. The watch is nil when there can be none.
func (a *arrivals) enter(nc net.Conn) (w *watch, ok bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.shut {
		return nil, false
	}
	a.wg.Add(1)
	a.resting[nc] = struct{}{}
	if a.watch == nil {
		a.watch, _ = newWatch()
	}
	return a.watch, true
}

// left: a connection has ended while it rested.
func (a *arrivals) left(nc net.Conn) {
	a.forget(nc)
	a.wg.Done()
}

func (a *arrivals) forget(nc net.Conn) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.resting, nc)
	if len(a.resting) == 0 && a.watch != nil {
		a.watch.close()
		a.watch = nil
	}
}

// await waits for a connection until it has a request, moves on or ends.
func (a *arrivals) await(nc net.Conn) {
	c, _ := baseConn(nc)
	err := a.revive(nc)
	if err == nil {
		err = c.awaitReadable()
	}
	if err != nil {
		nc.Close() // moved on, idle for too long, or ended
		a.left(nc)
		return
	}
	nc.SetReadDeadline(time.Time{})
	a.serve(nc)
}

// serve gives a connection to the server.
func (a *arrivals) serve(nc net.Conn) {
	defer a.wg.Done()
	a.forget(nc) // from here on Close must not close it
	select {
	case a.conns <- nc:
	case <-a.closed:
		nc.Close()
	}
}

// reviveAgain is when a connection is tried again for which there was no descriptor.
const reviveAgain = 20 * time.Millisecond

// revive insists: the client has sent a request that this generation has to answer.
func (a *arrivals) revive(nc net.Conn) error {
	for {
		err := revive(nc)
		if !outOfDescriptors(err) {
			return err
		}
		select {
		case <-time.After(reviveAgain):
		case <-a.closed:
			return err
		}
	}
}
