package upgrade

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/zdt-dev/zdt/handoff/control"
	"github.com/zdt-dev/zdt/release"
)

func TestInterrupt(t *testing.T) {
	for _, phase := range append(Phases(), Rollback) {
		t.Run(string(phase), func(t *testing.T) {
			w := newWorld(t)
			ctx, cancel := context.WithCancelCause(t.Context())
			defer cancel(nil)
			cause := errors.New("told to stop (SIGTERM)")
			w.at(phase, func() { cancel(cause) })
			role := "good"
			if phase == Rollback { // interrupted just after it has failed
				role = "crash"
				w.on = func(u Update) {
					if u.State == Failed {
						cancel(cause)
					}
				}
			}
			rep := w.engine(program(t, role, "v2")).Run(ctx)
			switch phase {
			case Preflight, Stage, Trigger:
				w.want(rep, Interrupted, phase, reasonInterrupted)
				wantText(t, "cause", rep.Cause, "interrupted before anything was changed", cause.Error())
				w.wantOld()
				if s := w.status(); s.Attempts != 0 {
					t.Error("a handoff was started")
				}
			case Listen, Bake, Commit:
				w.want(rep, Interrupted, phase, reasonInterrupted)
				wantText(t, "cause", rep.Cause, "interrupted before the commit", cause.Error())
				wantText(t, "action", rep.Action, "never stopped serving")
				w.wantOld()
				w.wantHistory(Interrupted)
			case Rollback: // what failed is not the interrupt
				w.want(rep, RolledBack, Listen, "crashed")
				w.wantOld()
			default:
				w.want(rep, Upgraded, "", "")
				w.wantServing("v2")
				w.wantHistory(Upgraded)
			}
			w.wantNextWorks()
		})
	}
}

// Interrupted when the signal is on its way: what it starts is undone, and not left to its deadline.
func TestInterruptBeforeTheSignalArrives(t *testing.T) {
	w := newWorld(t)
	ctx, cancel := context.WithCancelCause(t.Context())
	defer cancel(nil)
	w.at(Listen, func() { cancel(errors.New("told to stop (SIGTERM)")) })
	signal, unit := w.host.Signal, w.host.Unit
	looks := 0
	w.host.Signal = func(context.Context, syscall.Signal) error { looks = 3; return nil }
	w.host.Unit = func(ctx context.Context) (Unit, error) {
		if looks--; looks == 0 {
			signal(ctx, syscall.SIGUSR2)
		}
		return unit(ctx)
	}
	rep := w.engine(program(t, "good", "v2")).Run(ctx)
	w.want(rep, Interrupted, Listen, reasonInterrupted)
	if looks > 0 {
		t.Error("the upgrade was over before its signal had arrived")
	}
	w.host.Signal, w.host.Unit = signal, unit
	w.wantOld()
	w.wantNextWorks()
}

func TestLocked(t *testing.T) {
	w := newWorld(t)
	binary := program(t, "good", "v2")
	lock, err := release.Acquire(t.Context(), filepath.Join(w.dir, "lock"), release.Holder{TxID: "01", Phase: release.PhaseBake}, 0)
	if err != nil {
		t.Fatal(err)
	}
	rep := w.upgrade(binary)
	w.want(rep, Locked, Preflight, "")
	wantText(t, "hint", rep.Hint, "--wait", "zdt status web")
	if rep.Holder["pid"] != os.Getpid() || rep.Holder["phase"] != release.PhaseBake {
		t.Errorf("holder %v", rep.Holder)
	}
	w.wantHistory()

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	e := w.engine(binary)
	e.Options.Wait = -1
	w.want(e.Run(ctx), Interrupted, Preflight, reasonInterrupted)
	lock.Release()
	w.want(w.upgrade(binary), Upgraded, "", "")
}

