package upgrade

import (
	"context"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/zdt-dev/zdt/handoff/control"
	"github.com/zdt-dev/zdt/release"
)

// A service that is down is started with the new release.
func TestStartsWhatIsDown(t *testing.T) {
	w := newWorld(t)
	if err := w.systemd.stopJob(t.Context()); err != nil {
		t.Fatal(err)
	}
	rep := w.upgrade(program(t, "good", "v2"))
	w.want(rep, Upgraded, "", "")
	w.wantServing("v2")
	if rep.Gap != 0 || rep.Candidate != w.systemd.mainPID() {
		t.Errorf("report %s", asJSON(rep))
	}
	w.wantNextWorks()
	w.wantHistory(Upgraded, Upgraded)
}

// And stays down when the new release does not come up; what a start would start is what it was.
func TestDoesNotStart(t *testing.T) {
	for _, role := range []string{"crash", "hang", "crash-after-ready"} {
		t.Run(role, func(t *testing.T) {
			w := newWorld(t)
			w.systemd.restart = false
			if err := w.systemd.stopJob(t.Context()); err != nil {
				t.Fatal(err)
			}
			e := w.engine(program(t, role, "v2"))
			e.Options.ReadyTimeout, e.Options.DrainTimeout, e.slack = 300*time.Millisecond, 100*time.Millisecond, 500*time.Millisecond
			rep := e.Run(t.Context())
			if rep.Outcome != NotRestored || rep.ExitCode != 12 || rep.Changed {
				t.Fatalf("report %s", asJSON(rep))
			}
			wantText(t, "action", rep.Action, "is down again")
			if now, err := w.store.Current(); err != nil || now.ID != w.v1.ID {
				t.Errorf("current is %s, %v", now.ID, err)
			}
			w.systemd.start()
			w.wantServing("v1")
			w.wantNextWorks()
			w.wantHistory(NotRestored, Upgraded)
		})
	}
}

// A rollback of what is down goes to the release before the one that does not run.
func TestRollbackOfWhatIsDown(t *testing.T) {
	w := newWorld(t)
	w.committed("v2")
	if err := w.systemd.stopJob(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.want(w.rollback(""), Upgraded, "", "")
	w.wantServing("v1")
}

func TestRestart(t *testing.T) {
	w := newWorld(t)
	before := w.systemd.mainPID()
	e := w.engine(program(t, "good", "v2"))
	e.Options.Strategy = StrategyRestart
	rep := e.Run(t.Context())
	w.want(rep, Upgraded, "", "")
	w.wantServing("v2")
	if rep.Gap <= 0 || rep.Gap > time.Minute || w.systemd.mainPID() == before || rep.Incumbent != before {
		t.Errorf("report %s", asJSON(rep))
	}
	wantText(t, "warnings", strings.Join(rep.Warnings, "\n"), "nobody served for")
	w.wantNextWorks()
}

func TestRestartFails(t *testing.T) {
	for _, tt := range []struct {
		name, role, reason string
		phase              Phase
		do                 func(w *world, e *Engine)
		outcome            Outcome
	}{
		{"crash", "crash", "start-failed", Listen, nil, RolledBack},
		{"crash after READY", "crash-after-ready", "crashed", Bake, nil, RolledBack},
		{"gate", "good", "health", Bake, func(w *world, e *Engine) {
			var g testGates
			e.Gates = g.gates(time.Second)
			g.failed <- errors.New("503")
		}, RolledBack},
		{"a gate that hears of it at the end", "good", "health", Bake, func(w *world, e *Engine) {
			var g testGates
			e.Gates, e.Options.Bake = g.gates(time.Second), 0
			close(g.passed)
			g.late = errors.New("errors:5")
		}, RolledBack},
		{"a worker is started again", "good", "crashed", Bake, func(w *world, e *Engine) {
			p, baking := newProxy(w), make(chan struct{})
			e.Host = w.host
			w.at(Bake, func() { close(baking) })
			p.answer = func(op string, r *control.Response) bool {
				r.Status.Workers = &control.Workers{Want: 2, Ready: 2, Restarts: 3}
				if op == control.OpWatch {
					<-baking
					r.Status.Workers.Restarts++
				}
				return true
			}
		}, RolledBack},
		{"abort", "good", "requested", Bake, func(w *world, e *Engine) {
			orders := make(chan Order, 1)
			e.Orders = orders
			w.at(Bake, func() { orders <- Abort })
		}, Aborted},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t)
			e := w.engine(program(t, tt.role, "v2"))
			e.Options.Strategy, e.Options.Bake = StrategyRestart, 10*time.Second
			if tt.do != nil {
				tt.do(w, &e)
			}
			rep := e.Run(t.Context())
			if tt.role == "crash-after-ready" && rep.Phase == Listen {
				tt.phase = Listen
			}
			w.want(rep, tt.outcome, tt.phase, tt.reason)
			until(t, "the old release serves", func() bool { v, err := w.ask("/version"); return err == nil && v == "v1" })
			w.wantOld()
			if rep.Gap <= 0 {
				t.Errorf("no gap was measured: %s", asJSON(rep))
			}
			w.wantNextWorks()
		})
	}
}

