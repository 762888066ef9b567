package cmd

import (
	"context"
	"errors"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/zdt-dev/zdt/dbusctl"
	"github.com/zdt-dev/zdt/handoff/control"
)

// helped is the runtime of a service that runs under zdt run.
func helped(name string) control.Status {
	st := idle(name)
	st.Runtime, st.App, st.Connections = control.RuntimeHelper, 4000, control.Counts{}
	return st
}

// The steps of a helper.
func groupForks(s *control.Status) {
	s.Handoff = &control.Handoff{TxID: s.Armed.TxID, Exe: "/srv/web", Candidate: 4242, StartedAt: day, Hold: s.Armed.Hold}
	s.Armed, s.Phase, s.Attempts = nil, control.Forked, s.Attempts+1
}

func groupServes(s *control.Status) {
	s.Last = &control.Outcome{TxID: s.Handoff.TxID, Candidate: 4242, Committed: true, ReadyAfter: 14 * time.Millisecond}
	s.Predecessor = &control.Peer{PID: s.App, Generation: s.Generation}
	s.App, s.Generation, s.Phase, s.Handoff = 4242, s.Generation+1, control.Idle, nil
}

func groupEnds(s *control.Status) { s.Predecessor = nil }

func groupDies(s *control.Status) { // while the other drains: its program is started again
	l := *s.Last
	l.Committed, l.Reason, l.Detail = false, "crashed", "the new program ended (exited, 1)"
	s.Last, s.Phase, s.App, s.Generation, s.TookOver = &l, control.Starting, 4300, s.Generation+1, true
}

// By name the handoff of a helper goes through systemd, whose ExecReload= completes it.
func TestHandoffOfAHelper(t *testing.T) {
	job := &dbusctl.Error{Op: "reload", Unit: "web.service", Err: &dbusctl.JobError{Unit: "web.service", Op: "reload", Result: "failed"}}
	for _, tt := range []struct {
		name     string
		react    func(r *fakeRuntime) error // ExecReload=
		signal   func(r *fakeRuntime)       // nil: no signal may come
		noReload bool                       // the unit's ExecReload= is something else
		code     ExitCode
		out      string
	}{
		{name: "committed", react: func(r *fakeRuntime) error {
			r.become(groupForks)
			r.become(groupServes)
			r.become(groupEnds)
			return nil
		}, code: ExitOK, out: "pid 4000 → 4242 · generation 4 · ready after 14 ms\n"},
		{name: "drains", react: func(r *fakeRuntime) error {
			r.become(groupForks)
			r.become(groupServes)
			return nil
		}, code: ExitOK, out: "ready after 14 ms · pid 4000 finishes\n"},
		{name: "undone", react: func(r *fakeRuntime) error {
			r.become(groupForks)
			r.become(func(s *control.Status) {
				s.Last = &control.Outcome{TxID: s.Handoff.TxID, Candidate: 4242, Reason: "crashed", Detail: "the candidate ended (exited, 1)"}
				s.Handoff, s.Phase = nil, control.Idle
			})
			return job
		}, code: ExitRolledBack, out: "handoff undone (crashed): the candidate ended (exited, 1)"},
		{name: "started again", react: func(r *fakeRuntime) error {
			r.become(groupForks)
			r.become(groupServes)
			r.become(groupDies)
			time.AfterFunc(2*drainGlance, func() { r.become(func(s *control.Status) { s.Phase = control.Idle }) })
			return nil
		}, code: ExitRolledBack, out: "handoff undone (crashed): the new program ended"},
		{name: "refused by systemd", react: func(r *fakeRuntime) error {
			return &dbusctl.Error{Op: "reload", Unit: "web.service", Err: dbusctl.ErrBusy}
		}, code: ExitBusy, out: "have systemd start the handoff"},
		{name: "ExecReload= fails", react: func(r *fakeRuntime) error { return job }, code: ExitRefused, out: "have systemd start the handoff"},
		{name: "ExecReload= does something else", react: func(r *fakeRuntime) error { return nil }, code: ExitRefused, out: "the reload ended without a handoff"},
		{name: "a unit without zdt handoff", noReload: true, signal: func(r *fakeRuntime) {
			r.become(groupForks)
			r.become(groupServes)
			r.become(groupEnds)
		}, code: ExitOK, out: "pid 4000 → 4242 · generation 4"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f, out, errs := testFactory(t, false)
			h := newHost(t, f)
			u := h.running("web")
			u.ExecReload = []string{"/usr/local/bin/zdt", "handoff"}
			if tt.noReload {
				u.ExecReload = []string{"/bin/kill"}
			}
			h.units[u.Name] = u
			r := &fakeRuntime{status: helped("web")}
			r.serve(t, h.paths.Control("web"))
			f.dialSystemd = func(context.Context, bool) (systemd, error) {
				return fakeSystemd{units: h.units, reload: func(ctx context.Context) error { return tt.react(r) }}, nil
			}
			onHandoffSignal(t, func() {
				if tt.signal == nil {
					t.Error("a signal was sent")
					return
				}
				tt.signal(r)
			})
			if code := execute(t.Context(), f, []string{"handoff", "--user", "web"}); code != tt.code {
				t.Errorf("exit %d, want %d", code, tt.code)
			}
			if !strings.Contains(out.String()+errs.String(), tt.out) {
				t.Errorf("%q is missing in\n%s%s", tt.out, out, errs)
			}
			if tt.code != ExitOK && (out.Len() > 0 || !strings.Contains(errs.String(), "\nhint: ")) {
				t.Errorf("a failure without a hint, or with data: %q %q", out, errs)
			}
		})
	}
}

