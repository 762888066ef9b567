package upgrade

import (
	"context"
	"errors"
	"time"

	"github.com/zdt-dev/zdt/journal"
)

// Candidate is a process on probation, as those see it who judge it.
type Candidate struct {
	Service, TxID string
	PID           int    // the process itself, under a helper the first one of its group
	Helper        int    // pid of the helper that started it; 0: it is its own runtime
	Release       string // its ID
	Exe           string
	// Since is the journal's end before it was started; "" when the journal cannot be read.
	Since string
}

// Gates are the checks that a candidate has to pass before it is committed. They are asked from its READY on to the
// end of its probation.
type Gates struct {
	// Within is the longest that one of them may take to pass.
	Within time.Duration
	// Start begins to ask; tell gets progress, one line at a time, from any goroutine. The watch ends with ctx.
	Start func(ctx context.Context, c Candidate, tell func(text string)) GateWatch
}

// GateWatch is what becomes of the gates.
type GateWatch struct {
	Passed <-chan struct{} // closed when all have passed
	Failed <-chan error    // one error at most: which gate failed, and why
	// Settle is called at the end of the probation: the gates take in what is on its way, and Failed has the failure if that makes
	// one fail. nil: there is nothing that comes late.
	Settle func(ctx context.Context)
	// Wait returns when nothing asks any more, after ctx has ended.
	Wait func() []GateResult
}

// GateResult is what a gate has said.
type GateResult struct {
	Gate        string        `json:"gate"`
	State       string        `json:"state"`                  // asking, passed, failed
	PassedAfter time.Duration `json:"passed_after,omitempty"` // nanoseconds
	Tries       int           `json:"tries"`
	OK          int           `json:"ok"`
	Others      int           `json:"others,omitempty"`  // connections that another process than the candidate's accepted; they do not count
	Unknown     int           `json:"unknown,omitempty"` // connections of which it was not to be seen who accepted them
	Blind       string        `json:"blind,omitempty"`   // why
	Errors      int           `json:"errors,omitempty"`  // error lines that the candidate wrote, of a gate that counts them
	Doubt       string        `json:"doubt,omitempty"`   // why there may have been more
	Last        string        `json:"last,omitempty"`    // what came of the last try
	Why         string        `json:"why,omitempty"`     // of a failure
}

// openGates begins to ask the gates about the candidate. close ends and joins them.
func (r *run) openGates() (closeGates func()) {
	if r.Gates == nil {
		return func() {}
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(r.ctx))
	lines := make(chan string, 16)
	w := r.Gates.Start(ctx, r.candidate(r.ev.candidate.pid, helperOf(r.before)), func(text string) {
		select {
		case lines <- text:
		default: // the next one says more
		}
	})
	r.ev.gatesPassed, r.ev.gateFailed, r.ev.gateLines, r.ev.gateSettle = w.Passed, w.Failed, lines, w.Settle
	return func() {
		cancel()
		r.noteGates(w.Wait())
		r.ev.gatesPassed, r.ev.gateFailed, r.ev.gateLines, r.ev.gateSettle = nil, nil, nil, nil
	}
}

// noteGates keeps what the gates have said. A verdict that rests on a log of which something may be missing is told as such.
func (r *run) noteGates(results []GateResult) {
	r.report.Gates = results
	for _, g := range results {
		if g.Doubt != "" && g.State != "failed" {
			r.warn("gate %s: %s", g.Gate, g.Doubt)
		}
	}
}

// settleGates has them take in what is on its way, and judges once more. An operator who promotes does not wait for that.
func (r *run) settleGates() error {
	if r.ev.gateSettle == nil || r.ev.order != "" {
		return nil
	}
	r.ev.gateSettle(r.ctx)
	r.ev.catchUp()
	_, err := r.judgeProbation()
	return err
}

func (r *run) candidate(pid, helper int) Candidate {
	return Candidate{Service: r.Options.Service, TxID: r.report.TxID, PID: pid, Helper: helper, Release: r.to.ID, Exe: r.to.Path, Since: r.cursor}
}

// bake watches the candidate on probation: only new connections see it, and
// the incumbent can take everything back.
func (r *run) bake() (string, error) {
	if err := r.writeAhead(Bake); err != nil {
		return "", err
	}
	if r.ev.candidate == nil {
		return "", failure(string(journal.ReasonProtocol), "%s never named its candidate", r.incumbent())
	}
	defer r.openGates()()
	err := r.ev.until(r.ctx, r.probation(), r.judgeProbation)
	if errors.Is(err, errLimit) && r.Gates != nil {
		// Alive for long enough: what is missing are answers.
		err = r.ev.until(r.ctx, r.Gates.Within+r.slack, func() (verdict, error) {
			if v, err := r.judgeProbation(); v != undecided {
				return v, err
			}
			if r.ev.allPassed {
				return reached, nil
			}
			return undecided, nil
		})
		if errors.Is(err, errLimit) {
			err = failure(string(journal.ReasonHealth), "the gates did not come to an end within %s", r.Gates.Within)
		}
	}
	if err == nil || errors.Is(err, errLimit) {
		err = r.settleGates()
	}
	if err != nil {
		return "", err
	}
	if r.ev.candidateGone() {
		return "", r.howItEnded()
	}
	took := round(r.now().Sub(r.phaseStart))
	switch {
	case r.ev.order == Promote:
		return "promoted after " + took, nil
	case r.Gates != nil:
		return "alive and well for " + took, nil
	}
	return "alive for " + round(r.probation()), nil
}

// judgeProbation fails as soon as anything speaks against the candidate.
func (r *run) judgeProbation() (verdict, error) {
	if v, err := r.judgeHandoff(); v != undecided {
		return v, err
	}
	if text := r.ev.gateLine; text != "" {
		r.ev.gateLine = ""
		r.progress(text)
	}
	switch {
	case r.ev.gateErr != nil:
		return failed, failure(string(journal.ReasonHealth), "%w", r.ev.gateErr)
	case r.ev.order == Promote:
		return reached, nil
	}
	return undecided, nil
}

// heldFor is how long the incumbent waits for zdt's decision before it decides by itself and aborts.
func (r *run) heldFor() time.Duration {
	d := r.probation()
	if r.Gates != nil {
		d = max(d, r.Gates.Within)
	}
	return d + holdMargin
}
