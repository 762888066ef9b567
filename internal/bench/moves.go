package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"time"
)

// moving is how many connections move at once.
const moving = 4000

// moves measures what it costs to hand connections to a successor.
func moves(ctx context.Context, t *table, n int) error {
	t.title = fmt.Sprintf("Moving %d idle connections", moving)
	s, err := measureSpeed(ctx, n, moving)
	if err != nil {
		return fmt.Errorf("speed of moves: %w", err)
	}
	rate := func(name string, v []float64) { t.value(name, fmt.Sprintf("%.0f/s", quantile(v, 0.5)), "", true) }
	rate("SCM_RIGHTS, net.FileConn, close in the old process", s.bareClosed)
	rate("  until the new process has them, none closed", s.bare)
	rate("the library, from net/http, closed in the old process", s.library)
	rate("  with VerifyMoves", s.verified)
	x := quantile(s.closedRatios, 0.5)
	t.value("connections per second, ratio of neighbouring turns", fmt.Sprintf("%.2f", x), "≥ 0.80", x >= 0.8)
	t.value("  their 10th and 90th percentile", fmt.Sprintf("%.2f–%.2f", quantile(s.closedRatios, 0.1), quantile(s.closedRatios, 0.9)), "", true)
	t.value("  to those of which none were closed", fmt.Sprintf("%.2f", quantile(s.ratios, 0.5)), "", true)

	pauses, err := measurePauses(ctx, max(n/4, 1), moving)
	if err != nil {
		return fmt.Errorf("pauses of moves: %w", err)
	}
	for _, q := range []float64{0.5, 0.99, 1} {
		t.value(fmt.Sprintf("pause of a connection, %s", percentile(q)), ms(quantile(pauses, q)), "", true)
	}
	w, err := measureWaits(ctx, max(n/4, 1), moving)
	if err != nil {
		return fmt.Errorf("waits in moves: %w", err)
	}
	for _, q := range []float64{0.5, 0.99, 1} {
		d := quantile(w.during, q)
		target, met := "", true
		if q == 1 {
			target, met = "≤ 250.0 ms", d <= 250*time.Millisecond
		}
		t.value(fmt.Sprintf("answer to a request sent meanwhile, %s (else %s)", percentile(q), ms(quantile(w.before, q))), ms(d), target, met)
	}

	m, err := measureMemory(ctx, moving)
	if err != nil {
		return fmt.Errorf("memory of moves: %w", err)
	}
	kib := func(b float64) string { return fmt.Sprintf("%.1f KiB", b/1024) }
	t.value("memory of an idle connection, net/http alone", kib(m.bare), "", true)
	t.value("  with the library", kib(m.library), "", true)
	t.value("  moved, before its next request", kib(m.moved), "", true)
	t.value("  moved, after its next request", kib(m.used), "", true)
	return nil
}

func percentile(q float64) string {
	switch q {
	case 0.5:
		return "median"
	case 1:
		return "longest"
	}
	return fmt.Sprintf("%.0f %%", 100*q)
}

// speeds are connections per second. The ratios are the library's divided by those of the bare moves before and after.
type speeds struct {
	bare, bareClosed, library, verified []float64
	ratios, closedRatios                []float64
}

