package upgrade

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/zdt-dev/zdt/handoff/control"
)

// What is different under a helper, and that what is not works there as well.

// wantHelped holds a report against the life of a helper, which stays.
func (w *world) wantHelped(helper int) {
	w.t.Helper()
	if s := w.status(); w.systemd.mainPID() != helper || s.PID != helper || s.App == helper {
		w.t.Errorf("main process %d, was %d; program %d", w.systemd.mainPID(), helper, s.App)
	}
}

func TestUpgradeUnderAHelper(t *testing.T) {
	w := newWorld(t, helped)
	helper, before := w.systemd.mainPID(), w.status().App
	rep := w.upgrade(program(t, "good", "v2"))
	w.want(rep, Upgraded, "", "")
	w.wantServing("v2")
	w.wantSmooth(rep)
	w.wantHelped(helper)
	if rep.Incumbent != before || rep.Candidate != w.status().App || rep.Generation != 2 || rep.From.ID != w.v1.ID {
		t.Errorf("report: %s", asJSON(rep))
	}
	var phases []Phase
	for _, tm := range rep.Timings {
		phases = append(phases, tm.Phase)
	}
	if !slices.Equal(phases, Phases()) {
		t.Errorf("phases %v", phases)
	}
	if len(rep.Warnings) != 1 || rep.Connections != nil { // the journal; and a helper sees no connections
		t.Errorf("warnings %q, connections %+v", rep.Warnings, rep.Connections)
	}
	w.want(w.upgrade(program(t, "good", "v2")), Unchanged, "", "")
	w.wantHistory(Upgraded)
}

// script is a program that the kernel runs by an interpreter, which is no release.
func script(t *testing.T, role, version string) string {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "web-"+version)
	if err := os.WriteFile(path, append([]byte("#!"+self+" script"), trailer(role, version)...), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestScriptUnderAHelper(t *testing.T) {
	w := newWorld(t, helped)
	rep := w.upgrade(script(t, "good", "v2"))
	w.want(rep, Upgraded, "", "")
	w.wantServing("v2")
	for _, version := range []string{"v2", "v3"} { // the same again, and from script to script
		rep = w.upgrade(script(t, "good", version))
		if told := strings.Join(rep.Warnings, "\n"); strings.Contains(told, "no release") {
			t.Errorf("%s: the interpreter was taken for the program: %s", version, told)
		}
	}
	w.want(rep, Upgraded, "", "")
	w.wantServing("v3")
	w.want(w.upgrade(script(t, "crash", "v4")), RolledBack, Listen, "crashed")
	w.wantServing("v3")
}

func TestCandidateFailsUnderAHelper(t *testing.T) {
	for role, want := range map[string]struct {
		reason string
		phase  Phase
		cause  string
	}{
		"crash":             {"crashed", Listen, "(exited, 1)"},
		"exit0":             {"crashed", Listen, "(exited, 0)"},
		"hang":              {"ready-timeout", Listen, "did not say READY in time"},
		"crash-after-ready": {"crashed", Bake, "(exited, 1)"},
	} {
		t.Run(role, func(t *testing.T) {
			w := newWorld(t, helped)
			helper, before := w.systemd.mainPID(), w.status().App
			e := w.engine(program(t, role, "v2"))
			if role == "hang" {
				e.Options.ReadyTimeout = 300 * time.Millisecond
			}
			rep := e.Run(t.Context())
			if role == "crash-after-ready" && rep.Phase == Listen {
				want.phase = Listen // it died before READY was looked at
			}
			w.want(rep, RolledBack, want.phase, want.reason)
			w.wantOld()
			w.wantHelped(helper)
			wantText(t, "cause", rep.Cause, want.cause)
			wantText(t, "action", rep.Action, fmt.Sprintf("pid %d never stopped serving", before))
			w.wantNextWorks()
			w.wantHistory(RolledBack, Upgraded)
		})
	}
}

func TestUndoneUnderAHelper(t *testing.T) {
	for _, tt := range []struct {
		name    string
		prepare func(w *world)
		phase   Phase
		reason  string
		cause   string
	}{
		{"candidate is killed", func(w *world) {
			w.at(Bake, func() { unix.Kill(w.status().Handoff.Candidate, unix.SIGKILL) })
		}, Bake, "crashed", "(killed, KILL)"},
		{"candidate is not in the unit", func(w *world) {
			w.host.InUnit = func(int, Unit) (bool, error) { return false, nil }
		}, Listen, reasonForeign, "is not in the control group of web.service"},
		{"somebody aborts before the commit", func(w *world) {
			w.at(Commit, func() { w.command(func(c *control.Client) { c.Abort(w.t.Context(), "", "not today") }) })
		}, Commit, "requested", "not today"},
		{"SIGUSR1", func(w *world) {
			w.at(Bake, func() { unix.Kill(w.systemd.mainPID(), unix.SIGUSR1) })
		}, Bake, "signal", "SIGUSR1"},
		{"the watch on systemd is lost", func(w *world) {
			w.at(Bake, func() { w.systemd.hangUp(nil) })
		}, Bake, reasonSystemdLost, "the connection to systemd was lost"},
		{"systemd is lost", func(w *world) {
			w.at(Bake, func() { w.systemd.hangUp(errors.New("no bus")) })
		}, Bake, reasonSystemdLost, "the connection to systemd was lost"},
		{"it names itself", func(w *world) {
			newProxy(w).answer = func(op string, r *control.Response) bool {
				if h := r.Status.Handoff; h != nil {
					h.Candidate = r.Status.PID
				}
				return true
			}
		}, Commit, "protocol", "names itself as its candidate"},
		{"it names the program that serves", func(w *world) {
			newProxy(w).answer = func(op string, r *control.Response) bool {
				if h := r.Status.Handoff; h != nil {
					h.Candidate = r.Status.App
				}
				return true
			}
		}, Commit, "protocol", "which serves already"},
		{"the candidate is of the old release", func(w *world) {
			exe := w.host.Exe
			before := w.status().App
			w.host.Exe = func(pid int) (string, error) {
				if pid != before {
					return w.v1.Path, nil
				}
				return exe(pid)
			}
		}, Commit, reasonForeign, "and not the new release"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t, helped)
			helper := w.systemd.mainPID()
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
			w.wantHelped(helper)
			wantText(t, "cause", rep.Cause, tt.cause)
			wantText(t, "action", rep.Action, "never stopped serving")
			w.wantNextWorks()
			w.wantHistory(RolledBack, Upgraded)
		})
	}
}

