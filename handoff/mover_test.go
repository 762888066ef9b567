package handoff

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/zdt-dev/zdt/internal/wire"
)

// The mover by itself, on a clock of its own: what it does with a wire that
// does not take what it is given, and with a peer that answers nonsense.

// fleet is a generation's connections and the mover that wants them. The wire
// is a function.
type fleet struct {
	t       *testing.T
	tracker *tracker
	m       *mover
	ships   []*ship
	running sync.WaitGroup
}

// ship is a connection whose reader answers lines, and its client.
type ship struct {
	c      *conn
	client net.Conn
	r      *bufio.Reader
	ended  chan error // the reader's last error
}

// movedPipe is a tracked connection over a pipe.
type movedPipe struct {
	net.Conn
	conn
}

// A peer that has not said what it takes may still do so, for a moment.
func TestMoverWaitsForAList(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMover(newTracker(), quiet(), nil, nil)
		if m.takes("line/1", "") || !m.mayTake("line/1", "") {
			t.Error("given up at once")
		}
		time.Sleep(sayMax)
		if m.mayTake("line/1", "") {
			t.Error("still waiting")
		}
		m.accept([]wire.Take{{Protocol: "line/1"}})
		if !m.takes("line/1", "") || !m.mayTake("line/1", "") || m.takes("chat/1", "") {
			t.Error("a late list counts for nothing")
		}
	})
}

// newFleet has n idle connections. Call it inside of a synctest bubble.
func newFleet(t *testing.T, n int, send func(batch uint64, load []*parked) error) *fleet {
	f := &fleet{t: t, tracker: newTracker()}
	f.m = newMover(f.tracker, quiet(), []wire.Take{{Protocol: "line/1"}}, send)
	for range n {
		f.launch()
	}
	synctest.Wait()
	return f
}

func (f *fleet) launch() *ship {
	client, server := net.Pipe()
	p := &movedPipe{Conn: server}
	c := &p.conn
	f.tracker.add(c, server, "")
	c.protocol = "line/1"
	c.rec.begin()
	c.set(connIdle)
	s := &ship{c: c, client: client, r: bufio.NewReader(client), ended: make(chan error, 1)}
	f.ships = append(f.ships, s)
	f.running.Go(func() {
		buf := make([]byte, 64)
		line := ""
		for {
			n, err := c.read(buf)
			if err != nil {
				c.close()
				s.ended <- err
				return
			}
			line += string(buf[:n])
			if text, ok := strings.CutSuffix(line, "\n"); ok {
				line = ""
				c.rec.boundary(0)
				server.Write([]byte("served " + text + "\n"))
			}
		}
	})
	return s
}

// start runs the mover. The first batch is as full as can be.
func (f *fleet) start() {
	f.m.look()
	f.m.wake()
	synctest.Wait() // they are parked and offer themselves
	f.running.Go(f.m.run)
}

// end hangs up and waits for every goroutine.
func (f *fleet) end() {
	f.m.halt()
	for _, s := range f.ships {
		s.client.Close()
	}
	f.running.Wait()
}

// ask sends a line and waits for the answer.
func (s *ship) ask(text string) error {
	s.client.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := fmt.Fprintln(s.client, text); err != nil {
		return err
	}
	answer, err := s.r.ReadString('\n')
	if err == nil && answer != "served "+text+"\n" {
		err = fmt.Errorf("got %q", answer)
	}
	return err
}

// served asks on every connection at the same time, and returns how long the
// slowest answer took.
func (f *fleet) served(what string) time.Duration {
	f.t.Helper()
	began := time.Now()
	var all sync.WaitGroup
	for i, s := range f.ships {
		all.Go(func() {
			if err := s.ask(what); err != nil {
				f.t.Errorf("%s: connection %d: %v", what, i, err)
			}
		})
	}
	all.Wait()
	return time.Since(began)
}

// gone counts the connections whose readers were told that they moved.
func (f *fleet) gone() (n int) {
	f.t.Helper()
	for i, s := range f.ships {
		select {
		case err := <-s.ended:
			if !errors.Is(err, ErrMoved) {
				f.t.Errorf("connection %d ended: %v", i, err)
			}
			s.ended <- err
			n++
		default:
		}
	}
	return n
}

