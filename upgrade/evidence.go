package upgrade

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/zdt-dev/zdt/handoff/control"
)

// evidence fuses what the control socket, systemd and pidfds say while a
// handoff goes on. The transaction's goroutine reads it; one goroutine feeds
// each source and ends with close.
type evidence struct {
	ctx      context.Context // of what feeds it
	cancel   context.CancelFunc
	wg       sync.WaitGroup
	statuses chan control.Status
	lost     chan error   // the watch on the incumbent ended
	units    <-chan Unit  // nil once systemd cannot be heard any more
	reloads  <-chan error // the end of ExecReload=; nil when none runs
	orders   <-chan Order // of an operator; nil: there are none
	// Of the gates; nil while none are asked.
	gatesPassed <-chan struct{}
	gateFailed  <-chan error
	gateLines   <-chan string
	gateSettle  func(context.Context)
	grace       <-chan time.Time

	// What is known. Owned by the transaction's goroutine.
	helper    bool           // the incumbent is one, see runtime.go
	incumbent *process       // the main process, as it was at the trigger
	server    *process       // who served then: the incumbent itself, or its program
	candidate *process       // nil until the fork is known
	exe       string         // what the incumbent says that the candidate executes
	status    control.Status // the incumbent's latest; no PID: none yet
	watchErr  error          // its control connection ended with this
	graceOver bool
	unit      Unit
	unitsLost bool
	reloadErr error
	order     Order // what an operator wants; an abort is not taken back
	allPassed bool  // the gates
	gateErr   error
	gateLine  string // the latest, until it is told
}

// gather starts to watch the incumbent, whose control connection client
// becomes the evidence's own. before is what it said in preflight.
func gather(ctx context.Context, h Host, client *control.Client, unit Unit, before control.Status) (*evidence, error) {
	ctx, cancel := context.WithCancel(ctx)
	e := &evidence{ctx: ctx, cancel: cancel, statuses: make(chan control.Status, 1), lost: make(chan error, 1), unit: unit, helper: isHelper(before)}
	var err error
	if e.incumbent, err = openProcess(unit.MainPID); err == nil {
		e.server = e.incumbent
		if e.helper {
			e.server, err = openProcess(before.App)
		}
	}
	if err == nil {
		e.units, err = h.WatchUnit(ctx)
	}
	if err != nil {
		client.Close()
		e.close()
		return nil, err
	}
	e.wg.Add(1)
	go func() {
		defer e.wg.Done()
		defer client.Close()
		for s, err := range client.Watch(ctx) {
			if err != nil {
				e.lost <- err
				return
			}
			select {
			case e.statuses <- s:
			case <-ctx.Done():
				return
			}
		}
		e.lost <- errLastWord
	}()
	return e, nil
}

var errLastWord = errors.New("the incumbent said its last word")

func (e *evidence) close() {
	e.cancel()
	e.wg.Wait()
	e.incumbent.close()
	e.server.close() // closed twice where it is the incumbent, which is no error
	e.candidate.close()
}

// verdict is what a phase concludes from the evidence.
type verdict int

const (
	undecided verdict = iota
	reached
	failed
)

// endGrace is how long the end of the incumbent and the end of its watch may
// lie apart. What it said last, counts of cut connections among it, may arrive
// after the news of its death.
const endGrace = 500 * time.Millisecond

// until waits until judge decides, and returns its error if it decided failed.
// A limit that passes is errLimit. judge runs on every news.
func (e *evidence) until(ctx context.Context, limit time.Duration, judge func() (verdict, error)) error {
	timer := time.NewTimer(limit)
	defer timer.Stop()
	for {
		e.catchUp()
		switch v, err := judge(); v {
		case reached:
			return nil
		case failed:
			return err
		}
		incumbentGone := gone(e.incumbent)
		if e.grace == nil && (incumbentGone == nil || e.watchErr != nil) {
			e.grace = time.After(endGrace)
		}
		select {
		case s := <-e.statuses:
			e.status = s
		case err := <-e.lost:
			e.ended(err)
		case u, ok := <-e.units:
			e.saw(u, ok)
		case err := <-e.reloads:
			e.reloads, e.reloadErr = nil, err
		case o := <-e.orders:
			e.obey(o)
		case <-e.gatesPassed:
			e.gatesPassed, e.allPassed = nil, true
		case err := <-e.gateFailed:
			e.gateFailed, e.gateErr = nil, err
		case e.gateLine = <-e.gateLines:
		case <-incumbentGone:
		case <-gone(e.candidate):
		case <-e.grace:
			e.graceOver = true
		case <-timer.C:
			return errLimit
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// catchUp takes in what has arrived already, so that nothing is judged by a
// state that is known to be over.
func (e *evidence) catchUp() {
	for {
		select {
		case s := <-e.statuses:
			e.status = s
		case err := <-e.lost:
			e.ended(err)
		case u, ok := <-e.units:
			e.saw(u, ok)
		case err := <-e.reloads:
			e.reloads, e.reloadErr = nil, err
		case o := <-e.orders:
			e.obey(o)
		case <-e.gatesPassed:
			e.gatesPassed, e.allPassed = nil, true
		case err := <-e.gateFailed:
			e.gateFailed, e.gateErr = nil, err
		default:
			return
		}
	}
}

// ended notes the end of the watch. Whatever the incumbent still had said is
// in the channel before.
func (e *evidence) ended(err error) {
	select {
	case s := <-e.statuses:
		e.status = s
	default:
	}
	e.watchErr = err
}

func (e *evidence) obey(o Order) {
	if e.order != Abort {
		e.order = o
	}
}

func (e *evidence) saw(u Unit, ok bool) {
	if !ok {
		e.units, e.unitsLost = nil, true
		return
	}
	e.unit = u
}

// over reports whether nothing more will be heard of the incumbent: it is gone
// and its last words were read.
func (e *evidence) over() bool {
	return e.incumbent.isGone() && (e.watchErr != nil || e.graceOver)
}

// deaf reports whether the incumbent lives but its watch ended: it closed its
// control socket, or somebody else did.
func (e *evidence) deaf() bool {
	return e.watchErr != nil && e.graceOver && !e.incumbent.isGone()
}

// candidateGone reports whether the candidate is known and has ended.
func (e *evidence) candidateGone() bool { return e.candidate != nil && e.candidate.isGone() }

var errLimit = errors.New("time limit")

// gone is closed at p's end; nil when there is nothing (more) to wait for.
func gone(p *process) <-chan struct{} {
	if p == nil || p.isGone() {
		return nil
	}
	return p.gone
}

// exitGrace is how long a process that ends may be outside of its control
// group already: in a hierarchy of version 1 exit(2) moves it to the root one
// before it counts as dead, and on a busy host its last steps take a while.
const exitGrace = 500 * time.Millisecond

// meet opens the candidate that the incumbent names, once, and proves that it
// is a process of the unit.
func (e *evidence) meet(h Host) error {
	if e.candidate != nil || e.status.Handoff == nil || e.status.Handoff.Candidate == 0 {
		return nil
	}
	pid := e.status.Handoff.Candidate
	p, err := openProcess(pid)
	if err != nil {
		return err
	}
	// The order matters: with the pidfd open, the control group read
	// afterwards is that process's own, or the process is gone.
	inside, err := h.InUnit(pid, e.unit)
	if (err != nil || !inside) && !p.endsWithin(exitGrace) {
		p.close()
		if err == nil {
			err = fmt.Errorf("process %d, named as the candidate, is not in the control group of %s", pid, e.unit.Name)
		}
		return err
	}
	e.candidate, e.exe = p, e.status.Handoff.Exe
	return nil
}