// Nobody serves without the helper: its end is the service's, before and after the commit.
func TestHelperDies(t *testing.T) {
	for _, phase := range []Phase{Listen, Bake, Commit, Drain} {
		for _, restart := range []bool{true, false} {
			name, outcome := string(phase)+" and is restarted", RolledBack
			if !restart {
				name, outcome = string(phase)+" and stays dead", NotRestored
			}
			t.Run(name, func(t *testing.T) {
				w := newWorld(t, helped)
				w.systemd.restart = restart
				w.block()
				dead, err := openProcess(w.systemd.mainPID())
				if err != nil {
					t.Fatal(err)
				}
				defer dead.close()
				w.at(phase, func() {
					unix.Kill(dead.pid, unix.SIGKILL)
					<-dead.gone
				})
				e := w.engine(program(t, "good", "v2"))
				e.slack = time.Second
				if phase == Bake {
					e.Options.Bake = 10 * time.Second
				}
				rep := e.Run(t.Context())
				reason, where := reasonIncumbentDied, phase
				switch {
				case phase == Drain && rep.Reason == "crashed": // systemd has killed the program, too
					reason = "crashed"
				case phase == Listen && rep.Phase == Bake: // READY was there first
					where = Bake
				}
				w.want(rep, outcome, where, reason)
				if !restart {
					wantText(t, "cause", rep.Cause, "web.service is failed (exit-code)")
					w.systemd.start()
				} else {
					wantText(t, "action", rep.Action, "systemd started the old release again as pid")
				}
				until(t, "the unit is active again", func() bool { u, _, _ := w.systemd.state(); return u.ActiveState == "active" })
				w.wantOld()
				w.wantNextWorks()
			})
		}
	}
}