// As ExecReload= zdt completes what is armed with what only systemd can give.
func TestHandoffBringsTheUnit(t *testing.T) {
	for _, tt := range []struct {
		name    string
		armed   *control.Arm
		env     map[string]string
		bus     error
		literal bool
		command []string
		environ bool
	}{
		{name: "bare", environ: true, command: []string{"/usr/local/bin/zdt", "run", "--", "/srv/web", "one", "two", "x1 2y", "$"}},
		{name: "for an upgrade", armed: &control.Arm{TxID: "upgrade's", Exe: "/srv/2/web", Hold: true, HoldFor: time.Minute, ReadyTimeout: time.Second},
			environ: true, command: []string{"/usr/local/bin/zdt", "run", "--", "/srv/web", "one", "two", "x1 2y", "$"}},
		{name: "for zdt handoff NAME", armed: &control.Arm{TxID: "another's"}, environ: true,
			command: []string{"/usr/local/bin/zdt", "run", "--", "/srv/web", "one", "two", "x1 2y", "$"}},
		{name: "without expansion", literal: true, environ: true, command: []string{"/usr/local/bin/zdt", "run", "--", "/srv/web", "$WORDS", "x${ONE}y", "$$"}},
		{name: "without a bus", bus: errors.New("no bus"), environ: true},
		{name: "without a bus, but root has one", bus: errors.New("no bus"), environ: true,
			armed: &control.Arm{TxID: "upgrade's", Hold: true, Command: []string{"/usr/bin/zdt", "$WORDS"}}, command: []string{"/usr/bin/zdt", "one", "two"}},
		{name: "not started by systemd", env: map[string]string{"SYSTEMD_EXEC_PID": "1"}},
		{name: "in a container", env: map[string]string{"SYSTEMD_EXEC_PID": ""}},
		{name: "by an old systemd", env: map[string]string{"SYSTEMD_EXEC_PID": "", "INVOCATION_ID": "0123"}, bus: errors.New("no bus"), environ: true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f, out, errs := testFactory(t, false)
			h := newHost(t, f)
			u := h.running("web")
			u.ExecStartPath, u.ExecStartLiteral = "/usr/local/bin/zdt", tt.literal
			u.ExecStart = []string{"zdt", "run", "--", "/srv/web", "$WORDS", "x${ONE}y", "$$"}
			h.units[u.Name] = u
			env := map[string]string{"MAINPID": itoa(os.Getpid()), "SYSTEMD_EXEC_PID": itoa(os.Getpid()),
				"RUNTIME_DIRECTORY": strings.TrimSuffix(h.paths.Control("web"), "/control.sock")}
			for name, value := range tt.env {
				env[name] = value
			}
			f.getenv = func(name string) string { return env[name] }
			t.Setenv("WORDS", "one two")
			t.Setenv("ONE", "1 2")
			t.Setenv("MAINPID", env["MAINPID"])
			t.Setenv("NOTIFY_SOCKET", "/x")
			t.Setenv("LISTEN_FDS", "1")
			f.dialSystemd = func(_ context.Context, user bool) (systemd, error) {
				if user {
					t.Error("the user's systemd was asked")
				}
				return fakeSystemd{units: h.units}, tt.bus
			}
			r := &fakeRuntime{status: helped("web")}
			r.status.Armed = tt.armed
			r.serve(t, h.paths.Control("web"))
			var armed control.Arm
			onHandoffSignal(t, func() {
				r.become(func(s *control.Status) {
					armed = *s.Armed
					groupForks(s)
					if s.Handoff.Hold {
						s.Phase, s.Handoff.ReadyAt = control.Held, day.Add(time.Millisecond)
						return
					}
					groupServes(s)
					groupEnds(s)
				})
			})
			if code := execute(t.Context(), f, []string{"handoff"}); code != ExitOK {
				t.Fatalf("exit %d: %s%s", code, out, errs)
			}
			if tt.armed != nil && (armed.TxID != tt.armed.TxID || armed.Exe != tt.armed.Exe || armed.Hold != tt.armed.Hold || armed.HoldFor != tt.armed.HoldFor || armed.ReadyTimeout != tt.armed.ReadyTimeout) {
				t.Errorf("armed %+v over %+v", armed, tt.armed)
			}
			if !slices.Equal(armed.Command, tt.command) {
				t.Errorf("command %q, want %q", armed.Command, tt.command)
			}
			if slices.Contains(armed.Environ, "WORDS=one two") != tt.environ || slices.ContainsFunc(armed.Environ, func(kv string) bool {
				return strings.HasPrefix(kv, "MAINPID=") || strings.HasPrefix(kv, "NOTIFY_SOCKET=") || strings.HasPrefix(kv, "LISTEN_")
			}) {
				t.Errorf("environment %q", armed.Environ)
			}
		})
	}
}

