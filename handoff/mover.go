package handoff

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// mover hands the connections of a generation that leaves to the one that
// stays: of an incumbent to its successor, of an undone candidate back to its
// predecessor.
//
// A connection has exactly one owner. The sender parks it, so that nobody reads or
// writes it, and lets go only when the receiver has acknowledged it. The
// receiver serves it only after the acknowledgement was sent. If the receiver dies first,
// the sender goes on as if nothing had been.
//
// One goroutine runs it, after a first look, and ends after peerDied or halt.
type mover struct {
	tracker *tracker
	logger  *slog.Logger
	accept  []take
	send    func(batch uint64, load []*parked) error // transmits; the descriptors stay the sender's
	verify  bool                                     // look at every connection before it goes
	offers  chan *parked
	acks    chan message // from the peer, in order
	died    chan struct{}
	stop    chan struct{}
	done    chan struct{}
	once    sync.Once   // of stop
	dead    sync.Once   // of died
	shut    atomic.Bool // offer nothing for now: the peer does not keep up

	// Owned by the goroutine.
	sleepers []*conn // idle connections that are still to be woken
	woken    int     // woken and not offered yet
	queue    []*parked
	since    time.Time   // the first of queue waits to be sent
	patience *time.Timer // with a batch that is not full
	flights  []flight
	batches  uint64
	size     int  // connections in a batch at most
	stuck    bool // the wire took nothing: not before the next tick
	givenUp  int  // connections on their way when the moving ended; read after done
	shutAt   time.Time
}

// flight is a batch that was sent and is not acknowledged.
type flight struct {
	batch uint64
	load  []*parked
}

const (
	// maxFlights lets the receiver work on one batch while the next is being
	// parked. More would only make connections wait.
	maxFlights = 2
	// parkedMax is how long a parked connection waits for its turn while the peer
	// does not take any: then its requests are better answered here.
	parkedMax = 150 * time.Millisecond
	// retryAfter is when a peer that did not keep up is tried again.
	retryAfter = time.Second
	moverTick  = 25 * time.Millisecond
	// usualBatch is how many connections go at once. As many as a packet can carry
	// are no faster, and each waits until all of its batch have been taken.
	usualBatch = 64
	// gatherMax is how long a parked connection waits for others to go with.
	gatherMax = 2 * time.Millisecond
)

func newMover(t *tracker, logger *slog.Logger, accept []take, send func(uint64, []*parked) error) *mover {
	return &mover{
		tracker: t, logger: logger, accept: accept, send: send, size: usualBatch,
		offers: make(chan *parked), acks: make(chan message, 2*maxFlights),
		died: make(chan struct{}), stop: make(chan struct{}), done: make(chan struct{}),
	}
}

// takes reports whether the peer can go on with such a connection.
func (m *mover) takes(protocol, listener string) bool {
	for _, t := range m.accept {
		if t.Protocol == protocol && (t.Socket == "" || t.Socket == listener) {
			return true
		}
	}
	return false
}

func (m *mover) open() bool { return !m.shut.Load() }

func (m *mover) report(what string, err error) { m.logger.Warn(what, "error", err) }

// acknowledged passes the peer's answer to a batch on. It does not block: a
// peer that answers more than it was asked is not listened to.
func (m *mover) acknowledged(msg message) {
	select {
	case m.acks <- msg:
	default:
		m.report("ignore an acknowledgement", errors.New("more than batches sent"))
	}
}

// peerDied says that the peer's process is gone and every acknowledgement it
// sent has been passed on. It returns when all connections that are not
// the peer's serve on here.
func (m *mover) peerDied() {
	m.dead.Do(func() { close(m.died) })
	<-m.done
}

// halt ends the moving and waits for it. Connections on their way to a peer
// that lives may be served there by now: they are given up here.
func (m *mover) halt() {
	m.once.Do(func() { close(m.stop) })
	<-m.done
}

func (m *mover) run() {
	defer close(m.done)
	tick := time.NewTicker(moverTick)
	defer tick.Stop()
	m.patience = time.NewTimer(gatherMax)
	defer m.patience.Stop()
	for {
		m.wake()
		m.dispatch()
		select {
		case p := <-m.offers:
			m.offered(p)
			m.gather()
		case a := <-m.acks:
			m.answered(a)
		case <-m.patience.C:
		case <-tick.C:
			m.tick()
		case <-m.died:
			m.end(kept)
			return
		case <-m.stop:
			m.end(gone)
			return
		}
	}
}

// look wishes for every connection and notes which have to be woken. One that
// is busy offers itself when it has answered; one that is new as soon as it is read.
func (m *mover) look() {
	m.sleepers = m.sleepers[:0]
	for _, c := range m.tracker.wishFor(m) {
		if c.eager.Load() || connState(c.state.Load()) == connIdle {
			c.awaited.Store(true)
			m.sleepers = append(m.sleepers, c)
		}
	}
}

// wake wakes no more connections than the next two batches hold, so that a
// request on one of ten thousand waits for its own batch and not for all. Two,
// since while one is sent and answered the readers of the other can park.
func (m *mover) wake() {
	for len(m.sleepers) > 0 && m.woken+len(m.queue) < 2*m.size && len(m.flights) < maxFlights && m.open() {
		last := len(m.sleepers) - 1
		c := m.sleepers[last]
		m.sleepers[last] = nil
		m.sleepers = m.sleepers[:last]
		m.woken++
		c.wake()
	}
}

func (m *mover) offered(p *parked) {
	m.woken = max(0, m.woken-1)
	if !m.open() { // it parked as the others were given back
		m.resume([]*parked{p}, kept)
		return
	}
	if len(m.queue) == 0 {
		m.waitSinceNow()
	}
	m.queue = append(m.queue, p)
}