// The new program dies while the old one drains, and the helper starts the old one again.
func TestNewProgramDiesInTheDrain(t *testing.T) {
	w := newWorld(t, helped)
	helper, before := w.systemd.mainPID(), w.status().App
	end := w.block()
	w.at(Drain, func() { unix.Kill(w.status().App, unix.SIGKILL) })
	rep := w.upgrade(program(t, "good", "v2"))
	w.want(rep, RolledBack, Drain, "crashed")
	wantText(t, "cause", rep.Cause, "the new program ended (killed, KILL)")
	wantText(t, "action", rep.Action, "the helper started the old release again as pid")
	w.wantOld()
	w.wantHelped(helper)
	if s := w.status(); s.App == before || s.Generation != 3 || s.Predecessor == nil {
		t.Errorf("status %s", asJSON(s))
	}
	end()
	w.wantNextWorks()
	w.wantHistory(RolledBack, Upgraded)
}

// After the drain there is nobody to start it again but systemd.
func TestNewProgramDiesAtTheEnd(t *testing.T) {
	w := newWorld(t, helped)
	helper := w.systemd.mainPID()
	w.at(Exit, func() {
		unix.Kill(w.status().App, unix.SIGKILL)
		until(t, "systemd has noticed", func() bool { return w.systemd.mainPID() != helper })
	})
	rep := w.upgrade(program(t, "good", "v2"))
	w.want(rep, RolledBack, Exit, "crashed")
	wantText(t, "action", rep.Action, "systemd started the old release again as pid")
	w.wantOld()
	w.wantNextWorks()
}

func TestDrainUnderAHelper(t *testing.T) {
	w := newWorld(t, helped)
	before := w.status().App
	end := w.block()
	e := w.engine(program(t, "good", "v2"))
	e.Options.DrainTimeout, e.slack = 100*time.Millisecond, 100*time.Millisecond
	rep := e.Run(t.Context())
	w.want(rep, Upgraded, "", "")
	wantText(t, "warnings", strings.Join(rep.Warnings, "\n"), fmt.Sprintf("the previous process %d still drains", before))

	e = w.engine(program(t, "good", "v3"))
	e.Options.DrainTimeout, e.slack = 100*time.Millisecond, 100*time.Millisecond
	rep = e.Run(t.Context())
	w.want(rep, Refused, Preflight, "")
	wantText(t, "cause", rep.Cause, "still busy with an earlier handoff", fmt.Sprintf("process %d still drains", before))

	w.on = func(u Update) {
		if u.Phase == Preflight && strings.Contains(u.Text, "earlier handoff") {
			end()
		}
	}
	w.want(w.upgrade(program(t, "good", "v3")), Upgraded, "", "")
	w.wantServing("v3")
}

func TestStoppedUnderAHelper(t *testing.T) {
	for _, phase := range []Phase{Listen, Bake, Drain} {
		t.Run(string(phase), func(t *testing.T) {
			w := newWorld(t, helped, "ZDT_DRAIN_TIMEOUT=300ms")
			w.block()
			w.at(phase, func() {
				w.systemd.set(func(u *Unit) { u.ActiveState = "deactivating" })
				unix.Kill(w.systemd.mainPID(), unix.SIGTERM)
			})
			e := w.engine(program(t, "good", "v2"))
			e.Options.Bake = 5 * time.Second
			if phase == Drain {
				e.Options.Bake = 0
			}
			rep := e.Run(t.Context())
			switch {
			case phase == Drain && rep.Phase == Exit:
				phase = Exit // the drain was over first
			case phase == Listen && rep.Phase == Bake:
				phase = Bake // READY was there first
			}
			w.want(rep, NotRestored, phase, "stopping")
			wantText(t, "cause", rep.Cause, "told to stop", "web.service is inactive")
			w.systemd.start()
			w.wantNextWorks()
		})
	}
}

func TestInterruptUnderAHelper(t *testing.T) {
	for _, phase := range []Phase{Trigger, Listen, Bake, Commit, Drain, Exit} {
		t.Run(string(phase), func(t *testing.T) {
			w := newWorld(t, helped)
			ctx, cancel := context.WithCancelCause(t.Context())
			defer cancel(nil)
			w.at(phase, func() { cancel(errors.New("told to stop (SIGTERM)")) })
			rep := w.engine(program(t, "good", "v2")).Run(ctx)
			switch phase {
			case Trigger, Listen, Bake, Commit:
				where := phase
				if phase == Listen && rep.Phase == Bake { // READY was there first
					where = Bake
				}
				w.want(rep, Interrupted, where, reasonInterrupted)
				w.wantOld()
			default:
				w.want(rep, Upgraded, "", "")
				w.wantServing("v2")
			}
			w.wantNextWorks()
		})
	}
}