func measureSpeed(ctx context.Context, n, conns int) (r speeds, err error) {
	var services [2]*movingService
	for i, verify := range []string{"no", "yes"} {
		s, err := startMoving(ctx, "ZDT_VERIFY_MOVES="+verify)
		if err != nil {
			return r, err
		}
		defer s.stop()
		if s.conns, err = dial(s.http, conns); err != nil {
			return r, err
		}
		services[i] = s
	}
	bare, err := startCarrier(ctx, conns)
	if err != nil {
		return r, err
	}
	defer bare.stop()
	library := func(s *movingService) (float64, error) {
		if err := s.touch(); err != nil {
			return 0, err
		}
		moved, err := s.handOver(ctx)
		switch {
		case err != nil:
			return 0, err
		case moved.Moved != conns || s.status.Moves == nil || s.status.Moves.Taken != conns || s.status.Moves.Verified != 0 && s.status.Moves.Verified != conns:
			return 0, fmt.Errorf("%d of %d connections moved (%+v)", moved.Moved, conns, s.status.Moves)
		}
		return float64(conns) / time.Duration(moved.Ended-moved.Began).Seconds(), nil
	}
	rate := func(d time.Duration) float64 { return float64(conns) / d.Seconds() }
	for i := -1; i < n; i++ { // the first round warms up
		before, err := bare.move()
		if err != nil {
			return r, err
		}
		first, err := library(services[0])
		if err != nil {
			return r, err
		}
		second, err := library(services[0])
		if err != nil {
			return r, err
		}
		after, err := bare.move()
		if err != nil {
			return r, err
		}
		verified, err := library(services[1])
		if err != nil {
			return r, err
		}
		if ctx.Err() != nil {
			return r, ctx.Err()
		}
		if i < 0 {
			continue
		}
		r.bare = append(r.bare, rate(before.Built), rate(after.Built))
		r.bareClosed = append(r.bareClosed, rate(before.Closed), rate(after.Closed))
		r.library = append(r.library, first, second)
		r.verified = append(r.verified, verified)
		r.ratios = append(r.ratios, first/rate(before.Built), second/rate(after.Built))
		r.closedRatios = append(r.closedRatios, first/rate(before.Closed), second/rate(after.Closed))
	}
	return r, nil
}

// bareMover is a chain of carriers, as whoever measures has it.
type bareMover struct {
	*process
	conns []net.Conn
}

func startCarrier(ctx context.Context, n int) (b *bareMover, err error) {
	p, err := startProcess(ctx, roleCarrier, false)
	if err != nil {
		return nil, err
	}
	b = &bareMover{process: p}
	defer func() {
		if err != nil {
			b.stop()
		}
	}()
	var addr string
	if err := b.hear(&addr); err != nil {
		return nil, err
	}
	fmt.Fprintln(b.stdin, n)
	if b.conns, err = dial(addr, n); err != nil {
		return nil, err
	}
	return b, b.hear(&n)
}

func (b *bareMover) stop() {
	hangUp(b.conns)
	b.process.stop()
}

func (b *bareMover) move() (r carried, err error) {
	if _, err := io.WriteString(b.stdin, "move\n"); err != nil {
		return r, err
	}
	return r, b.hear(&r)
}

// measurePauses returns for each connection of each of n handoffs how long nobody could have answered: from the moment it
// was taken from its reader until it had another one.
func measurePauses(ctx context.Context, n, conns int) (all []time.Duration, err error) {
	s, err := startMoving(ctx)
	if err != nil {
		return nil, err
	}
	defer s.stop()
	if s.conns, err = dial(s.line, conns); err != nil {
		return nil, err
	}
	for i := -1; i < n; i++ {
		if err := s.open(ctx, conns); err != nil {
			return nil, err
		}
		if _, err := s.handOver(ctx); err != nil {
			return nil, err
		}
		var pauses []time.Duration
		for patience := 1000; len(pauses) < conns && patience > 0; patience-- { // the last ones may be on their way
			if err := ask(s.http, "/pauses", &pauses); err != nil {
				return nil, err
			}
		}
		if len(pauses) != conns {
			return nil, fmt.Errorf("%d of %d connections moved", len(pauses), conns)
		}
		if i >= 0 {
			all = append(all, pauses...)
		}
	}
	return all, nil
}

// waits is how long clients waited for answers.
type waits struct{ before, during []time.Duration }

// requestsMeanwhile is how many requests a second reach the idle connections while they move: few, so that they meet moves
// and not one another.
const requestsMeanwhile = 1000