// gather takes what else is offered right now.
func (m *mover) gather() {
	for len(m.queue) < m.size {
		select {
		case p := <-m.offers:
			m.offered(p)
		default:
			return
		}
	}
}

func (m *mover) waitSinceNow() {
	m.since = time.Now()
	m.patience.Reset(gatherMax)
}

// due reports whether what is parked shall go now: a batch of one costs
// a round trip as a full one does, so those that were just woken are waited for.
func (m *mover) due() bool {
	n := len(m.queue)
	return n >= m.size || n > 0 && (m.woken == 0 || time.Since(m.since) >= gatherMax)
}

// dispatch sends what is parked.
func (m *mover) dispatch() {
	m.dropClosed()
	for m.due() && len(m.flights) < maxFlights && !m.stuck {
		load := m.batch()
		m.inspect(load)
		err := m.send(m.batches+1, load)
		var unfit *unfitError
		switch {
		case err == nil:
			m.batches++
			m.flights = append(m.flights, flight{m.batches, slices.Clone(load)})
			m.queue = append(m.queue[:0], m.queue[len(load):]...)
			m.waitSinceNow()
		case len(load) > 1 && !errors.Is(err, os.ErrDeadlineExceeded):
			// Too many descriptors in flight for a process without privileges
			// (ETOOMANYREFS counts those of all its sockets), or too much to
			// say: fewer at once may pass.
			m.size = len(load) / 2
		case errors.As(err, &unfit):
			m.report("keep a connection that cannot move", err)
			m.resume(m.queue[:1], stays)
			m.queue = append(m.queue[:0], m.queue[1:]...)
		default:
			m.stuck = true // tick tries again
		}
	}
}

// batch is what goes next.
func (m *mover) batch() []*parked {
	n, weight := 0, 0
	for n < len(m.queue) && n < m.size {
		if weight += m.queue[n].cargo.weight(); weight > fullManifest && n > 0 {
			break
		}
		n++
	}
	return m.queue[:n]
}

// dropClosed gives back what was closed while it waited: to send it would let
// live elsewhere what its owner has ended here.
func (m *mover) dropClosed() {
	m.queue = slices.DeleteFunc(m.queue, func(p *parked) bool {
		closed := p.conn.closed.Load()
		if closed {
			m.resume([]*parked{p}, kept)
		}
		return closed
	})
}

// answered lets go of what the peer took and resumes what it refused.
func (m *mover) answered(a message) {
	i := slices.IndexFunc(m.flights, func(f flight) bool { return f.batch == a.Batch })
	if i < 0 {
		m.report("ignore an acknowledgement", errors.New("of a batch that was not sent"))
		return
	}
	load := m.flights[i].load
	m.flights = slices.Delete(m.flights, i, i+1)
	refused, reason := make(map[int]bool, len(a.Refused)), "it gave no reason"
	for i, r := range a.Refused {
		if i == 0 {
			reason = r.Reason
		}
		if r.Index >= 0 && r.Index < len(load) {
			refused[r.Index] = true
		}
	}
	if a.Count == 0 { // a receiver that could not read the batch need not know what was in it
		for i := range load {
			refused[i] = true
		}
	}
	if len(refused) > 0 {
		m.report(fmt.Sprintf("keep %d connections that the other generation refused", len(refused)), errors.New(reason))
	}
	for i, p := range load {
		if refused[i] {
			m.resume(load[i:i+1], stays)
			continue
		}
		p.conn.account()
		p.verdict <- gone // the reader closes this process's copy, while others are on their way
	}
	if a.Count != len(load)-len(refused) {
		m.report("compare an acknowledgement", errors.New("the other generation counts differently"))
	}
	m.size = min(usualBatch, 2*m.size)
	if m.shut.CompareAndSwap(true, false) {
		m.look()
	}
}

// inspect notes what the kernel says of connections before they go.
func (m *mover) inspect(load []*parked) {
	for _, p := range load {
		if !m.verify || p.cargo.View != nil {
			continue
		}
		if err := p.inspect(); err != nil {
			m.report("look at a connection before its move", err)
		}
	}
}

// resume lets the readers of parked connections go on.
func (m *mover) resume(load []*parked, v verdict) {
	for _, p := range load {
		if err := p.restore(); err != nil {
			m.report("restore a connection that did not move", err)
		}
		p.conn.unpark()
		p.verdict <- v
	}
}

func (m *mover) tick() {
	m.stuck = false
	m.woken = 0 // some had a request to answer first, or have ended
	now := time.Now()
	switch {
	case len(m.queue) > 0 && now.Sub(m.since) > parkedMax:
		m.shut.Store(true)
		m.shutAt = now
		m.resume(m.queue, kept)
		m.queue = nil
		for _, c := range m.sleepers {
			c.awaited.Store(false)
		}
		m.sleepers = nil
	case !m.open() && len(m.flights) == 0 && now.Sub(m.shutAt) > retryAfter:
		m.shut.Store(false)
		m.look()
	}
}

// end settles what is open: v is the verdict for what the peer was sent and did not acknowledge.
func (m *mover) end(v verdict) {
	m.tracker.wishFor(nil)
	m.shut.Store(false) // nothing is wished for any more
	for {
		select {
		case a := <-m.acks:
			m.answered(a)
			continue
		default:
		}
		break
	}
	m.resume(m.queue, kept)
	for _, f := range m.flights {
		if v == kept {
			m.resume(f.load, kept)
			continue
		}
		for _, p := range f.load {
			if p.conn.end() { // otherwise the drain has, and counted it
				m.givenUp++
			}
			p.conn.unpark()
			p.verdict <- gone
		}
	}
	m.queue, m.flights = nil, nil
}
