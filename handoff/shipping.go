package handoff

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/zdt-dev/zdt/internal/wire"
)

// This file is the mover's way with batches: what goes next, and what becomes of
// it when the peer answers, does not, or dies.

// flight is a batch that was sent and is not acknowledged.
type flight struct {
	batch uint64
	load  []*parked
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

// answered lets go of what the peer took and resumes what it refused.
func (m *mover) answered(a wire.Message) {
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