// Who interrupts a restart gets the old program back.
func TestRestartInterrupted(t *testing.T) {
	w := newWorld(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	w.at(Bake, cancel)
	e := w.engine(program(t, "good", "v2"))
	e.Options.Strategy, e.Options.Bake = StrategyRestart, time.Hour
	w.want(e.Run(ctx), Interrupted, Bake, reasonInterrupted)
	w.wantOld()
	w.wantNextWorks()
}

// Who stops the service in the bake gets it stopped.
func TestStoppedAfterARestart(t *testing.T) {
	for name, terse := range map[string]bool{"told": false, "the news is skipped": true} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.systemd.terse = terse
			w.at(Bake, func() {
				w.systemd.stop(false)
				if terse {
					until(t, "its process is gone", func() bool { return len(w.systemd.processes()) == 0 })
				}
			})
			e := w.engine(program(t, "good", "v2"))
			e.Options.Strategy, e.Options.Bake = StrategyRestart, time.Hour
			rep := e.Run(t.Context())
			w.want(rep, NotRestored, Bake, "stopping")
			until(t, "it has stopped", func() bool { return w.systemd.mainPID() == 0 })
			if now, err := w.store.Current(); err != nil || now.ID != w.v1.ID {
				t.Errorf("current is %s, %v", now.ID, err)
			}
			w.systemd.start()
			w.wantServing("v1")
			w.wantNextWorks()
		})
	}
}

// A watchdog ends a program in the same way as a stop does, but nobody wants the service down.
func TestWatchdogAfterARestart(t *testing.T) {
	w := newWorld(t)
	w.at(Bake, func() {
		w.systemd.set(func(u *Unit) { u.ActiveState, u.Result = "deactivating", "watchdog" })
		unix.Kill(w.systemd.mainPID(), unix.SIGABRT)
	})
	e := w.engine(program(t, "good", "v2"))
	e.Options.Strategy, e.Options.Bake = StrategyRestart, time.Hour
	w.want(e.Run(t.Context()), RolledBack, Bake, "crashed")
	w.wantServing("v1")
	w.wantNextWorks()
}

// zdt was killed in the middle of a restart: what it left current was not proved.
func TestKilledInARestart(t *testing.T) {
	for _, tt := range []struct {
		name    string
		runs    string // the release that runs, "" for none
		phase   release.Phase
		undo    bool
		outcome Outcome
		serves  string
	}{
		{"before systemd stopped the old one", "v1", release.PhaseTrigger, false, Interrupted, "v1"},
		{"while nobody served", "", release.PhaseListen, false, Interrupted, "v1"},
		{"the new one serves", "v2", release.PhaseBake, false, Interrupted, "v1"},
		{"the new one serves, and is recorded", "v2", release.PhaseRecord, false, Upgraded, "v2"},
		{"the new one serves, could not be recorded", "v2", release.PhaseRecord, true, Interrupted, "v1"},
		{"down, and recorded", "", release.PhaseRecord, false, Upgraded, "v2"},
		{"down, and could not be recorded", "", release.PhaseRecord, true, Interrupted, "v1"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t)
			v2, err := w.store.Stage(t.Context(), program(t, "good", "v2"), release.StageOptions{})
			if err != nil {
				t.Fatal(err)
			}
			if tt.runs != "v1" {
				if err := w.systemd.stopJob(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			if err := w.store.Flip(v2); err != nil {
				t.Fatal(err)
			}
			if tt.runs == "v2" {
				w.systemd.start()
			}
			txid, err := release.NewTxID()
			if err == nil {
				err = w.store.WriteTxn(release.Txn{TxID: txid, Kind: release.KindUpgrade, Restart: true, Phase: tt.phase, Undo: tt.undo, From: w.v1.ID, To: v2.ID, Runner: release.Proc{PID: os.Getpid(), Start: 1}})
			}
			if err != nil {
				t.Fatal(err)
			}
			rep := w.engine("").Settle(t.Context(), Finish)
			if rep.Outcome != tt.outcome || rep.Cause != "" {
				t.Fatalf("report %s", asJSON(rep))
			}
			if tt.runs == "v2" && tt.outcome == Interrupted {
				wantText(t, "warnings", strings.Join(rep.Warnings, "\n"), "cut short after a restart, and ")
				if rep.Candidate != 0 {
					t.Errorf("candidate %d: it is the release from before that came up", rep.Candidate)
				}
			}
			if tt.runs == "" {
				w.systemd.start()
			}
			w.wantServing(tt.serves)
			w.wantHistory(tt.outcome)
			w.wantNextWorks()
		})
	}
}
