package upgrade

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/zdt-dev/zdt/handoff/control"
)

// wantOld holds the service against one that nothing happened to.
func (w *world) wantOld() {
	w.t.Helper()
	w.wantServing("v1")
	if current, err := w.store.Current(); err != nil || current.ID != w.v1.ID {
		w.t.Errorf("current is %s, %v", current.ID, err)
	}
	if s := w.status(); s.Armed != nil || s.Handoff != nil && s.Phase != control.Aborting {
		w.t.Errorf("left armed or held: %s", asJSON(s))
	}
}

func TestCandidateFails(t *testing.T) {
	text := filepath.Join(t.TempDir(), "text")
	if err := os.WriteFile(text, []byte("not a program"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		role, reason string
		phase        Phase
		cause        string
	}{
		{"crash", "crashed", Listen, "(exited, 1)"},
		{"exit0", "exited", Listen, "(exited, 0)"},
		{"hang", "ready-timeout", Listen, "did not say READY in time"},
		{"crash-after-ready", "crashed", Bake, "(exited, 1)"},
		{"text", "start-failed", Listen, "exec format error"},
	} {
		t.Run(tt.role, func(t *testing.T) {
			w := newWorld(t)
			binary := text
			if tt.role != "text" {
				binary = program(t, tt.role, "v2")
			}
			pid := w.systemd.mainPID()
			e := w.engine(binary)
			if tt.role == "hang" {
				e.Options.ReadyTimeout = 300 * time.Millisecond
			}
			rep := e.Run(t.Context())
			if tt.role == "crash-after-ready" && rep.Phase == Listen {
				tt.phase = Listen // it died before READY was looked at
			}
			w.want(rep, RolledBack, tt.phase, tt.reason)
			w.wantOld()
			wantText(t, "cause", rep.Cause, tt.cause)
			wantText(t, "action", rep.Action, "never stopped serving")
			if w.systemd.mainPID() != pid || (rep.Candidate == 0) != (tt.role == "text") {
				t.Errorf("main process %d, was %d; candidate %d", w.systemd.mainPID(), pid, rep.Candidate)
			}
			if entry := w.wantHistory(RolledBack)[0]; entry.Reason != tt.reason {
				t.Errorf("history: %+v", entry)
			}
			w.wantNextWorks()
			w.wantHistory(RolledBack, Upgraded)
		})
	}
}

// One test for each thing that can happen to a good candidate before the commit.
func TestUndoneBeforeTheCommit(t *testing.T) {
	for _, tt := range []struct {
		name    string
		prepare func(w *world)
		phase   Phase
		reason  string
		cause   string
		warning string
	}{
		{"candidate is killed", func(w *world) {
			w.at(Bake, func() { unix.Kill(w.status().Handoff.Candidate, unix.SIGKILL) })
		}, Bake, "crashed", "(killed, KILL)", ""},
		{"candidate is not in the unit", func(w *world) {
			w.host.InUnit = func(int, Unit) (bool, error) { return false, nil }
		}, Listen, reasonForeign, "is not in the control group of web.service", ""},
		{"somebody aborts", func(w *world) {
			w.at(Bake, func() { w.command(func(c *control.Client) { c.Abort(w.t.Context(), "", "not today") }) })
		}, Bake, "requested", "not today", ""},
		{"somebody aborts before the commit", func(w *world) {
			w.at(Commit, func() { w.command(func(c *control.Client) { c.Abort(w.t.Context(), "", "not today") }) })
		}, Commit, "requested", "not today", ""},
		{"SIGUSR1", func(w *world) {
			w.at(Bake, func() { unix.Kill(w.systemd.mainPID(), unix.SIGUSR1) })
		}, Bake, "signal", "SIGUSR1", ""},
		{"the watch on systemd is lost", func(w *world) {
			w.at(Bake, func() { w.systemd.hangUp(nil) })
		}, Bake, reasonSystemdLost, "the connection to systemd was lost", ""},
		{"systemd is lost", func(w *world) {
			w.at(Bake, func() { w.systemd.hangUp(errors.New("no bus")) })
		}, Bake, reasonSystemdLost, "the connection to systemd was lost", "is its own word"},
		{"another main process", func(w *world) {
			pid := w.systemd.mainPID()
			w.on = func(u Update) {
				switch {
				case u.Phase == Bake && u.State == Running:
					w.systemd.set(func(u *Unit) { u.MainPID = os.Getpid() })
				case u.Phase == Rollback && u.State == Running:
					w.systemd.set(func(u *Unit) { u.MainPID = pid })
				}
			}
		}, Bake, reasonMainPID, "systemd has", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t)
			pid := w.systemd.mainPID()
			tt.prepare(w)
			e := w.engine(program(t, "good", "v2"))
			e.slack = time.Second
			e.Options.Bake = 10 * time.Second // what happens ends it
			if tt.phase == Commit {
				e.Options.Bake = 0
			}
			rep := e.Run(t.Context())
			w.systemd.hangUp(nil)
			w.want(rep, RolledBack, tt.phase, tt.reason)
			w.wantOld()
			wantText(t, "cause", rep.Cause, tt.cause)
			wantText(t, "action", rep.Action, "never stopped serving")
			wantText(t, "warnings", strings.Join(rep.Warnings, "\n"), tt.warning)
			if w.systemd.mainPID() != pid {
				t.Error("another process serves")
			}
			w.wantHistory(RolledBack)
			w.wantNextWorks()
		})
	}
}

