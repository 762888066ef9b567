package cmd

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/zdt-dev/zdt/handoff/control"
)

// proveHandoff is one handoff under load.
type proveHandoff struct {
	handoffDoc
	At   time.Duration `json:"at"`   // since the start of the load; nanoseconds
	Took time.Duration `json:"took"` // from the signal to the end of the old process, or of the attempt
	// Connections are those of the old process at its end.
	Connections *control.Counts `json:"connections,omitempty"`
	Finished    bool            `json:"finished"` // the old process has ended
}

// handoffs lets the clients be on their own for a while, before each handoff and at the end, and hands over in between.
func (p *prover) handoffs(ctx context.Context) error {
	gap := p.o.Duration / time.Duration(p.o.Handoffs+1)
	for i := range p.o.Handoffs {
		p.progress.stage("%s, before the next handoff", plural(p.o.Clients, "client"))
		if err := pause(ctx, gap); err != nil {
			return err
		}
		if r := p.load.Report(); i == 0 && r.Losses() > 0 {
			return fail(ExitRefused, "mend that first, or choose another --path or --url", "requests fail without a handoff")
		}
		if err := p.handoff(ctx, i); err != nil {
			return err
		}
	}
	p.progress.stage("%s, after the last handoff", plural(p.o.Clients, "client"))
	return pause(ctx, gap)
}

// pause fails with what ended ctx.
func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// handoff hands over once and waits for the end of the old process.
func (p *prover) handoff(ctx context.Context, i int) error {
	t, err := p.f.handoffByName(ctx, p.o.Service) // who serves now
	if err != nil {
		return err
	}
	old, err := openPidfd(t.pid)
	if err != nil {
		return fail(ExitRefused, t.status, "main process %d: %w", t.pid, err)
	}
	defer old.close()
	pid := t.pid
	draining, leave := context.WithCancelCause(ctx)
	defer leave(nil)
	w := p.f.watchCounts(ctx, t, func() { leave(errTookOver) })
	defer w.close()
	if w.before.App != 0 {
		pid = w.before.App
	}
	which := ""
	if p.o.Handoffs > 1 {
		which = fmt.Sprintf("handoff %d of %d: ", i+1, p.o.Handoffs)
	}
	p.progress.stage("%spid %d starts a new process", which, pid)

	h := proveHandoff{handoffDoc: handoffDoc{Schema: "zdt.handoff/1", Incumbent: pid}, At: p.load.Report().Elapsed}
	end := p.load.Window()
	began := time.Now()
	err = p.f.handOver(ctx, t, &h.handoffDoc)
	if err == nil {
		p.progress.stage("%spid %d hands its connections over", which, pid)
		ended := func(ctx context.Context) error { return p.o.ended(ctx, old) }
		if isHelper(w.before) {
			ended = w.ended // the helper stays; it says when the old processes are gone
		}
		err = p.await(draining, t, pid, ended)
		h.Finished = err == nil
	}
	end()
	h.Took = time.Since(began)
	h.Connections = w.close()
	if h.ExitCode = codeOf(err); h.Outcome == "" {
		h.Outcome = "refused"
	}
	p.doc.Handoffs = append(p.doc.Handoffs, h)
	p.doc.TxID, p.doc.Changed = h.TxID, p.doc.Changed || h.Changed
	return err
}

// errTookOver: the old process does not end, because it has to serve on.
var errTookOver = errors.New("the new process died, and the old one took its connections back")

// await waits for the end of the old process.
func (p *prover) await(ctx context.Context, t handoffTarget, pid int, ended func(context.Context) error) error {
	ctx, cancel := context.WithTimeoutCause(ctx, p.o.Timeout, timedOut{p.o.Timeout})
	defer cancel()
	err := ended(ctx)
	switch cause := context.Cause(ctx); {
	case err == nil:
		return nil
	case errors.Is(cause, errTookOver):
		return fail(ExitRolledBack, t.status, "pid %d was handed over, but %w", pid, cause)
	case cause != nil && codeOf(cause) == ExitDeadline:
		return fail(ExitDeadline, t.status, "pid %d was handed over, and still has connections after %v", pid, p.o.Timeout)
	case cause != nil:
		return fail(codeOf(cause), t.status, "stopped waiting for pid %d to finish its connections: %w", pid, cause)
	}
	return fail(ExitUnexpected, t.status, "wait for the end of pid %d: %w", pid, err)
}

// countsWatcher follows the runtime of an old process to its end: only it knows what became of its connections. It is the
// service's word, and no part of the verdict.
type countsWatcher struct {
	before control.Status
	cancel context.CancelFunc
	done   chan struct{}
	gone   chan struct{} // closed when a helper has said that the old processes are gone
	once   sync.Once
	counts *control.Counts // once done is closed
}

// watchCounts calls back when the old process has to serve on.
func (f *factory) watchCounts(ctx context.Context, t handoffTarget, back func()) *countsWatcher {
	ctx, cancel := context.WithCancel(ctx)
	w := &countsWatcher{cancel: cancel, done: make(chan struct{}), gone: make(chan struct{})}
	client, before, err := f.connectRuntime(ctx, t.control, t.pid, t.uid)
	if err != nil {
		close(w.done)
		return w
	}
	w.before = before
	go func() {
		defer close(w.done)
		defer client.Close()
		for st, err := range client.Watch(ctx) {
			if err != nil {
				return
			}
			switch {
			case isHelper(st):
				if !w.group(st, back) {
					return
				}
			case st.Phase == control.Draining || st.Phase == control.Exited:
				c := st.Connections
				w.counts = &c
			case w.counts != nil:
				back()
			}
		}
	}()
	return w
}

// group takes in what a helper says of its process groups, until there is nothing more to say.
func (w *countsWatcher) group(st control.Status, back func()) (more bool) {
	if st.Generation == w.before.Generation {
		return true // not committed
	}
	if p := st.Predecessor; p != nil && p.Connections != (control.Counts{}) {
		c := p.Connections
		w.counts = &c
	}
	switch {
	case st.TookOver:
		back()
		return false
	case st.Predecessor == nil:
		close(w.gone)
		return false
	}
	return true
}

// ended waits until a helper has said that the old processes are gone.
func (w *countsWatcher) ended(ctx context.Context) error {
	select {
	case <-w.gone:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-w.done:
	}
	select {
	case <-w.gone:
		return nil
	default:
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	return errors.New("the helper does not say any more what it does")
}

// close ends the watching and returns the last counts, or nil. The old process is gone by then: its last words may be on
// their way yet.
func (w *countsWatcher) close() *control.Counts {
	w.once.Do(func() {
		limit := time.NewTimer(100 * time.Millisecond)
		defer limit.Stop()
		select {
		case <-w.done:
		case <-limit.C:
		}
		w.cancel()
		<-w.done
	})
	return w.counts
}