// Whoever waits finds everything concluded: no open record, no half a history.
func TestTwoAtOnce(t *testing.T) {
	w := newWorld(t)
	a, b := program(t, "good", "v2"), program(t, "good", "v3")
	reports := make(chan Report, 2)
	for _, e := range []Engine{w.engine(a), w.engine(b)} {
		e.Options.Wait = -1
		go func() { reports <- e.Run(t.Context()) }()
	}
	one, two := <-reports, <-reports
	for _, rep := range []Report{one, two} {
		if rep.Outcome != Upgraded || slices.ContainsFunc(rep.Warnings, func(s string) bool { return strings.Contains(s, "cut short") }) {
			t.Errorf("report %s", asJSON(rep))
		}
	}
	w.wantHistory(Upgraded, Upgraded)
	if current, _ := w.store.Current(); current.ID != two.To.ID {
		t.Errorf("current is %s, the last one to end wanted %s", current.ID, two.To.ID)
	}
}

func TestSignalFails(t *testing.T) {
	t.Run("and did not arrive", func(t *testing.T) {
		w := newWorld(t)
		w.host.Signal = func(context.Context, syscall.Signal) error { return errors.New("not authorised") }
		rep := w.upgrade(program(t, "good", "v2"))
		w.want(rep, Refused, Trigger, "")
		wantText(t, "cause", rep.Cause, "not authorised")
		w.wantOld()
		w.wantNextWorks()
	})
	t.Run("and arrived all the same", func(t *testing.T) {
		w := newWorld(t)
		w.host.Signal = func(_ context.Context, sig syscall.Signal) error {
			unix.Kill(w.systemd.mainPID(), sig)
			until(t, "it arrived", func() bool { return w.status().Attempts > 0 })
			return errors.New("no reply")
		}
		rep := w.upgrade(program(t, "good", "v2"))
		w.want(rep, RolledBack, Trigger, "")
		w.wantOld()
		w.wantNextWorks()
	})
}

func TestRefusedBeforeTheTrigger(t *testing.T) {
	w := newWorld(t)
	binary := program(t, "good", "v2")
	for _, tt := range []struct {
		name        string
		unit        func(*Unit)
		engine      func(*Engine)
		cause, hint string
	}{
		{"job", func(u *Unit) { u.Job = true }, nil, "a job of systemd", "systemctl --user list-jobs"},
		{"no main process", func(u *Unit) { u.MainPID = 0 }, nil, "no main process", "systemctl --user status web.service"},
		{"type", func(u *Unit) { u.Type = "simple" }, nil, "Type=simple", "zdt --user init web"},
		{"notify access", func(u *Unit) { u.NotifyAccess = "none" }, nil, "NotifyAccess=none", "NotifyAccess=main"},
		{"path", func(u *Unit) { u.Program = "/usr/bin/web" }, nil, "starts /usr/bin/web", "zdt --user init web --exec /usr/bin/web"},
		{"somebody else answers", func(u *Unit) { u.MainPID = os.Getpid() }, nil, "answers on the control socket", "systemctl --user status"},
		{"no runtime", nil, func(e *Engine) {
			e.Host.Control = func(context.Context) (*control.Client, error) { return nil, os.ErrNotExist }
		}, "does not answer on its control socket", "handoff library"},
		{"checksum", nil, func(e *Engine) { e.Options.Stage.SHA256 = strings.Repeat("0", 64) }, "sha256 of", "fetch it again"},
		{"check", nil, func(e *Engine) { e.Check = func(string) error { return errors.New("for another architecture") } }, "for another architecture", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			e := w.engine(binary)
			e.Options.User, e.slack = true, 100*time.Millisecond
			e.Host.Unit = func(context.Context) (Unit, error) {
				u, _, err := w.systemd.state()
				if tt.unit != nil {
					tt.unit(&u)
				}
				return u, err
			}
			if tt.engine != nil {
				tt.engine(&e)
			}
			rep := e.Run(t.Context())
			if rep.Outcome != Refused || rep.Changed {
				t.Fatalf("report %s", asJSON(rep))
			}
			wantText(t, "cause", rep.Cause, tt.cause)
			wantText(t, "hint", rep.Hint, tt.hint)
			w.wantOld()
			w.wantHistory()
		})
	}
	w.wantNextWorks()
}
