package health

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/zdt-dev/zdt/internal/sockowner"
	"github.com/zdt-dev/zdt/journal"
)

// settleTime bounds the last look into the journal.
const settleTime = 2 * time.Second

// errorsKept is how many of the last lines a result has.
const errorsKept = 3

const doubtSilent = "nothing came from the journal: errors could not be counted"

// errorCount is what the candidate has written of errors, and whether that is too much.
type errorCount struct {
	gate Gate
	at   []time.Duration // of the last most+1 lines
	last []string        // the last lines themselves
}

// add takes one line in and returns why that is one too many, or "".
func (c *errorCount) add(line Line) string {
	text, _, _ := strings.Cut(line.Text[:min(len(line.Text), matchLimit)], "\n")
	c.last = append(c.last, fmt.Sprintf("%q", shown(text)))
	c.last = c.last[max(0, len(c.last)-errorsKept):]
	c.at = append(c.at, line.At)
	c.at = c.at[max(0, len(c.at)-c.gate.most-1):]
	if len(c.at) <= c.gate.most {
		return ""
	}
	// journald may write down what one process has written a little before what another has.
	span := slices.Max(c.at) - slices.Min(c.at)
	switch {
	case c.gate.per == 0:
		return fmt.Sprintf("the new process wrote %s, and %d are still fine", errorLines(len(c.at)), c.gate.most)
	case span <= c.gate.per:
		return fmt.Sprintf("the new process wrote %s within %s, and %d in %s are still fine", errorLines(len(c.at)), round(span), c.gate.most, short(c.gate.per))
	}
	return ""
}

// count asks an errors gate: it counts what the candidate writes with priority err or worse. It is judged by what is seen:
// that the journal tells nothing, or not all, is a doubt, and no failure. When settling is closed it takes in what is on its
// way and ends.
func (p Prober) count(ctx context.Context, g Gate, c Candidate, r *Result, tell func(), settling <-chan struct{}) {
	began := time.Now()
	pass := func() {
		r.State, r.PassedAfter = Passed, time.Since(began)
		tell()
	}
	if p.Lines == nil || c.Since == "" {
		r.Doubt = "the journal cannot be read: nothing was counted"
		pass()
		return
	}
	belongs := p.Belongs
	if belongs == nil {
		belongs = sockowner.Belongs
	}
	lines := p.Lines(ctx, c.Since)
	defer lines.Close()
	counted := errorCount{gate: g}
	see := func(line Line) (over bool) {
		switch {
		case line.Loss != "":
			r.Doubt = line.Loss
			tell()
		case line.Priority <= journal.PriErr && (line.PID == c.PID || belongs(line.PID, c.PID)):
			why := counted.add(line)
			r.Errors++
			r.Last = strings.Join(counted.last, ", ")
			if why != "" {
				r.fail(why)
			}
			tell()
		}
		return r.State == Failed
	}
	timer := time.NewTimer(g.within)
	defer timer.Stop()
	entries := lines.Entries
	silent, late := true, false
	for {
		select {
		case <-ctx.Done():
			return
		case line, ok := <-entries:
			if !ok {
				if ctx.Err() != nil {
					return
				}
				entries, r.Doubt = nil, errStopped.Error()
				tell()
				continue
			}
			if silent = false; r.Doubt == doubtSilent {
				r.Doubt = "" // it was late, and nothing is missing
			}
			if see(line) {
				return
			}
			if late && r.State == Asking {
				pass()
			}
		case <-timer.C:
			if silent && !late {
				late = true
				timer.Reset(journalPatience)
				continue
			}
			if silent {
				r.Doubt = doubtSilent
			}
			if r.State == Asking {
				pass()
			}
		case <-settling:
			ctx, cancel := context.WithTimeout(ctx, settleTime)
			rest, err := lines.Rest(ctx)
			cancel()
			for _, line := range rest {
				if see(line) {
					return
				}
			}
			if err != nil {
				r.Doubt = "there may be more errors than the journal tells: " + oneLine(err)
				tell()
			}
			return
		}
	}
}

func oneLine(err error) string {
	if joined := (interface{ Unwrap() []error })(nil); errors.As(err, &joined) {
		err = joined.Unwrap()[0]
	}
	return strings.ReplaceAll(err.Error(), "\n", "; ")
}
