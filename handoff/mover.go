package handoff

import (
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/zdt-dev/zdt/internal/wire"
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
	tracker  *tracker
	logger   *slog.Logger
	wants    atomic.Pointer[[]wire.Take]              // what the peer takes
	send     func(batch uint64, load []*parked) error // transmits; the descriptors stay the sender's
	begun    time.Time
	verify   bool // look at every connection before it goes
	offers   chan *parked
	acks     chan wire.Message // from the peer, in order
	news     chan struct{}     // wants has changed
	passed   chan struct{}     // declined has changed
	died     chan struct{}
	stop     chan struct{}
	done     chan struct{}
	once     sync.Once    // of stop
	dead     sync.Once    // of died
	declined atomic.Int32 // connections that were woken, or read anyway, and do not move
	shut     atomic.Bool  // offer nothing for now: the peer does not keep up

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
	// sayMax is how long the peer has to say what it takes. A program that says READY
	// before it serves is a moment late with that, and until then no
	// connection is closed for want of a taker.
	sayMax = 500 * time.Millisecond
	// gatherMax is how long a parked connection waits for others to go with.
	gatherMax = 2 * time.Millisecond
)

func newMover(t *tracker, logger *slog.Logger, takes []wire.Take, send func(uint64, []*parked) error) *mover {
	m := &mover{
		tracker: t, logger: logger, send: send, size: usualBatch, begun: time.Now(),
		offers: make(chan *parked), acks: make(chan wire.Message, 2*maxFlights), news: make(chan struct{}, 1), passed: make(chan struct{}, 1),
		died: make(chan struct{}), stop: make(chan struct{}), done: make(chan struct{}),
	}
	m.wants.Store(&takes)
	return m
}

// takes reports whether the peer can go on with such a connection.
func (m *mover) takes(protocol, listener string) bool {
	for _, t := range *m.wants.Load() {
		if t.Protocol == protocol && (t.Socket == "" || t.Socket == listener) {
			return true
		}
	}
	return false
}

// mayTake reports whether the peer takes such connections, or may still say so.
func (m *mover) mayTake(protocol, listener string) bool {
	return m.takes(protocol, listener) || time.Since(m.begun) < sayMax
}

// decline says that a connection was looked at and does not move, so that it is not
// waited for. It does not block.
func (m *mover) decline() {
	m.declined.Add(1)
	select {
	case m.passed <- struct{}{}:
	default:
	}
}

// accept changes what the peer takes. It does not block.
func (m *mover) accept(takes []wire.Take) {
	m.wants.Store(&takes)
	select {
	case m.news <- struct{}{}:
	default:
	}
}

func (m *mover) open() bool { return !m.shut.Load() }

func (m *mover) report(what string, err error) { m.logger.Warn(what, "error", err) }

// acknowledged passes the peer's answer to a batch on. It does not block: a
// peer that answers more than it was asked is not listened to.
func (m *mover) acknowledged(msg wire.Message) {
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
		case <-m.news:
			if m.open() { // else the end of the pause looks
				m.look() // those that nobody took are idle by now and have to be woken
			}
		case <-m.passed:
			m.woken = max(0, m.woken-int(m.declined.Swap(0)))
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
	all := m.tracker.wishFor(m)
	if len(*m.wants.Load()) == 0 {
		return // they may sleep: a list that comes makes it look again
	}
	for _, c := range all {
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
