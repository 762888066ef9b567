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
	cancel   context.CancelFunc
	wg       sync.WaitGroup
	statuses chan control.Status
	lost     chan error // the watch on the incumbent ended
	units    <-chan Unit

	// What is known. Owned by the transaction's goroutine.
	incumbent *process
	candidate *process       // nil until the fork is known
	status    control.Status // the incumbent's latest
	watchErr  error          // its control connection ended with this
	unit      Unit
}

// gather starts to watch the incumbent, whose control connection client
// becomes the evidence's own.
func gather(ctx context.Context, h Host, client *control.Client, unit Unit) (*evidence, error) {
	ctx, cancel := context.WithCancel(ctx)
	e := &evidence{cancel: cancel, statuses: make(chan control.Status, 1), lost: make(chan error, 1), unit: unit}
	var err error
	if e.incumbent, err = openProcess(unit.MainPID); err != nil {
		cancel()
		client.Close()
		return nil, err
	}
	if e.units, err = h.WatchUnit(ctx); err != nil {
		cancel()
		client.Close()
		e.incumbent.close()
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
		e.lost <- errors.New("the incumbent said its last word")
	}()
	return e, nil
}

func (e *evidence) close() {
	e.cancel()
	e.wg.Wait()
	e.incumbent.close()
	e.candidate.close()
}

// verdict is what a phase concludes from the evidence.
type verdict int

const (
	undecided verdict = iota
	reached
	failed
)

// until waits until judge decides, and returns its error if it decided failed.
// A limit that passes is errLimit. judge runs on every news.
func (e *evidence) until(ctx context.Context, limit time.Duration, judge func() (verdict, error)) error {
	timer := time.NewTimer(limit)
	defer timer.Stop()
	incumbentGone, candidateGone := e.incumbent.gone, gone(e.candidate)
	lost := e.lost
	for {
		switch v, err := judge(); v {
		case reached:
			return nil
		case failed:
			return err
		}
		if candidateGone == nil && e.candidate != nil && !e.candidate.isGone() {
			candidateGone = gone(e.candidate)
		}
		select {
		case s := <-e.statuses:
			e.status = s
		case err := <-lost:
			// Whatever it still had said is in the channel before its end.
			select {
			case s := <-e.statuses:
				e.status = s
			default:
			}
			e.watchErr, lost = err, nil
		case u, ok := <-e.units:
			if !ok {
				return errors.New("systemd's bus connection was lost")
			}
			e.unit = u
		case <-incumbentGone:
			incumbentGone = nil
		case <-candidateGone:
			candidateGone = nil
		case <-timer.C:
			return errLimit
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

var errLimit = errors.New("time limit")

func gone(p *process) <-chan struct{} {
	if p == nil || p.isGone() {
		return nil
	}
	return p.gone
}

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
	if inside, err := h.InUnit(pid, e.unit); !p.isGone() && (err != nil || !inside) {
		p.close()
		if err == nil {
			err = fmt.Errorf("process %d, named as the candidate, is not in the control group of %s", pid, e.unit.Name)
		}
		return err
	}
	e.candidate = p
	return nil
}
