package health

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/zdt-dev/zdt/journal"
)

// A candidate that writes too many errors fails. One of which nothing can be told does not, and that is said.
func TestErrors(t *testing.T) {
	const mine, child, theirs = 20, 21, 30
	bad := func(pid int, at time.Duration) Line {
		return Line{PID: pid, Text: fmt.Sprintf("no database (%s)", at), Priority: journal.PriErr, At: at + time.Hour}
	}
	fine := func(at time.Duration) Line {
		return Line{PID: mine, Text: "well", Priority: journal.PriWarning, At: at}
	}
	lost := Line{Loss: "journald left out 7 messages of web.service (rate limit)"}
	for _, tt := range []struct {
		what, gate string
		entries    map[time.Duration]Line // by when they come
		rest       []Line
		restErr    error
		ends       bool
		passed     time.Duration
		failed     time.Duration // -1: not; settleAt: by what came last
		why        string
		errors     int
		doubt      string
	}{
		{what: "none", gate: "errors:0", entries: map[time.Duration]Line{0: fine(0), 3 * time.Second: bad(theirs, 3*time.Second)}, passed: time.Second, failed: -1},
		{what: "as many as are fine", gate: "errors:2", entries: map[time.Duration]Line{0: bad(mine, 0), time.Minute: bad(child, time.Minute)}, passed: time.Second, failed: -1, errors: 2},
		{what: "one too many", gate: "errors:2", entries: map[time.Duration]Line{0: bad(mine, 0), time.Second / 2: fine(0), time.Minute: bad(child, time.Minute), 2 * time.Minute: bad(mine, 2*time.Minute)},
			passed: time.Second, failed: 2 * time.Minute, errors: 3,
			why: `gate errors:2: the new process wrote 3 error lines, and 2 are still fine (last: "no database (0s)", "no database (1m0s)", "no database (2m0s)")`},
		{what: "the first", gate: "errors:0", entries: map[time.Duration]Line{time.Second / 2: bad(mine, 0)}, passed: -1, failed: time.Second / 2, errors: 1, why: "1 error line, and 0 are still fine"},
		{what: "few at a time", gate: "errors:1/10s", entries: map[time.Duration]Line{0: bad(mine, 0), 11 * time.Second: bad(mine, 11*time.Second), 22 * time.Second: bad(mine, 22*time.Second)}, passed: time.Second, failed: -1, errors: 3},
		{what: "many at a time", gate: "errors:1/10s", entries: map[time.Duration]Line{0: bad(mine, 0), 11 * time.Second: bad(mine, 11*time.Second), 15 * time.Second: bad(mine, 15*time.Second)},
			passed: time.Second, failed: 15 * time.Second, errors: 3, why: "the new process wrote 2 error lines within 4s, and 1 in 10s are still fine"},
		// What a journald that was held up delivers at once was written over a longer time.
		{what: "late", gate: "errors:1/10s", entries: map[time.Duration]Line{20 * time.Second: bad(mine, 0), 20*time.Second + 1: bad(mine, 11*time.Second)}, passed: 6 * time.Second, failed: -1, errors: 2},
		{what: "at the very end", gate: "errors:0", entries: map[time.Duration]Line{0: fine(0)}, rest: []Line{fine(1), bad(mine, 5)}, passed: time.Second, failed: settleAt, errors: 1, why: "1 error line"},
		{what: "journald does not answer at the end", gate: "errors:0", entries: map[time.Duration]Line{0: fine(0)}, restErr: errors.New("connection refused"), passed: time.Second, failed: -1,
			doubt: "there may be more errors than the journal tells: connection refused"},
		{what: "rate limit", gate: "errors:0", entries: map[time.Duration]Line{0: fine(0), time.Minute: lost}, passed: time.Second, failed: -1, doubt: lost.Loss},
		{what: "rate limit at the end", gate: "errors:0", entries: map[time.Duration]Line{0: fine(0)}, rest: []Line{lost}, passed: time.Second, failed: -1, doubt: lost.Loss},
		{what: "silence", gate: "errors:0", passed: 6 * time.Second, failed: -1, doubt: "nothing came from the journal"},
		{what: "it ends", gate: "errors:0", ends: true, passed: 6 * time.Second, failed: -1, doubt: "nothing came from the journal"},
		{what: "at least", gate: "errors:0 for=30s", entries: map[time.Duration]Line{0: fine(0)}, passed: 30 * time.Second, failed: -1},
	} {
		t.Run(tt.what, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				began := time.Now()
				p := Prober{
					Belongs: func(pid, candidate int) bool { return pid == child && candidate == mine },
					Lines: func(ctx context.Context, since string) Lines {
						c := make(chan Line)
						for at, line := range tt.entries {
							go func() {
								time.Sleep(at)
								select {
								case c <- line:
								case <-ctx.Done():
								}
							}()
						}
						if tt.ends {
							close(c)
						}
						return Lines{Entries: c, Problem: func() error { return nil }, Close: func() {}, Rest: func(context.Context) ([]Line, error) { return tt.rest, tt.restErr }}
					},
				}
				w := p.Run(t.Context(), []Gate{gate(t, tt.gate)}, Candidate{PID: mine, Since: "cursor"}, nil)
				passed, failed := time.Duration(-1), time.Duration(-1)
				var why error
				settle := time.After(settleAt)
				for isPassed, over := w.Passed(), false; !over; {
					select {
					case <-isPassed:
						passed, isPassed = time.Since(began), nil
					case why = <-w.Failed():
						failed, over = time.Since(began), true
					case <-settle:
						w.Settle(t.Context())
						select {
						case why = <-w.Failed():
							failed = settleAt
						default:
						}
						over = true
					}
				}
				r := w.Close()[0]
				if passed != tt.passed || failed != tt.failed {
					t.Errorf("passed after %v, failed after %v; want %v and %v (%v)", passed, failed, tt.passed, tt.failed, why)
				}
				if tt.failed >= 0 && (why == nil || !strings.Contains(why.Error(), tt.why)) {
					t.Errorf("%v, want %q", why, tt.why)
				}
				if r.Errors != tt.errors || (r.Doubt == "") != (tt.doubt == "") || !strings.Contains(r.Doubt, tt.doubt) {
					t.Errorf("%d errors, doubt %q; want %d, %q", r.Errors, r.Doubt, tt.errors, tt.doubt)
				}
			})
		})
	}
	w := Prober{}.Run(t.Context(), []Gate{gate(t, "errors:0")}, Candidate{}, nil)
	<-w.Passed()
	w.Settle(t.Context())
	if r := w.Close()[0]; r.Doubt == "" {
		t.Errorf("nobody could read the journal, and it is as if there were no errors: %+v", r)
	}
}

// settleAt is when the watch of TestErrors settles.
const settleAt = 10 * time.Minute
