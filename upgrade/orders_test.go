package upgrade

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/zdt-dev/zdt/release"
)

// ordered runs an upgrade that gets an order at the beginning of a phase.
func (w *world) ordered(e Engine, p Phase, o Order) Report {
	orders := make(chan Order, 1)
	e.Orders = orders
	w.at(p, func() { orders <- o })
	return e.Run(w.t.Context())
}

func TestPromoteEndsTheBake(t *testing.T) {
	w := newWorld(t)
	e := w.engine(program(t, "good", "v2"))
	e.Options.Bake = time.Hour
	rep := w.ordered(e, Bake, Promote)
	w.want(rep, Upgraded, "", "")
	w.wantServing("v2")
	w.wantSmooth(rep)
}

func TestAbortByOrder(t *testing.T) {
	for _, phase := range []Phase{Listen, Bake} {
		t.Run(string(phase), func(t *testing.T) {
			w := newWorld(t)
			e := w.engine(program(t, "good", "v2"))
			e.Options.Bake = time.Hour
			rep := w.ordered(e, phase, Abort)
			if rep.Phase == Bake { // the order came when READY was there already
				phase = Bake
			}
			w.want(rep, Aborted, phase, "requested")
			w.wantOld()
			w.wantNextWorks()
			w.wantHistory(Aborted, Upgraded)
		})
	}
}

// After the commit an order comes too late.
func TestAbortTooLate(t *testing.T) {
	w := newWorld(t)
	rep := w.ordered(w.engine(program(t, "good", "v2")), Drain, Abort)
	w.want(rep, Upgraded, "", "")
	w.wantServing("v2")
}

// gates are made of two channels.
type testGates struct {
	passed  chan struct{}
	failed  chan error
	asked   Candidate
	stopped bool
	late    error // it fails with this when it settles
	settled bool
	doubt   string
}

func (g *testGates) gates(within time.Duration) *Gates {
	g.passed, g.failed = make(chan struct{}), make(chan error, 1)
	return &Gates{Within: within, Start: func(ctx context.Context, c Candidate, tell func(string)) GateWatch {
		g.asked = c
		tell("http 1/3")
		var wg sync.WaitGroup
		wg.Go(func() { <-ctx.Done() })
		settle := func(context.Context) {
			if g.settled = true; g.late != nil {
				g.failed <- g.late
			}
		}
		return GateWatch{Passed: g.passed, Failed: g.failed, Settle: settle, Wait: func() []GateResult { wg.Wait(); g.stopped = true; return []GateResult{{Gate: "test", Doubt: g.doubt}} }}
	}}
}

func TestGates(t *testing.T) {
	for _, tt := range []struct {
		name    string
		do      func(g *testGates)
		bake    time.Duration
		outcome Outcome
		cause   string
	}{
		{"pass", func(g *testGates) { close(g.passed) }, 0, Upgraded, ""},
		{"pass, then fail in the bake", func(g *testGates) { close(g.passed); g.failed <- errors.New("503") }, time.Hour, RolledBack, "503"},
		{"fail", func(g *testGates) { g.failed <- errors.New("gate http://x: 503") }, 0, RolledBack, "gate http://x: 503"},
		{"pass, and fail at the very end", func(g *testGates) { close(g.passed); g.late = errors.New("6 error lines") }, 0, RolledBack, "6 error lines"},
		{"pass with a doubt", func(g *testGates) { close(g.passed); g.doubt = "journald was started anew" }, 0, Upgraded, ""},
		{"say nothing", func(*testGates) {}, 0, RolledBack, "did not come to an end"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t)
			var g testGates
			e := w.engine(program(t, "good", "v2"))
			e.slack, e.Gates, e.Options.Bake = time.Second, g.gates(100*time.Millisecond), tt.bake
			w.at(Bake, func() { tt.do(&g) })
			rep := e.Run(t.Context())
			phase, reason := Phase(""), ""
			if tt.outcome != Upgraded {
				phase, reason = Bake, "health"
			}
			w.want(rep, tt.outcome, phase, reason)
			wantText(t, "cause", rep.Cause, tt.cause)
			if g.settled != (tt.outcome == Upgraded || g.late != nil) {
				t.Errorf("settled %t", g.settled)
			}
			if told := strings.Join(rep.Warnings, "\n"); strings.Contains(told, "gate test: journald was started anew") != (g.doubt != "") {
				t.Errorf("doubt %q, warnings %q", g.doubt, told)
			}
			if g.asked.PID != rep.Candidate || g.asked.Release != rep.To.ID || !g.stopped {
				t.Errorf("asked about %+v, stopped %t", g.asked, g.stopped)
			}
			told := false
			for _, u := range w.observed {
				told = told || u.Text == "http 1/3"
			}
			if !told && tt.outcome == Upgraded {
				t.Error("no progress was told")
			}
			if tt.outcome == Upgraded {
				w.wantServing("v2")
			} else {
				w.wantOld()
			}
			w.wantNextWorks()
		})
	}
}