// takeAll is an answer to a batch.
func takeAll(batch uint64, n int) wire.Message {
	return wire.Message{Type: wire.Moved, Batch: batch, Count: n}
}

// A wire that takes no more than a few at once gets a few at once, and more
// again as soon as it can.
func TestMoverShrinksAndGrows(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var f *fleet
		room, most := 10, 0
		var sizes []int
		send := func(batch uint64, load []*parked) error {
			if len(load) > room {
				return fmt.Errorf("sendmsg: %w", syscall.ETOOMANYREFS)
			}
			sizes = append(sizes, len(load))
			most = max(most, len(load))
			if len(sizes) == 20 {
				room = maxBatch
			}
			n := len(load)
			f.running.Go(func() {
				time.Sleep(time.Millisecond)
				f.m.acknowledged(takeAll(batch, n))
			})
			return nil
		}
		f = newFleet(t, 1000, send)
		f.start()
		time.Sleep(parkedMax)
		synctest.Wait()
		if n := f.gone(); n != 1000 {
			t.Errorf("%d of 1000 have moved, in batches of %d", n, sizes)
		}
		if most < usualBatch {
			t.Errorf("the batches do not grow again: %d", sizes)
		}
		f.end()
		if open, ended, moved := f.tracker.snapshot(); len(open) != 0 || ended != 1000 || moved != 1000 {
			t.Errorf("%d open, %d ended, %d moved", len(open), ended, moved)
		}
	})
}

// A wire that never takes anything: requests are answered here, none waits for
// long, the wire is tried again now and then, and no more than that.
func TestMoverWithoutAWire(t *testing.T) {
	for _, tt := range []struct {
		name string
		err  error
		took time.Duration // by one try
	}{
		{"in flight too many", syscall.ETOOMANYREFS, 0},
		{"out of descriptors", syscall.EMFILE, 0},
		{"the peer does not read", os.ErrDeadlineExceeded, wire.BatchTimeout},
		{"the peer does not read, and others write", os.ErrDeadlineExceeded, 90 * time.Millisecond},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				tries := 0
				f := newFleet(t, 100, func(uint64, []*parked) error {
					tries++
					time.Sleep(tt.took)
					return tt.err
				})
				f.start()
				began := time.Now()
				for round := 0; time.Since(began) < 4*retryAfter; round++ {
					if took := f.served(fmt.Sprint(round)); took > 250*time.Millisecond {
						t.Errorf("a request waited for %v", took)
					}
					time.Sleep(17 * time.Millisecond)
				}
				if n := f.gone(); n != 0 {
					t.Errorf("%d have moved", n)
				}
				// Eight halvings, and then one a tick for as long as connections wait.
				if most := 4*(int(parkedMax/moverTick)+3) + 8; tries < 4 || tries > most {
					t.Errorf("%d tries in %v, want 4 to %d", tries, time.Since(began), most)
				}
				f.end()
			})
		})
	}
}

// What is wrong with one connection keeps no other one here.
func TestMoverWithOneThatCannot(t *testing.T) {
	for _, tt := range []struct {
		name string
		err  error
	}{
		{"too large", &unfitError{errors.New("too large")}},
		{"its descriptor is gone", &unfitError{net.ErrClosed}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var f *fleet
				tries := 0
				f = newFleet(t, 300, func(batch uint64, load []*parked) error {
					for _, p := range load {
						if p.conn == f.ships[7].c {
							tries++
							return tt.err
						}
					}
					n := len(load)
					f.running.Go(func() { f.m.acknowledged(takeAll(batch, n)) })
					return nil
				})
				f.start()
				time.Sleep(parkedMax)
				synctest.Wait()
				if n := f.gone(); n != 299 {
					t.Errorf("%d of 299 have moved", n)
				}
				if err := f.ships[7].ask("still here"); err != nil {
					t.Error(err)
				}
				before := tries
				time.Sleep(3 * retryAfter)
				if err := f.ships[7].ask("and here"); err != nil || tries != before {
					t.Errorf("%v; tried %d times more", err, tries-before)
				}
				f.end()
			})
		})
	}
}

