package dbusctl

import (
	"context"
	"errors"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/godbus/dbus/v5"
)

func refuse(name, text string) func(string, string) *dbus.Error {
	return func(method, unit string) *dbus.Error {
		return dbus.NewError(name, []any{text})
	}
}

func TestJobRefused(t *testing.T) {
	tests := []struct {
		name, text string
		want       error
		hint       string
	}{
		{"org.freedesktop.systemd1.NoSuchUnit", "Unit web.service not found.", ErrNoUnit, "list-unit-files"},
		{"org.freedesktop.DBus.Error.AccessDenied", "Permission denied", ErrNotAuthorised, "polkit"},
		{"org.freedesktop.DBus.Error.InteractiveAuthorizationRequired", "Interactive authentication required.", ErrNotAuthorised, "root"},
		{"org.freedesktop.systemd1.TransactionIsDestructive", "Transaction for web.service/start is destructive", ErrBusy, "list-jobs"},
		{"org.freedesktop.systemd1.UnitMasked", "Unit web.service is masked.", nil, "systemctl unmask web.service"},
		{"org.freedesktop.DBus.Error.Spawn.ChildExited", "Process org.freedesktop.systemd1 exited with status 1", ErrNoBus, "booted"},
	}
	s := startFake(t)
	m := s.dial()
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s.on(refuse(tt.name, tt.text))
			err := m.Start(testContext(t), "web.service")
			var e *Error
			if !errors.As(err, &e) || tt.want != nil && !errors.Is(err, tt.want) {
				t.Fatalf("err = %v, want %v", err, tt.want)
			}
			if e.Op != "start" || e.Unit != "web.service" || !strings.Contains(e.Hint, tt.hint) || !strings.Contains(err.Error(), tt.text) {
				t.Errorf("error lacks something: %#v", e)
			}
			var j *JobError
			if errors.As(err, &j) {
				t.Error("a refused job is a JobError")
			}
		})
	}
}

func TestJobResult(t *testing.T) {
	s := startFake(t)
	m := s.dial()
	run := func(result string, early bool) error {
		if early {
			// Before the reply to StartUnit, which follows this function.
			s.on(func(method, unit string) *dbus.Error {
				s.jobRemoved("/org/freedesktop/systemd1/job/6", "other.service", "canceled")
				s.jobRemoved(fakeJob, unit, result)
				return nil
			})
			return m.Start(testContext(t), "web.service")
		}
		s.on(nil)
		done := make(chan error, 1)
		go func() { done <- m.Start(testContext(t), "web.service") }()
		s.waiting(m)
		s.jobRemoved("/org/freedesktop/systemd1/job/6", "other.service", "canceled")
		s.jobRemoved(fakeJob, "web.service", result)
		return <-done
	}
	for _, early := range []bool{false, true} {
		s.set("web.service", map[string]any{"Result": "success"})
		if err := run("done", early); err != nil {
			t.Errorf("early=%v: %v", early, err)
		}
		s.set("web.service", map[string]any{"Result": "exit-code"})
		err := run("failed", early)
		var j *JobError
		if !errors.As(err, &j) || j.Result != "failed" || j.UnitResult != "exit-code" || j.Op != "start" || j.Unit != "web.service" {
			t.Errorf("early=%v: err = %#v", early, err)
		}
		if want := "start web.service: job result failed (exit-code)"; err == nil || err.Error() != want {
			t.Errorf("err = %v, want %s", err, want)
		}
		s.set("web.service", map[string]any{"Result": "start-limit-hit"})
		var e *Error
		if err := run("failed", early); !errors.As(err, &e) || !strings.Contains(e.Hint, "reset-failed web.service") {
			t.Errorf("early=%v: err = %#v", early, err)
		}
	}
}

// A job whose end never comes is given up with the context, and the
// connection serves the next call.
func TestJobContextEnds(t *testing.T) {
	s := startFake(t)
	m := s.dial()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Millisecond)
	defer cancel()
	if err := m.Stop(ctx, "web.service"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("err = %v", err)
	}

	// The same while systemd does not even answer.
	hung := make(chan struct{})
	ctx2, cancel2 := context.WithCancel(context.Background())
	release := make(chan struct{})
	s.on(func(method, unit string) *dbus.Error { close(hung); <-release; return nil })
	go func() { <-hung; cancel2() }()
	if err := m.Stop(ctx2, "web.service"); !errors.Is(err, context.Canceled) {
		t.Errorf("err = %v", err)
	}
	s.on(func(method, unit string) *dbus.Error { s.jobRemoved(fakeJob, unit, "done"); return nil })
	close(release)
	if err := m.Stop(testContext(t), "web.service"); err != nil {
		t.Errorf("the next stop: %v", err)
	}
	m.sig.mu.Lock()
	defer m.sig.mu.Unlock()
	if n := len(m.sig.jobs); n != 0 {
		t.Errorf("%d waits left over", n)
	}
}

// A local process can address a signal to us that looks like systemd's.
func TestForgedSignalsDoNotCount(t *testing.T) {
	s := startFake(t)
	m := s.dial()
	liar := s.connect()
	forge := func(name string, path dbus.ObjectPath, body ...any) {
		i := strings.LastIndexByte(name, '.')
		liar.Send(&dbus.Message{
			Type: dbus.TypeSignal,
			Headers: map[dbus.HeaderField]dbus.Variant{
				dbus.FieldDestination: dbus.MakeVariant(m.conn.Names()[0]),
				dbus.FieldPath:        dbus.MakeVariant(path),
				dbus.FieldInterface:   dbus.MakeVariant(name[:i]),
				dbus.FieldMember:      dbus.MakeVariant(name[i+1:]),
				dbus.FieldSignature:   dbus.MakeVariant(dbus.SignatureOf(body...)),
			},
			Body: body,
		}, nil)
	}
	done := make(chan error, 1)
	go func() { done <- m.Start(testContext(t), "web.service") }()
	s.waiting(m)
	forge(busIface+".NameOwnerChanged", "/org/freedesktop/DBus", destination, "", liar.Names()[0])
	forge(managerIface+".JobRemoved", managerPath, uint32(7), fakeJob, "web.service", "done")
	// The daemon has passed those on before it answers this.
	if err := liar.BusObject().Call(busIface+".GetId", 0).Err; err != nil {
		t.Fatal(err)
	}
	s.jobRemoved(fakeJob, "web.service", "failed")
	var j *JobError
	if err := <-done; !errors.As(err, &j) || j.Result != "failed" {
		t.Errorf("err = %v, want the true result", err)
	}
}

