package cmd

import (
	"context"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/zdt-dev/zdt/handoff/control"
)

// Programs under zdt run end their connections in their own ways. What decides is what was lost.
func TestProveAHelper(t *testing.T) {
	for _, tt := range []struct {
		name    string
		handle  func(w http.ResponseWriter, during bool)
		steps   []func(s *control.Status) // after the fork
		outcome string
		code    ExitCode
		cause   string
	}{
		{"connections are closed", func(w http.ResponseWriter, during bool) {
			if during {
				w.Header().Set("Connection", "close")
			}
		}, []func(*control.Status){groupServes, groupEnds}, proveProved, ExitOK, ""},
		{"errors", func(w http.ResponseWriter, during bool) {
			if during {
				w.WriteHeader(502)
			}
		}, []func(*control.Status){groupServes, groupEnds}, proveNoticed, ExitUnexpected, "status of 500 or more"},
		{"the new program dies", nil, []func(*control.Status){groupServes, groupDies, func(s *control.Status) { s.Phase = control.Idle }},
			proveUndone, ExitRolledBack, "crashed"},
		{"the old one does not end", nil, []func(*control.Status){groupServes}, proveUnfinished, ExitDeadline, "pid 4000 was handed over"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var served atomic.Int64
			p := newProvable(t, func(w http.ResponseWriter, r *http.Request, during bool) {
				served.Add(1)
				if tt.handle != nil {
					tt.handle(w, during)
				}
			})
			sockets := p.runtime.status.Sockets
			p.runtime.status = helped("web")
			p.runtime.status.Sockets = sockets
			p.options.ended = func(context.Context, pidfd) error { t.Error("waits for the helper's end"); return nil }
			if tt.outcome == proveUnfinished {
				p.options.Timeout = time.Second
			}
			u := p.host.running("web")
			u.ExecReload = []string{"zdt", "handoff"}
			p.host.units[u.Name] = u
			var reloads atomic.Int32
			p.f.dialSystemd = func(context.Context, bool) (systemd, error) {
				return fakeSystemd{units: p.host.units, reload: func(ctx context.Context) error {
					reloads.Add(1)
					p.during.Store(true)
					p.runtime.become(groupForks)
					for _, step := range tt.steps {
						enough := served.Load() + 50 // each client has met the step before
						for late := time.Now().Add(5 * time.Second); served.Load() < enough && time.Now().Before(late); {
							time.Sleep(time.Millisecond)
						}
						p.runtime.become(step)
					}
					p.during.Store(false)
					return nil
				}}, nil
			}
			d, code := p.run(t, t.Context(), nil)
			if code != tt.code || d.Outcome != tt.outcome || !strings.Contains(d.Cause, tt.cause) || reloads.Load() != 1 || d.Runtime != control.RuntimeHelper {
				t.Fatalf("exit %d after %d reloads: %+v\n%s", code, reloads.Load(), d, p.errs)
			}
			if h := d.Handoffs[0]; h.Incumbent != 4000 || h.Candidate != 4242 || h.Finished != (tt.code == ExitOK || tt.code == ExitUnexpected) {
				t.Errorf("%+v", h)
			}
			if tt.outcome == proveProved && d.During.Reconnected == 0 {
				t.Error("nobody had to reconnect: the test shows nothing")
			}
			if text := proveText(style{}, true, &d); strings.Contains(text, "✘") {
				t.Errorf("alarming:\n%s", text)
			}
		})
	}
}