// What the peer says of a batch decides about every connection in it: let go is
// what the peer has taken, and nothing else.
func TestMoverAcknowledged(t *testing.T) {
	const n = 20
	all := func(reason string) (r []wire.Refusal) {
		for i := range n {
			r = append(r, wire.Refusal{Index: i, Reason: reason})
		}
		return r
	}
	for _, tt := range []struct {
		name string
		acks []wire.Message // of batch 1
		gone int            // -1: parked, the peer has not answered
	}{
		{"all taken", []wire.Message{{Count: n}}, n},
		{"none taken", []wire.Message{{Refused: all("no room")}}, 0},
		{"none taken, in few words", []wire.Message{{Count: 0}}, 0},
		{"some refused", []wire.Message{{Count: n - 2, Refused: []wire.Refusal{{Index: 0, Reason: "a"}, {Index: 19, Reason: "b"}}}}, n - 2},
		{"refused twice", []wire.Message{{Count: n - 1, Refused: []wire.Refusal{{Index: 3, Reason: "a"}, {Index: 3, Reason: "b"}}}}, n - 1},
		{"refused what was not sent", []wire.Message{{Count: n, Refused: []wire.Refusal{{Index: -1, Reason: "a"}, {Index: n, Reason: "b"}, {Index: 1 << 40, Reason: "c"}}}}, n},
		{"none taken, refused what was not sent", []wire.Message{{Count: 0, Refused: []wire.Refusal{{Index: n, Reason: "b"}}}}, 0},
		{"of another batch", []wire.Message{{Batch: 7, Count: n}}, -1},
		{"of batch 0", []wire.Message{{Batch: 1 << 63, Count: n}}, -1},
		{"doubled", []wire.Message{{Count: n}, {Count: n, Refused: all("not any more")}}, n},
		{"many that mean nothing, then the true one", []wire.Message{{Batch: 2}, {Batch: 3}, {Batch: 4}, {Count: n}}, n},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFleet(t, n, func(uint64, []*parked) error { return nil })
				f.start()
				synctest.Wait()
				for _, a := range tt.acks {
					a.Type = wire.Moved
					if a.Batch == 0 {
						a.Batch = 1
					}
					f.m.acknowledged(a)
					synctest.Wait()
				}
				if gone := f.gone(); gone != max(0, tt.gone) {
					t.Errorf("%d are gone, want %d", gone, tt.gone)
				}
				for i, s := range f.ships {
					if parked := s.c.isParked(); parked != (tt.gone < 0) {
						t.Errorf("connection %d: parked %v", i, parked)
					}
				}
				// Those that stay are served, and not offered again and again.
				for i, s := range f.ships {
					if tt.gone >= 0 && !s.c.closed.Load() {
						if err := s.ask("still here"); err != nil {
							t.Errorf("connection %d: %v", i, err)
						}
					}
				}
				f.end()
			})
		})
	}
}

// More acknowledgements than batches hold nobody up.
func TestMoverIsNotFlooded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		busy := make(chan struct{})
		f := newFleet(t, 1, func(uint64, []*parked) error { <-busy; return nil })
		f.start()
		synctest.Wait()
		for range 1000 {
			f.m.acknowledged(takeAll(99, 1))
		}
		close(busy)
		synctest.Wait()
		f.m.acknowledged(takeAll(1, 1))
		synctest.Wait()
		if f.gone() != 1 {
			t.Error("the true acknowledgement was not heard after all the others")
		}
		f.end()
		f.m.acknowledged(takeAll(1, 1)) // after the end
	})
}

// The peer dies: what it has acknowledged is its own, everything else is
// served on, whether it was waiting, on its way or new.
func TestMoverPeerDies(t *testing.T) {
	for _, acked := range []int{0, 1, 2} {
		t.Run(fmt.Sprint(acked), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var mu sync.Mutex
				sent := map[uint64]int{}
				f := newFleet(t, 3*maxBatch, func(batch uint64, load []*parked) error {
					mu.Lock()
					defer mu.Unlock()
					sent[batch] = len(load)
					return nil
				})
				f.start()
				synctest.Wait()
				want := 0
				for b := range uint64(acked) {
					mu.Lock()
					n := sent[b+1]
					mu.Unlock()
					want += n
					f.m.acknowledged(takeAll(b+1, n)) // heard or not when the death is
				}
				f.m.peerDied()
				synctest.Wait()
				if n := f.gone(); n != want {
					t.Errorf("%d are gone, want %d", n, want)
				}
				f.launch()
				for i, s := range f.ships {
					if s.c.closed.Load() {
						continue
					}
					if err := s.ask("still here"); err != nil {
						t.Errorf("connection %d: %v", i, err)
					}
				}
				f.m.peerDied() // again is harmless, and so is a halt
				f.end()
				if open, _, moved := f.tracker.snapshot(); len(open) != 0 || moved != want {
					t.Errorf("%d open, %d moved", len(open), moved)
				}
			})
		})
	}
}