// measureWaits hands over n times with a request now and then. What was sent between the commit and the last move counts as
// during, what was sent before the signal as before.
func measureWaits(ctx context.Context, n, conns int) (w waits, err error) {
	s, err := startMoving(ctx)
	if err != nil {
		return w, err
	}
	defer s.stop()
	if s.conns, err = dial(s.http, conns); err != nil {
		return w, err
	}
	for i := -1; i < n; i++ {
		if err := s.touch(); err != nil {
			return w, err
		}
		c := newCaller(s)
		go c.run()
		time.Sleep(100 * time.Millisecond) // of calls before
		signalled := now()
		moved, err := s.handOver(ctx)
		calls, callErr := c.stop()
		if err := errors.Join(err, callErr); err != nil {
			return w, err
		}
		for _, call := range calls {
			switch {
			case i < 0:
			case call.sent < signalled:
				w.before = append(w.before, call.took)
			case call.sent >= moved.Began && call.sent < moved.Ended:
				w.during = append(w.during, call.took)
			}
		}
	}
	return w, nil
}

// caller sends requests over connections of a service, each in its turn and in random order, without waiting for answers.
type caller struct {
	service *movingService
	ended   chan struct{} // to end
	done    chan struct{}
	wg      sync.WaitGroup

	mu    sync.Mutex
	calls []call
	err   error
}

type call struct {
	sent int64
	took time.Duration
}

func newCaller(s *movingService) *caller {
	return &caller{service: s, ended: make(chan struct{}), done: make(chan struct{})}
}

func (c *caller) run() {
	defer close(c.done)
	defer c.wg.Wait()
	pace := time.NewTicker(time.Second / requestsMeanwhile)
	defer pace.Stop()
	for _, i := range rand.Perm(len(c.service.conns)) {
		select {
		case <-pace.C:
		case <-c.ended:
			return
		}
		c.wg.Go(func() { c.call(i) })
	}
}

func (c *caller) call(i int) {
	conn, answer := c.service.conns[i], make([]byte, 4096)
	sent := now()
	_, err := io.WriteString(conn, request)
	if err == nil {
		_, err = conn.Read(answer)
	}
	took := time.Duration(now() - sent)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.calls = append(c.calls, call{sent, took})
	c.err = errors.Join(c.err, err)
}

func (c *caller) stop() ([]call, error) {
	close(c.ended)
	<-c.done
	return c.calls, c.err
}

// memory is what an idle connection costs a server, in bytes.
type memory struct{ bare, library, moved, used float64 }

func measureMemory(ctx context.Context, conns int) (m memory, err error) {
	bare, err := startProcess(ctx, roleBare, false)
	if err != nil {
		return m, err
	}
	defer bare.stop()
	var addr string
	if err := bare.hear(&addr); err != nil {
		return m, err
	}
	if m.bare, err = (&movingService{process: bare, http: addr}).perConnection(conns); err != nil {
		return m, err
	}
	s, err := startMoving(ctx)
	if err != nil {
		return m, err
	}
	defer s.stop()
	if _, err := s.handOver(ctx); err != nil {
		return m, err
	}
	var nothing, rest uint64
	if err := ask(s.http, "/memory", &nothing); err != nil {
		return m, err
	}
	if m.library, err = s.perConnection(conns); err != nil {
		return m, err
	}
	if _, err := s.handOver(ctx); err != nil {
		return m, err
	}
	if err := ask(s.http, "/memory", &rest); err != nil {
		return m, err
	}
	m.moved = (float64(rest) - float64(nothing)) / float64(conns)
	if err := s.touch(); err != nil {
		return m, err
	}
	if err := ask(s.http, "/memory", &rest); err != nil {
		return m, err
	}
	m.used = (float64(rest) - float64(nothing)) / float64(conns)
	return m, nil
}

// perConnection opens connections that send one request each, and returns what one of them costs.
func (s *movingService) perConnection(conns int) (float64, error) {
	var before, after uint64
	if err := ask(s.http, "/memory", &before); err != nil {
		return 0, err
	}
	var err error
	if s.conns, err = dial(s.http, conns); err != nil {
		return 0, err
	}
	if err := s.touch(); err != nil {
		return 0, err
	}
	err = ask(s.http, "/memory", &after)
	return (float64(after) - float64(before)) / float64(conns), err
}