func TestReload(t *testing.T) {
	t.Run("brings the environment", func(t *testing.T) {
		w := newWorld(t, helped)
		var armed []control.Arm
		newProxy(w).request = func(r control.Request) bool {
			if r.Arm != nil {
				armed = append(armed, *r.Arm)
			}
			return true
		}
		w.host.Signal = func(context.Context, syscall.Signal) error { t.Error("a signal was sent"); return nil }
		w.systemd.set(func(u *Unit) { u.ExecStart = []string{"/usr/local/bin/zdt", "run"} })
		w.want(w.upgrade(program(t, "good", "v2")), Upgraded, "", "")
		if len(armed) != 1 || !slices.Equal(armed[0].Command, []string{"/usr/local/bin/zdt", "run"}) || !armed[0].Hold || len(armed[0].Environ) > 0 { // ExecReload= does not go through the proxy
			t.Errorf("armed %+v", armed)
		}
	})
	t.Run("is refused", func(t *testing.T) {
		w := newWorld(t, helped)
		w.tell()
		w.host.Tail = func(_ context.Context, pid int, _ string, _ int) ([]string, error) {
			if pid != 0 {
				t.Errorf("the log of process %d is asked for", pid)
			}
			return []string{"an answer", "zdt: denied: only root may ask", "hint: none"}, nil
		}
		w.host.Reload = func(context.Context) error { return errors.New("not authorised") }
		rep := w.upgrade(program(t, "good", "v2"))
		w.want(rep, Refused, Trigger, "")
		wantText(t, "cause", rep.Cause, "not authorised: denied: only root may ask")
		w.wantOld()
		w.wantNextWorks()
	})
	t.Run("does nothing", func(t *testing.T) {
		w := newWorld(t, helped)
		w.host.Reload = func(context.Context) error { return nil }
		e := w.engine(program(t, "good", "v2"))
		e.slack = 200 * time.Millisecond
		rep := e.Run(t.Context())
		w.want(rep, Refused, Trigger, "")
		wantText(t, "cause", rep.Cause, "did not reach the helper")
		w.wantOld()
		w.wantNextWorks()
	})
	t.Run("fails when it has done its work", func(t *testing.T) {
		w := newWorld(t, helped)
		reload := w.host.Reload
		w.host.Reload = func(ctx context.Context) error { return errors.Join(reload(ctx), errors.New("timeout")) }
		rep := w.upgrade(program(t, "good", "v2"))
		w.want(rep, Upgraded, "", "")
		wantText(t, "warnings", strings.Join(rep.Warnings, "\n"), "the reload that started it failed: timeout")
	})
	t.Run("fails before the helper is heard", func(t *testing.T) {
		w := newWorld(t, helped)
		p, reload := newProxy(w), w.host.Reload
		failed := make(chan struct{})
		p.answer = func(op string, r *control.Response) bool {
			if op == control.OpWatch && r.Status.Handoff != nil {
				<-failed
			}
			return true
		}
		p.request = func(r control.Request) bool {
			if r.Op == control.OpDisarm {
				close(failed)
			}
			return true
		}
		w.host.Reload = func(ctx context.Context) error { return errors.Join(reload(ctx), errors.New("timeout")) }
		w.want(w.upgrade(program(t, "good", "v2")), Upgraded, "", "")
	})
	t.Run("does not end", func(t *testing.T) {
		w := newWorld(t, helped)
		reload := w.host.Reload
		w.host.Reload = func(ctx context.Context) error { reload(ctx); <-ctx.Done(); return ctx.Err() }
		e := w.engine(program(t, "good", "v2"))
		e.slack = 300 * time.Millisecond
		rep := e.Run(t.Context())
		w.want(rep, Upgraded, "", "")
		wantText(t, "warnings", strings.Join(rep.Warnings, "\n"), "systemd still reloads")
	})
	t.Run("is something else", func(t *testing.T) {
		w := newWorld(t, helped)
		w.systemd.set(func(u *Unit) { u.ExecReload = []string{"/bin/kill", "-HUP"} })
		w.host.Reload = func(context.Context) error { t.Error("reloaded"); return nil }
		rep := w.upgrade(program(t, "good", "v2"))
		w.want(rep, Upgraded, "", "")
		wantText(t, "warnings", strings.Join(rep.Warnings, "\n"), "does not run zdt handoff")
	})
}