func (w *world) command(f func(*control.Client)) {
	c, err := control.Dial(w.t.Context(), filepath.Join(w.dir, "control.sock"))
	if err != nil {
		w.t.Error(err)
		return
	}
	defer c.Close()
	f(c)
}

func TestIncumbentDies(t *testing.T) {
	for _, phase := range []Phase{Stage, Listen, Bake, Commit} {
		for _, restart := range []bool{true, false} {
			name, outcome := string(phase)+" and is restarted", RolledBack
			if !restart {
				name, outcome = string(phase)+" and stays dead", NotRestored
			}
			t.Run(name, func(t *testing.T) {
				w := newWorld(t)
				w.systemd.restart = restart
				pid := w.systemd.mainPID()
				dead, err := openProcess(pid)
				if err != nil {
					t.Fatal(err)
				}
				defer dead.close()
				w.at(phase, func() {
					unix.Kill(pid, unix.SIGKILL)
					<-dead.gone
				})
				e := w.engine(program(t, "good", "v2"))
				e.slack = time.Second
				if phase == Bake {
					e.Options.Bake = 10 * time.Second
				}
				rep := e.Run(t.Context())
				switch {
				case phase == Stage:
					w.want(rep, Refused, Trigger, "")
				default:
					w.want(rep, outcome, phase, reasonIncumbentDied)
				}
				switch {
				case restart:
					until(t, "the unit is active again", func() bool { u, _, _ := w.systemd.state(); return u.ActiveState == "active" })
					w.wantOld()
					if phase != Stage {
						wantText(t, "action", rep.Action, "systemd started the old release again as pid")
					}
				case phase != Stage:
					wantText(t, "cause", rep.Cause, "web.service is failed (exit-code)")
					wantText(t, "hint", rep.Hint, "systemctl restart web.service starts release "+w.v1.ID)
				}
				if !restart {
					rep = w.upgrade(program(t, "good", "v3")) // it is started
					w.want(rep, Upgraded, "", "")
					w.wantServing("v3")
				}
				w.wantNextWorks()
			})
		}
	}
}

func TestIncumbentDiesInTheDrain(t *testing.T) {
	w := newWorld(t)
	w.block()
	pid := w.systemd.mainPID()
	w.at(Drain, func() { unix.Kill(pid, unix.SIGKILL) })
	rep := w.upgrade(program(t, "good", "v2"))
	w.want(rep, Upgraded, "", "")
	w.wantServing("v2")
	wantText(t, "warnings", strings.Join(rep.Warnings, "\n"), "without its last word", "is not known")
	w.wantNextWorks()
}

// The new main process dies while the old one still drains, which takes the
// service back. Every upgrade after that must not be taken for this one.
func TestSuccessorDiesInTheDrain(t *testing.T) {
	for _, old := range []bool{false, true} {
		name := "systemd 254"
		if old {
			name = "systemd 252"
		}
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.systemd.old = old
			end := w.block()
			w.at(Drain, func() { unix.Kill(w.systemd.mainPID(), unix.SIGKILL) })
			rep := w.upgrade(program(t, "good", "v2"))
			w.want(rep, RolledBack, Drain, "crashed")
			wantText(t, "cause", rep.Cause, "the new main process ended (killed, KILL)")
			wantText(t, "action", rep.Action, "took the service back")
			w.wantOld()

			w.on = nil
			rep = w.upgrade(program(t, "crash", "v3"))
			w.want(rep, RolledBack, Listen, "crashed")
			wantText(t, "action", rep.Action, "never stopped serving")
			end()
			w.wantNextWorks()
			w.wantHistory(RolledBack, RolledBack, Upgraded)
		})
	}
}