func TestJobOverReexec(t *testing.T) {
	t.Run("survives", func(t *testing.T) {
		s := startFake(t)
		m := s.dial()
		done := make(chan error, 1)
		go func() { done <- m.Restart(testContext(t), "web.service") }()
		s.waiting(m)
		s.reexec()
		s.jobRemoved(fakeJob, "web.service", "done")
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	t.Run("end was missed", func(t *testing.T) {
		s := startFake(t)
		m := s.dial()
		done := make(chan error, 1)
		go func() { done <- m.Restart(testContext(t), "web.service") }()
		s.waiting(m)
		s.leave()
		s.mu.Lock()
		delete(s.jobs, fakeJob)
		s.mu.Unlock()
		s.join()
		var j *JobError
		if err := <-done; !errors.As(err, &j) || j.Result != ResultLost {
			t.Errorf("err = %v, want result lost", err)
		}
	})
	t.Run("asked for in between", func(t *testing.T) {
		s := startFake(t)
		m := s.dial()
		s.leave()
		done := make(chan error, 1)
		go func() { done <- m.Restart(testContext(t), "web.service") }()
		s.on(func(method, unit string) *dbus.Error {
			if method == "RestartUnit" {
				s.jobRemoved(fakeJob, unit, "done")
			}
			return nil
		})
		s.join()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if n := strings.Count(strings.Join(s.log(), "\n"), "RestartUnit"); n != 1 {
			t.Errorf("RestartUnit ran %d times", n)
		}
	})
}

func TestReloadBusy(t *testing.T) {
	s := startFake(t)
	m := s.dial()
	s.set("web.service", map[string]any{"Job": struct {
		ID   uint32
		Path dbus.ObjectPath
	}{7, fakeJob}})
	if err := m.Reload(testContext(t), "web.service"); !errors.Is(err, ErrBusy) {
		t.Errorf("err = %v, want ErrBusy", err)
	}
	if log := s.log(); slices.Contains(log, "ReloadUnit web.service fail") {
		t.Errorf("it was asked for: %v", log)
	}
	if err := m.Reload(testContext(t), "nope.service"); !errors.Is(err, ErrNoUnit) {
		t.Errorf("err = %v, want ErrNoUnit", err)
	}
}

func TestWhatIsAsked(t *testing.T) {
	s := startFake(t)
	m := s.dial()
	ctx := testContext(t)
	s.on(func(method, unit string) *dbus.Error {
		if strings.HasSuffix(method, "Unit") {
			s.jobRemoved(fakeJob, unit, "done")
		}
		return nil
	})
	for _, err := range []error{
		m.Start(ctx, "web.service"),
		m.Stop(ctx, "web.service"),
		m.Restart(ctx, "web.service"),
		m.Reload(ctx, "web.service"),
		m.Signal(ctx, "web.service", syscall.SIGUSR2),
		m.ResetFailed(ctx, "web.service"),
		m.Enable(ctx, true, "web.socket", "web.service"),
		m.Disable(ctx, false, "web.socket"),
	} {
		if err != nil {
			t.Error(err)
		}
	}
	if err := m.Enable(ctx, false, "static.service"); err == nil || !strings.Contains(err.Error(), "[Install]") {
		t.Errorf("Enable of a static unit: %v", err)
	}
	want := []string{
		"Subscribe ",
		"StartUnit web.service replace",
		"StopUnit web.service replace",
		"RestartUnit web.service replace",
		"ReloadUnit web.service fail",
		"KillUnit web.service main-fail 12",
		"ResetFailedUnit web.service",
		"EnableUnitFiles web.socket,web.service true false",
		"Reload ",
		"DisableUnitFiles web.socket false",
		"Reload ",
		"EnableUnitFiles static.service false false",
	}
	if got := s.log(); !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func TestSignalWithoutProcess(t *testing.T) {
	s := startFake(t)
	m := s.dial()
	tests := []struct {
		unit, name string
		want       error
	}{
		{"web.service", "org.freedesktop.systemd1.NoSuchProcess", ErrNoProcess},
		{"web.service", "org.freedesktop.systemd1.NoSuchUnit", ErrNoProcess}, // idle, hence not loaded
		{"nope.service", "org.freedesktop.systemd1.NoSuchUnit", ErrNoUnit},
	}
	for _, tt := range tests {
		s.on(refuse(tt.name, "No main process to kill"))
		err := m.Signal(testContext(t), tt.unit, syscall.SIGUSR2)
		if !errors.Is(err, tt.want) || !strings.HasPrefix(err.Error(), "send SIGUSR2 to the main process of "+tt.unit) {
			t.Errorf("%s for %s: %v", tt.name, tt.unit, err)
		}
	}
	s.on(refuse("org.freedesktop.systemd1.NoSuchUnit", "Unit web.service not loaded."))
	if err := m.ResetFailed(testContext(t), "web.service"); err != nil {
		t.Errorf("ResetFailed of an idle unit: %v", err)
	}
}