// A drain that gives up while batches are on their way to a peer that lives:
// the peer may have them, so they end here and are never read again.
func TestMoverHaltsWithFlights(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		inFlight := 0
		f := newFleet(t, 3*maxBatch, func(_ uint64, load []*parked) error { inFlight += len(load); return nil })
		f.start()
		synctest.Wait()
		f.m.halt()
		synctest.Wait()
		if n := f.gone(); n != inFlight || n < maxBatch/2 {
			t.Errorf("%d are gone, %d were on their way", n, inFlight)
		}
		for i, s := range f.ships {
			if !s.c.closed.Load() {
				if err := s.ask("still here"); err != nil {
					t.Errorf("connection %d: %v", i, err)
				}
			}
		}
		f.end()
		if _, ended, moved := f.tracker.snapshot(); moved != 0 || ended != 3*maxBatch {
			t.Errorf("%d ended, %d moved", ended, moved)
		}
	})
}

// A connection that its owner, or the drain, closes while it waits for its
// batch is closed, and does not live on elsewhere.
func TestMoverClosedWhileParked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var sent []*conn // the mover's until the end
		var ready atomic.Bool
		var f *fleet
		f = newFleet(t, 10, func(batch uint64, load []*parked) error {
			if !ready.Load() {
				return syscall.ETOOMANYREFS
			}
			for _, p := range load {
				sent = append(sent, p.conn)
			}
			n := len(load)
			f.running.Go(func() { f.m.acknowledged(takeAll(batch, n)) })
			return nil
		})
		f.start()
		synctest.Wait()
		victim := f.ships[3].c
		if !victim.isParked() {
			t.Error("not parked")
		}
		if err := victim.close(); err != nil {
			t.Error(err)
		}
		ready.Store(true)
		time.Sleep(2 * moverTick)
		for _, s := range f.ships {
			if s.c == victim {
				s.client.SetDeadline(time.Now().Add(time.Second))
				if _, err := s.client.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
					t.Errorf("want the end of the connection, got %v", err)
				}
				if err := <-s.ended; errors.Is(err, ErrMoved) {
					t.Errorf("its reader was told %v", err)
				}
			}
		}
		f.end()
		if len(sent) != 9 || slices.Contains(sent, victim) {
			t.Errorf("%d were sent, the closed one among them: %v", len(sent), slices.Contains(sent, victim))
		}
	})
}

// Connections that come and go, read and are closed at any time while a wire
// works badly: nobody hangs, and everybody is either served or gone. The race
// detector watches.
func TestMoverUnderFire(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var f *fleet
		var calls atomic.Int32
		f = newFleet(t, 100, func(batch uint64, load []*parked) error {
			n := len(load)
			switch k := calls.Add(1); {
			case k%5 == 0:
				return syscall.ETOOMANYREFS
			case k%7 == 0:
				time.Sleep(wire.BatchTimeout)
				return os.ErrDeadlineExceeded
			}
			answer := wire.Message{Type: wire.Moved, Batch: batch}
			for i := range n {
				if i%3 != 0 {
					answer.Refused = append(answer.Refused, wire.Refusal{Index: i, Reason: "by lot"})
				}
			}
			answer.Count = n - len(answer.Refused)
			f.running.Go(func() {
				time.Sleep(time.Duration(batch%5) * 40 * time.Millisecond)
				f.m.acknowledged(answer)
			})
			return nil
		})
		f.start()
		var clients sync.WaitGroup
		for i, s := range f.ships {
			clients.Go(func() {
				for k := 0; ; k++ {
					time.Sleep(time.Duration(i%13) * time.Millisecond)
					if err := s.ask(fmt.Sprint(k)); err != nil {
						if !s.c.closed.Load() {
							t.Errorf("connection %d: %v", i, err)
						}
						return
					}
					if k == 50+i {
						s.c.close()
					}
				}
			})
		}
		clients.Wait()
		f.end()
	})
}
