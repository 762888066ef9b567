package cmd

import (
	"context"
	"errors"
	"fmt"
	"syscall"
	"time"

	"github.com/zdt-dev/zdt/handoff/control"
	"github.com/zdt-dev/zdt/release"
)

// helperDoc is the document of zdt upgrade --helper.
type helperDoc struct {
	Schema   string   `json:"schema"`  // zdt.helper/1
	Outcome  string   `json:"outcome"` // upgraded, rolled-back, refused
	ExitCode ExitCode `json:"exit_code"`
	Changed  bool     `json:"changed"`
	Service  string   `json:"service"`
	PID      int      `json:"pid"` // of the helper, which keeps it
	App      int      `json:"app"` // and of the program, which notices nothing
	From     string   `json:"from,omitempty"`
	To       string   `json:"to,omitempty"`
	Cause    string   `json:"cause,omitempty"`
}

// helperPatience bounds the time until a newer helper is there, or has been refused: it
// is asked first, which has its own limit of 10 s.
const helperPatience = 20 * time.Second

// renewHelper has the helper of a service execute the zdt that is installed now.
func (f *factory) renewHelper(ctx context.Context, o upgradeOptions) error {
	h, err := f.openHost(ctx, o.Service)
	if err != nil {
		return err
	}
	defer h.close()
	txid, err := release.NewTxID()
	if err != nil {
		return err
	}
	holder := release.Holder{TxID: txid, Phase: release.PhaseTrigger, Since: f.now(), Who: release.Identify()}
	lock, err := release.Acquire(ctx, h.paths.Lock(o.Service), holder, o.Wait)
	if err != nil {
		return err
	}
	defer lock.Release()
	doc := helperDoc{Schema: "zdt.helper/1", Service: o.Service, Outcome: "refused", ExitCode: ExitRefused}
	err = f.renew(ctx, h, &doc)
	if err != nil {
		doc.ExitCode, doc.Cause = codeOf(err), err.Error()
	}
	if f.globals.output != outputText {
		if perr := f.print(doc); perr != nil {
			f.say("zdt: %v", perr)
		}
		return err
	}
	if err == nil {
		st := f.outStyle()
		head := fmt.Sprintf("%s %s: zdt run is %s now", st.good.Render(st.marks.ok), o.Service, clean(doc.To))
		if doc.From != doc.To {
			head += ", and was " + clean(doc.From)
		}
		_, err = fmt.Fprintln(f.Out, st.line(f.outWidth(), []string{head, fmt.Sprintf("pid %d and the program's %d stay", doc.PID, doc.App)}, []string{head}))
	}
	return err
}

func (f *factory) renew(ctx context.Context, h *host, doc *helperDoc) error {
	seams := h.seams()
	before, err := helperStatus(ctx, seams.Control)
	if err != nil {
		return &Failure{Code: ExitRefused, Err: err, Hint: f.zdt() + " status " + h.service}
	}
	if before.Helper == nil {
		return fail(ExitRefused, f.zdt()+" upgrade "+h.service+" upgrades the program", "the main process of %s is the program itself, and no helper", h.service)
	}
	doc.PID, doc.App, doc.From = before.PID, before.App, before.Helper.Version
	if err := seams.Signal(ctx, syscall.SIGHUP); err != nil {
		return &Failure{Code: ExitRefused, Err: fmt.Errorf("signal the helper: %w", err), Hint: hintOf(err)}
	}
	ctx, cancel := context.WithTimeoutCause(ctx, helperPatience, timedOut{helperPatience})
	defer cancel()
	retry := time.NewTicker(20 * time.Millisecond)
	defer retry.Stop()
	for {
		// While one helper becomes another nobody answers, for some milliseconds.
		now, err := helperStatus(ctx, seams.Control)
		switch {
		case err != nil && errors.Is(err, context.DeadlineExceeded) || ctx.Err() != nil:
		case err != nil || now.Helper == nil:
		case now.Helper.Renewals > before.Helper.Renewals:
			doc.Outcome, doc.ExitCode, doc.Changed, doc.To = "upgraded", ExitOK, true, now.Helper.Version
			return nil
		case now.Helper.Failures > before.Helper.Failures:
			doc.Outcome = "rolled-back"
			return fail(ExitRolledBack, f.journal(h.unit), "the helper goes on as it was: %s", now.Helper.Error)
		}
		select {
		case <-retry.C:
		case <-ctx.Done():
			return &Failure{Code: ExitDeadline, Err: fmt.Errorf("wait for the newer helper: %w", context.Cause(ctx)), Hint: f.zdt() + " status " + h.service}
		}
	}
}

func helperStatus(ctx context.Context, dial func(context.Context) (*control.Client, error)) (control.Status, error) {
	ctx, cancel := context.WithTimeout(ctx, controlPatience)
	defer cancel()
	c, err := dial(ctx)
	if err != nil {
		return control.Status{}, err
	}
	defer c.Close()
	return c.Status(ctx)
}