// frozen makes an upgrade whose gate has failed, and which waits for a decision.
func (w *world) frozen() Report {
	w.t.Helper()
	var g testGates
	e := w.engine(program(w.t, "good", "v2"))
	e.Gates, e.Options.OnFailure, e.Options.Bake = g.gates(time.Second), OnFailureFreeze, time.Hour
	g.failed <- errors.New("503")
	rep := e.Run(w.t.Context())
	if rep.Outcome != Frozen || rep.ExitCode != 14 || rep.Phase != Bake || rep.Reason != "health" || rep.Deadline == nil {
		w.t.Fatalf("report %s", asJSON(rep))
	}
	wantText(w.t, "hint", rep.Hint, "zdt promote web or zdt abort web")
	txn, err := w.store.ReadTxn()
	if err != nil || !txn.Frozen || txn.Phase != release.PhaseBake {
		w.t.Fatalf("record %+v, %v", txn, err)
	}
	return rep
}

func TestFrozen(t *testing.T) {
	for _, order := range []Order{Promote, Abort} {
		t.Run(string(order), func(t *testing.T) {
			w := newWorld(t)
			frozen := w.frozen()
			// Nobody goes on by accident.
			rep := w.upgrade(program(t, "good", "v3"))
			if rep.Outcome != Refused || !strings.Contains(rep.Cause, "is frozen (health)") {
				t.Fatalf("report %s", asJSON(rep))
			}
			if rep := w.engine("").Settle(t.Context(), Finish); rep.Outcome != Refused {
				t.Fatalf("report %s", asJSON(rep))
			}
			w.observed = nil
			rep = w.engine("").Settle(t.Context(), order)
			if rep.TxID != frozen.TxID {
				t.Errorf("transaction %s, was %s", rep.TxID, frozen.TxID)
			}
			if order == Promote {
				w.want(rep, Upgraded, "", "")
				w.wantServing("v2")
				w.wantHistory(Upgraded)
			} else {
				if rep.Outcome != Aborted || rep.Cause != "" {
					t.Fatalf("report %s", asJSON(rep))
				}
				w.wantOld()
				w.wantHistory(Aborted)
			}
			w.wantNextWorks()
		})
	}
}

// A candidate that dies leaves no choice.
func TestNotFrozen(t *testing.T) {
	w := newWorld(t)
	e := w.engine(program(t, "crash-after-ready", "v2"))
	e.Options.OnFailure, e.Options.Bake = OnFailureFreeze, time.Hour
	rep := e.Run(t.Context())
	w.want(rep, RolledBack, rep.Phase, "crashed")
	w.wantOld()
}

// The frozen candidate dies before anybody decides: the upgrade is undone, and told to whoever comes.
func TestFrozenCandidateDies(t *testing.T) {
	w := newWorld(t)
	frozen := w.frozen()
	p, err := openProcess(frozen.Candidate)
	if err != nil {
		t.Fatal(err)
	}
	defer p.close()
	if err := unix.Kill(frozen.Candidate, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	until(t, "the incumbent serves alone", func() bool { s := w.status(); return s.Phase == "idle" && s.Handoff == nil })
	rep := w.engine("").Settle(t.Context(), Promote)
	if rep.Outcome != Refused || !strings.Contains(rep.Cause, "is on probation any more") {
		t.Fatalf("report %s", asJSON(rep))
	}
	rep = w.engine("").Settle(t.Context(), Finish)
	if rep.Outcome != Interrupted || rep.Cause != "" {
		t.Fatalf("report %s", asJSON(rep))
	}
	if e := w.wantHistory(Interrupted)[0]; e.Reason != "health" {
		t.Errorf("history %+v", e)
	}
	w.wantNextWorks()
}

// A zdt was killed: what it left is finished or undone on demand.
func TestSettleAfterAKill(t *testing.T) {
	for _, tt := range []struct {
		at      string
		order   Order
		outcome Outcome
		serves  string
	}{
		{"after record bake", Finish, Interrupted, "v1"},
		{"after record bake", Abort, Aborted, "v1"},
		{"after record bake", Promote, Upgraded, "v2"}, // as long as the incumbent waits
		{"before record drain", Finish, Upgraded, "v2"},
		{"before record drain", Abort, Refused, "v2"},
		{"after signal", Abort, Aborted, "v1"},
	} {
		t.Run(tt.at+" "+string(tt.order), func(t *testing.T) {
			w := newWorld(t)
			w.killed(program(t, "good", "v2"), tt.at)
			if tt.order == Promote {
				until(t, "the candidate is held", func() bool { return w.status().Phase == "held" })
			}
			rep := w.engine("").Settle(t.Context(), tt.order)
			if rep.Outcome != tt.outcome || (rep.Cause == "") != (tt.outcome != Refused) {
				t.Fatalf("report %s", asJSON(rep))
			}
			w.wantServing(tt.serves)
			history := tt.outcome
			if tt.outcome == Refused {
				history = Upgraded
				wantText(t, "cause", rep.Cause, "its release serves already")
			}
			w.wantHistory(history)
			if rep := w.engine("").Settle(t.Context(), Finish); rep.Outcome != Refused {
				t.Errorf("settled twice: %s", asJSON(rep))
			}
			w.wantNextWorks()
		})
	}
}