// The handoff is undone between READY and the end of ExecReload=.
func TestUndoneWhileReloading(t *testing.T) {
	w := newWorld(t, helped)
	reload := w.host.Reload
	w.host.Reload = func(ctx context.Context) error {
		err := reload(ctx)
		w.command(func(c *control.Client) { c.Abort(ctx, "", "not today") })
		until(t, "it is undone", func() bool { s := w.status(); return s.Phase == control.Idle })
		return err
	}
	rep := w.upgrade(program(t, "good", "v2"))
	if rep.Phase == Bake { // the end of the reload was heard first
		rep.Phase = Listen
	}
	w.want(rep, RolledBack, Listen, "requested")
	w.wantOld()
	w.wantNextWorks()
}

// Between preflight and trigger the program was replaced by a bare handoff: the helper is the same.
func TestProgramChangesWhileStaging(t *testing.T) {
	w := newWorld(t, helped)
	w.at(Stage, func() {
		if err := w.host.Reload(t.Context()); err != nil {
			t.Error(err)
		}
		until(t, "the other handoff is over", func() bool { s := w.status(); return s.Phase == control.Held })
		w.command(func(c *control.Client) { c.Commit(t.Context(), "") })
		until(t, "the other drain is over", func() bool { s := w.status(); return s.Predecessor == nil })
	})
	// The toy holds every handoff; a bare one is decided above.
	w.host.Reload = func(ctx context.Context) error { return unix.Kill(w.systemd.mainPID(), unix.SIGUSR2) }
	rep := w.upgrade(program(t, "good", "v2"))
	w.want(rep, Refused, Trigger, "")
	wantText(t, "cause", rep.Cause, "the program changed while the release was staged")
	w.wantNextWorks()
}

// The connection to the helper breaks in the drain. Who serves is asked anew.
func TestHelperHangsUpInTheDrain(t *testing.T) {
	w := newWorld(t, helped)
	end := w.block()
	p := newProxy(w)
	w.at(Drain, func() {
		p.hangUp()
		end()
	})
	rep := w.upgrade(program(t, "good", "v2"))
	w.want(rep, Upgraded, "", "")
	w.wantServing("v2")
}

// As TestKilled, with the steps that differ.
func TestKilledUnderAHelper(t *testing.T) {
	for at, outcome := range map[string]Outcome{
		"after record trigger": Interrupted,
		"before reload":        Interrupted,
		"after record listen":  Interrupted,
		"after record bake":    Interrupted,
		"after record commit":  Interrupted,
		"before record drain":  Upgraded,
		"after record exit":    Upgraded,
		"after flip":           Upgraded,
	} {
		t.Run(at, func(t *testing.T) {
			w := newWorld(t, helped)
			helper := w.systemd.mainPID()
			w.killed(program(t, "good", "v2"), at)
			rep := w.upgrade(program(t, "good", "v3"))
			w.want(rep, Upgraded, "", "")
			w.wantServing("v3")
			w.wantSmooth(rep)
			w.wantHelped(helper)
			w.wantHistory(outcome, Upgraded)
		})
	}
}

// The helper started the program through "current", or by an interpreter: what runs is the current release.
func TestRuns(t *testing.T) {
	w := newWorld(t)
	r := &run{Engine: w.engine(""), current: w.v1}
	id := w.v1.ID
	other := strings.Replace(w.v1.Path, id, "20200101T000000Z-000000000000", 1)
	for _, tt := range []struct{ kernel, said, want string }{
		{w.v1.Path, "", id},
		{"/usr/bin/python3", w.v1.Path, id},
		{w.v1.Path, other, id},
		{other, w.v1.Path, "20200101T000000Z-000000000000"},
		{"/usr/bin/python3", "", ""},
		{"/usr/bin/python3", "/usr/bin/python3", ""},
		{"/usr/bin/python3", filepath.Join(w.store.Dir(), "current", "web"), id},
	} {
		r.Host.Exe = func(int) (string, error) { return tt.kernel, nil }
		if got, _, err := r.runs(1, tt.said); got != tt.want || err != nil {
			t.Errorf("the kernel says %s, the helper %s: %q, %v; want %q", tt.kernel, tt.said, got, err, tt.want)
		}
	}
}
