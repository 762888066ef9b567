package health

import (
	"context"
	"fmt"
	"sync"
	"time"
)

// Watch is what becomes of the gates that a Prober asks.
type Watch struct {
	passed chan struct{}
	failed chan error
	done   chan struct{}
	cancel context.CancelFunc

	settling   chan struct{} // closed when those that hear of things late shall come to their end
	settled    chan struct{} // closed when they have
	settleOnce sync.Once

	results []Result // belong to collect until done is closed
}

// Passed is closed when all gates have passed, and none has failed before.
func (w *Watch) Passed() <-chan struct{} { return w.passed }

// Failed delivers a *Failure when a gate fails, before all have passed or later. There is one at most: nothing is asked after it.
func (w *Watch) Failed() <-chan error { return w.failed }

// Wait waits for the end, which comes with that of the context, with Close or with a failure, and returns what each gate
// has said.
func (w *Watch) Wait() []Result {
	<-w.done
	return w.results
}

// Settle has the gates that hear of things late, errors:, take in what is on its way, and ends them; the others go on. When
// it has returned, Failed has the failure if that makes one fail. It waits for it until ctx ends.
func (w *Watch) Settle(ctx context.Context) {
	w.settleOnce.Do(func() { close(w.settling) })
	select {
	case <-w.settled:
	case <-w.done:
	case <-ctx.Done():
	}
}

// news is the progress of a gate, or that it has settled.
type news struct {
	Progress
	settled bool
}

// Close ends the watch and is Wait then.
func (w *Watch) Close() []Result {
	w.cancel()
	return w.Wait()
}

// Run begins to ask the gates about the candidate, whose pid the caller keeps from being another's until the watch has
// ended. It goes on until ctx ends, a gate fails or the watch is closed.
//
// observe gets all progress; it runs in one goroutine, which it must not block for long, and not after Wait has returned.
// It may be nil.
func (p Prober) Run(ctx context.Context, gates []Gate, c Candidate, observe func(Progress)) *Watch {
	ctx, cancel := context.WithCancel(ctx)
	w := &Watch{
		passed: make(chan struct{}), failed: make(chan error, 1), done: make(chan struct{}), cancel: cancel,
		settling: make(chan struct{}), settled: make(chan struct{}), results: make([]Result, len(gates)),
	}
	told := make(chan news)
	late := 0
	var askers sync.WaitGroup
	for i, g := range gates {
		w.results[i] = Result{Gate: g.String(), State: Asking, Need: g.successes}
		r := w.results[i]
		tell := func() { told <- news{Progress: Progress{i, r}} }
		if g.kind == kindErrors {
			late++
			askers.Go(func() {
				p.count(ctx, g, c, &r, tell, w.settling)
				told <- news{settled: true}
			})
			continue
		}
		askers.Go(func() { p.ask(ctx, g, c, &r, tell) })
	}
	go func() {
		askers.Wait()
		close(told)
	}()
	if observe == nil {
		observe = func(Progress) {}
	}
	go w.collect(told, late, observe)
	return w
}

// collect takes in the news of all gates.
func (w *Watch) collect(told <-chan news, late int, observe func(Progress)) {
	defer close(w.done)
	defer w.cancel()
	missing, over := len(w.results), false
	if missing == 0 {
		close(w.passed)
	}
	if late == 0 {
		close(w.settled)
	}
	for n := range told {
		if n.settled {
			if late--; late == 0 {
				close(w.settled)
			}
			continue
		}
		first := n.State == Passed && w.results[n.Index].State == Asking
		w.results[n.Index] = n.Result
		observe(n.Progress)
		if over {
			continue
		}
		if n.State == Failed {
			over = true
			w.failed <- &Failure{n.Result}
			w.cancel()
			continue
		}
		if first {
			if missing--; missing == 0 {
				close(w.passed)
			}
		}
	}
}

// ask asks one gate until ctx ends or it has failed. tell tells what r is.
func (p Prober) ask(ctx context.Context, g Gate, c Candidate, r *Result, tell func()) {
	switch g.kind {
	case kindJournal, kindSilence:
		p.listen(ctx, g, c, r, tell)
	default:
		poll(ctx, g, r, tell, func(ctx context.Context) answer { return p.try(ctx, g, c) })
	}
}

// try is one try of a gate.
func (p Prober) try(ctx context.Context, g Gate, c Candidate) answer {
	if g.kind == kindExec {
		return p.execute(ctx, g, c)
	}
	return p.connect(ctx, g, c)
}

// poll tries again and again. A try that ctx ended is not counted.
func poll(ctx context.Context, g Gate, r *Result, tell func(), try func(context.Context) answer) {
	began := time.Now()
	end := began.Add(g.within)
	for {
		now := time.Now()
		limit, cut := g.timeout, false
		if left := end.Sub(now); r.State == Asking && left < limit {
			limit, cut = left, true
		}
		tryCtx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("no end after %s", round(limit)))
		a := try(tryCtx)
		a.cut = cut && over(tryCtx)
		cancel()
		if ctx.Err() != nil {
			return
		}
		r.add(g, a, time.Since(began))
		next := now.Add(g.every)
		if r.State == Asking && (!next.Before(end) || !time.Now().Before(end)) {
			r.overdue(g)
		}
		tell()
		if r.State == Failed {
			return
		}
		timer := time.NewTimer(time.Until(next))
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return
		}
	}
}
