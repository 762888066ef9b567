package upgrade

import (
	"fmt"
	"os"
	"strconv"
	"time"

	"github.com/zdt-dev/zdt/journal"
	"github.com/zdt-dev/zdt/release"
)

// now is the time by a clock that starts right and is never set: what is written down loses its monotonic reading, and the
// distance of two times in the report, the history and the progress is to be the time that passed all the same.
func (r *run) now() time.Time {
	return r.report.StartedAt.Add(r.Host.Now().Sub(r.report.StartedAt))
}

// begin, progress and end tell the observer and keep the timings.

func (r *run) begin(p Phase, text string) {
	r.phase, r.phaseStart = p, r.now()
	if phase := release.Phase(p); r.lock != nil && phase.Valid() {
		r.lock.SetPhase(phase) // for whoever waits; the lock itself does not depend on it
	}
	r.Observe(Update{Phase: p, State: Running, Text: text, At: r.phaseStart})
}

func (r *run) progress(text string) {
	now := r.now()
	r.Observe(Update{Phase: r.phase, State: Running, Text: text, At: now, Elapsed: now.Sub(r.phaseStart)})
}

func (r *run) end(s State, text string) {
	now := r.now()
	took := now.Sub(r.phaseStart)
	r.report.Timings = append(r.report.Timings, Timing{r.phase, s, took})
	r.Observe(Update{Phase: r.phase, State: s, Text: text, At: now, Elapsed: took})
}

// skipped tells of phases that this transaction does not have.
func (r *run) skipped(phases ...Phase) {
	now := r.now()
	for _, p := range phases {
		r.Observe(Update{Phase: p, State: Skipped, At: now})
	}
}

func (r *run) warn(format string, args ...any) {
	r.report.Warnings = append(r.report.Warnings, fmt.Sprintf(format, args...))
}

// event is an operator's event with what all of them carry.
func (r *run) event(kind journal.Kind, fields ...journal.Field) journal.Event {
	e := journal.Event{Kind: kind, TxID: r.report.TxID, Service: r.Options.Service, PID: os.Getpid(),
		Generation: uint64(r.report.Generation), Fields: fields}
	if r.report.From != nil {
		e.Fields = append(e.Fields, journal.Str(journal.FieldFrom, r.report.From.ID))
	}
	e.Fields = append(e.Fields, journal.Str(journal.FieldTo, r.to.ID))
	if r.Who.LoginUID != nil {
		e.Fields = append(e.Fields, journal.Str(journal.FieldLoginUID, strconv.FormatUint(uint64(*r.Who.LoginUID), 10)))
	}
	if r.Who.SudoUser != "" {
		e.Fields = append(e.Fields, journal.Str(journal.FieldSudoUser, r.Who.SudoUser))
	}
	return e
}

// were and had begin a sentence about so many things.
func were(n int, what string) string { return plural(n, what, " was", "s were") }
func had(n int, what string) string  { return plural(n, what, " had", "s had") }

func plural(n int, what, one, many string) string {
	if n == 1 {
		return "1 " + what + one
	}
	return fmt.Sprintf("%d %s%s", n, what, many)
}

func round(d time.Duration) string {
	switch {
	case d < 10*time.Millisecond:
		return d.Round(100 * time.Microsecond).String()
	case d < 10*time.Second:
		return d.Round(time.Millisecond).String()
	}
	return d.Round(time.Second).String()
}
