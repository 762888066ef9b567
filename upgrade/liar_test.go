package upgrade

import (
	"context"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"github.com/zdt-dev/zdt/handoff/control"
)

// What the incumbent says of its candidate is held against the kernel: a
// runtime that lies, or is wrong, does not get "upgraded".
func TestRuntimeNamesTheWrongCandidate(t *testing.T) {
	for _, tt := range []struct {
		name   string
		script func(w *world, p *proxy)
		reason string
		text   string
	}{
		{"itself", func(w *world, p *proxy) {
			incumbent := w.status().PID
			p.answer = func(op string, r *control.Response) bool {
				if h := r.Status.Handoff; h != nil {
					h.Candidate = incumbent
				}
				return true
			}
		}, "protocol", "names itself as its candidate"},
		{"a process of the old release", func(w *world, p *proxy) {
			incumbent := w.status().PID
			exe := w.host.Exe
			w.host.Exe = func(pid int) (string, error) {
				if pid != incumbent {
					return w.v1.Path, nil
				}
				return exe(pid)
			}
		}, reasonForeign, "and not the new release"},
		{"a process that cannot be looked at", func(w *world, p *proxy) {
			incumbent := w.status().PID
			exe := w.host.Exe
			w.host.Exe = func(pid int) (string, error) {
				if pid != incumbent {
					return "", os.ErrPermission
				}
				return exe(pid)
			}
		}, reasonForeign, "find what the candidate"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t)
			p := newProxy(w)
			exe := w.host.Exe
			tt.script(w, p)
			rep := w.upgrade(program(t, "good", "v2"))
			w.want(rep, RolledBack, Commit, tt.reason)
			wantText(t, "cause", rep.Cause, tt.text)
			w.wantOld()
			w.host.Exe = exe
			p.answer = func(string, *control.Response) bool { return true }
			w.wantNextWorks()
		})
	}
}

// When the wait for a healthy service is over, what was wrong all the time is
// the cause, and not that the last question was cut short.
func TestNotRestoredSaysWhatWasWrong(t *testing.T) {
	w := newWorld(t)
	p := newProxy(w)
	var lying atomic.Bool
	p.answer = func(op string, r *control.Response) bool {
		if op == control.OpStatus && lying.Load() {
			r.Status.PID = 1
		}
		return true
	}
	unit := w.host.Unit
	w.host.Unit = func(ctx context.Context) (Unit, error) {
		if ctx.Err() != nil { // as on the bus
			return Unit{}, ctx.Err()
		}
		return unit(ctx)
	}
	w.at(Bake, func() {
		lying.Store(true)
		w.command(func(c *control.Client) { c.Abort(t.Context(), "", "not today") })
	})
	e := w.engine(program(t, "good", "v2"))
	e.slack, e.Options.Bake, e.Options.ReadyTimeout = 50*time.Millisecond, 5*time.Second, 5*time.Second
	rep := e.Run(t.Context())
	w.want(rep, NotRestored, Bake, "requested")
	wantText(t, "cause", rep.Cause, "process 1 answers, the main process is")
}
