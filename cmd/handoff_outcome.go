package cmd

import (
	"context"
	"errors"
	"io/fs"
	"strconv"
	"time"

	"github.com/zdt-dev/zdt/handoff/control"
	"github.com/zdt-dev/zdt/journal"
)

// glanceAtDrain takes down what becomes of the connections, until the incumbent
// is done or ctx, that of next, ends. A successor that dies meanwhile is a handoff undone.
func glanceAtDrain(ctx context.Context, t handoffTarget, next func() (control.Status, error, bool), doc *handoffDoc, glance *time.Timer) error {
	for doc.Draining {
		st, err, ok := next()
		if err != nil || !ok {
			if ctx.Err() == nil { // it is gone, and did not say what became of them
				doc.Connections, doc.Draining = nil, false
			}
			return nil // the handoff stands
		}
		if l := st.Last; l != nil && l.TxID == doc.TxID && !l.Committed {
			if glance.Stop(); st.Phase == control.Starting {
				continue // a helper starts the earlier program again; nothing is good before that serves
			}
			doc.Changed, doc.Draining, doc.Connections, doc.Generation = false, false, nil, st.Generation
			return handoffVerdict(t, st, doc)
		}
		doc.count(st)
	}
	return nil
}

func (d *handoffDoc) count(st control.Status) {
	if isHelper(st) {
		d.Draining = st.Predecessor != nil
		if p := st.Predecessor; p != nil && p.Connections != (control.Counts{}) {
			c := p.Connections
			d.Connections = &c
		}
		return
	}
	c := st.Connections
	d.Connections, d.Draining = &c, st.Phase != control.Exited
}

// handoffRefusal explains why a runtime could not be used.
func handoffRefusal(t handoffTarget, err error) error {
	hint := t.status
	switch {
	case errors.Is(err, fs.ErrPermission):
		return fail(ExitNotAuthorised, "run it as root or as the service's user", "ask the runtime: %w", err)
	case errors.Is(err, errNoRuntime):
		hint = "the program has to use the handoff library or run under zdt run, and the unit needs RuntimeDirectory=zdt/NAME; to restart it: systemctl restart"
	}
	return fail(ExitRefused, hint, "%w", err)
}

// awaitOutcome follows the incumbent's statuses until the transaction
// doc.TxID is decided.
func (f *factory) awaitOutcome(ctx context.Context, t handoffTarget, next func() (control.Status, error, bool), before control.Status, doc *handoffDoc) error {
	doc.Outcome = "unknown"
	begun := false
	for {
		st, err, ok := next()
		switch {
		case err != nil && ctx.Err() != nil:
			return fail(codeOf(context.Cause(ctx)), t.status, "stopped waiting, the handoff goes on: %w", context.Cause(ctx))
		case err != nil || !ok:
			return f.lostSight(ctx, t, before, doc, err)
		}
		if h := st.Handoff; h != nil && h.TxID == doc.TxID {
			begun, doc.Candidate = true, h.Candidate
			if st.Phase == control.Held && h.Hold {
				doc.Outcome, doc.ReadyAfter = "held", h.ReadyAt.Sub(h.StartedAt)
				return nil
			}
		}
		if l := st.Last; l != nil && l.TxID == doc.TxID {
			return handoffVerdict(t, st, doc)
		}
		if begun || st.Armed != nil && st.Armed.TxID == doc.TxID && st.Refused == before.Refused {
			continue
		}
		if st.Refused > before.Refused && (st.Handoff == nil || st.Handoff.TxID != doc.TxID) {
			doc.Outcome, doc.Reason, doc.Detail = "refused", string(journal.ReasonRefused), st.LastRefusal
			return fail(ExitBusy, t.status, "handoff refused: %s", st.LastRefusal)
		}
		if st.Armed == nil && st.Handoff == nil && st.Attempts == before.Attempts && st.Phase != control.Exited {
			doc.Outcome = "refused"
			return fail(ExitRefused, t.status, "main process %d did not react to SIGUSR2", t.pid)
		}
	}
}

// lostSight: the incumbent is gone and did not say how it went. Its successor
// knows: it is the one that answers now.
func (f *factory) lostSight(ctx context.Context, t handoffTarget, before control.Status, doc *handoffDoc, err error) error {
	client, derr := f.dialControl(ctx, t.control)
	if derr == nil {
		defer client.Close()
		ctx, cancel := context.WithTimeout(ctx, controlPatience)
		defer cancel()
		st, serr := client.Status(ctx)
		if l := st.Last; serr == nil && st.PID == t.pid && l != nil && l.TxID == doc.TxID {
			return handoffVerdict(t, st, doc) // a helper, which has closed its connections
		}
		if serr == nil && st.PID != t.pid && st.Generation == before.Generation+1 {
			doc.Outcome, doc.Changed, doc.Candidate, doc.Generation = "committed", true, st.PID, st.Generation
			return nil
		}
	}
	if err == nil {
		err = errors.New("it ended")
	}
	return fail(ExitNotRestored, t.status, "the main process went away during the handoff: %w", err)
}

func handoffVerdict(t handoffTarget, st control.Status, doc *handoffDoc) error {
	l := st.Last
	if l.Candidate != 0 {
		doc.Candidate = l.Candidate
	}
	doc.Reason, doc.Detail, doc.Exit, doc.ReadyAfter, doc.Lost = l.Reason, l.Detail, l.Exit, l.ReadyAfter, l.Lost
	if l.Committed {
		doc.Outcome, doc.Changed, doc.Generation = "committed", true, st.Generation+1
		if isHelper(st) {
			doc.Generation = st.Generation
		}
		doc.count(st)
		return nil
	}
	doc.Outcome = "aborted"
	code := ExitRolledBack
	if st.Phase == control.Stopping || st.Phase == control.Exited {
		code = ExitNotRestored
	}
	hint := t.status
	if doc.Candidate != 0 {
		hint = "what the new process said: journalctl _PID=" + strconv.Itoa(doc.Candidate)
	}
	return fail(code, hint, "handoff undone (%s): %s", l.Reason, l.Detail)
}