// After the drain nobody is left to take the service back: systemd starts the
// current release, which is still the old one.
func TestNewMainProcessDiesAtTheEnd(t *testing.T) {
	w := newWorld(t)
	w.at(Exit, func() {
		pid := w.systemd.mainPID()
		unix.Kill(pid, unix.SIGKILL)
		until(t, "systemd has noticed", func() bool { return w.systemd.mainPID() != pid })
	})
	rep := w.upgrade(program(t, "good", "v2"))
	if rep.Reason == reasonMainPID {
		rep.Reason = "crashed" // the pidfd was later than systemd
	}
	w.want(rep, RolledBack, Exit, "crashed")
	w.wantOld()
	w.wantNextWorks()
}

func TestStoppedInTheMiddle(t *testing.T) {
	for _, phase := range []Phase{Listen, Bake, Drain} {
		for _, firstCandidate := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, candidate first: %t", phase, firstCandidate), func(t *testing.T) {
				w := newWorld(t, "ZDT_DRAIN_TIMEOUT=300ms")
				w.block()
				w.at(phase, func() { w.systemd.stop(firstCandidate) })
				e := w.engine(program(t, "good", "v2"))
				e.Options.Bake = 5 * time.Second
				if phase == Drain {
					e.Options.Bake = 0
				}
				rep := e.Run(t.Context())
				if phase == Drain && rep.Phase == Exit {
					phase = Exit // the drain was over first
				}
				w.want(rep, NotRestored, phase, "stopping")
				wantText(t, "cause", rep.Cause, "told to stop", "web.service is inactive")
				if current, _ := w.store.Current(); current.ID != w.v1.ID {
					t.Errorf("current is %s", current.ID)
				}
				w.systemd.start()
				w.wantNextWorks()
			})
		}
	}
}

func TestSystemdIgnoresTheNewMainProcess(t *testing.T) {
	w := newWorld(t)
	w.systemd.mute = true
	e := w.engine(program(t, "good", "v2"))
	e.slack = time.Second
	rep := e.Run(t.Context())
	// The incumbent has drained and ended; systemd starts the old release.
	if rep.Reason != "systemd" {
		w.want(rep, RolledBack, Commit, "crashed")
	} else {
		w.want(rep, RolledBack, Commit, "systemd")
	}
	w.systemd.mute = false
	w.wantOld()
	w.wantNextWorks()
}

// Systemd is lost right after the commit. That alone must not cost the upgrade.
func TestSystemdIsLostAfterTheCommit(t *testing.T) {
	t.Run("for a moment", func(t *testing.T) {
		w := newWorld(t)
		w.at(Drain, func() { w.systemd.hangUp(nil) })
		rep := w.upgrade(program(t, "good", "v2"))
		w.want(rep, Upgraded, "", "")
		w.wantServing("v2")
	})
	t.Run("for good", func(t *testing.T) {
		w := newWorld(t)
		w.at(Drain, func() { w.systemd.hangUp(errors.New("no bus")) })
		e := w.engine(program(t, "good", "v2"))
		e.slack, e.Options.ReadyTimeout = 200*time.Millisecond, time.Second
		rep := e.Run(t.Context())
		if rep.Outcome != NotRestored || rep.Phase != Exit || rep.Reason != reasonSystemdLost {
			t.Fatalf("report %s", asJSON(rep))
		}
		wantText(t, "cause", rep.Cause, "no bus")
		w.wantHistory() // not known, and not told
		if txn, err := w.store.ReadTxn(); err != nil || txn.TxID != rep.TxID {
			t.Fatalf("record %+v, %v", txn, err)
		}
		w.systemd.hangUp(nil)
		w.wantNextWorks()
		w.wantHistory(Upgraded, Upgraded)
	})
}

// A release that failed by its own fault is marked; one that was undone for another reason is not, and one that works the
// next time is not any more.
func TestFailedReleaseIsMarked(t *testing.T) {
	w := newWorld(t)
	bad := w.upgrade(program(t, "crash", "v2"))
	w.want(bad, RolledBack, Listen, "crashed")
	good := program(t, "good", "v3")
	aborted := w.ordered(w.engine(good), Bake, Abort)
	w.want(aborted, Aborted, Bake, "requested")
	list, err := w.store.List()
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range list {
		if failed := r.Failed != nil; failed != (r.ID == bad.To.ID) {
			t.Errorf("release %s: failed %t", r.ID, failed)
		}
	}
	w.want(w.upgrade(good), Upgraded, "", "")
}