// Too much for one line of the control socket: the handoff goes on without.
func TestHandoffWithALargeEnvironment(t *testing.T) {
	f, _, errs := testFactory(t, false)
	h := newHost(t, f)
	f.getenv = func(name string) string { return map[string]string{"SYSTEMD_EXEC_PID": itoa(os.Getpid())}[name] }
	f.dialSystemd = func(context.Context, bool) (systemd, error) { return fakeSystemd{units: h.units}, nil }
	t.Setenv("LARGE", strings.Repeat("x", mostFresh))
	arm := f.fresh(t.Context(), handoffTarget{unit: "web.service"}, control.Arm{TxID: "x"})
	if arm.TxID != "x" || arm.Environ != nil || !strings.Contains(errs.String(), "too large") {
		t.Errorf("%d variables: %s", len(arm.Environ), errs)
	}
}

// The expectations are what systemd 252 makes of such a line (replace_env_argv).
func TestExpandCommand(t *testing.T) {
	environ := []string{"ONE=1", "TWO=1  2\t", `QUOTED="a b" c\ d 'e"f' ""`, "EMPTY=", "OPEN='x y", `END=x\`, "ONE=one"}
	for word, want := range map[string][]string{
		"":               {""},
		"plain":          {"plain"},
		"$ONE":           {"one"},
		"$TWO":           {"1", "2"},
		"${TWO}":         {"1  2\t"},
		"$QUOTED":        {"a b", "c d", `e"f`, ""},
		"$OPEN":          {"x y"},
		"$END":           {"x"},
		"$EMPTY":         {},
		"${EMPTY}":       {""},
		"$NONE":          {},
		"${NONE}":        {""},
		"$ONE/x":         {},
		"x$ONE":          {"x$ONE"},
		"x${ONE}y${TWO}": {"xone" + "y1  2\t"},
		"$$ONE":          {"$ONE"},
		"a$$b$$":         {"a$b$"},
		"${ONE":          {"${ONE"},
		"$":              {"$"},
		"a$":             {"a$"},
		"${}":            {""},
		"$$$$":           {"$$"},
	} {
		if got := expandCommand([]string{word}, environ); !slices.Equal(got, want) {
			t.Errorf("%q: %q, want %q", word, got, want)
		}
	}
}

func FuzzExpandCommand(f *testing.F) {
	f.Add("x${A}$$", "1 2")
	f.Add("$A", `"a\`)
	f.Fuzz(func(t *testing.T, word, value string) {
		got := expandCommand([]string{word}, []string{"A=" + value})
		switch {
		case !strings.Contains(word, "$") && !slices.Equal(got, []string{word}):
			t.Errorf("%q became %q", word, got)
		case word == "${A}" && got[0] != value:
			t.Errorf("%q: %q", value, got)
		}
	})
}
