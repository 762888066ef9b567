package dbusctl

import (
	"errors"
	"fmt"
	"os"
	"reflect"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/zdt-dev/zdt/internal/guest"
)

const helperPath = "/usr/local/bin/dbusctl.test"

const serviceText = `
[Unit]
Description=dbusctl test service
[Service]
Type=notify
NotifyAccess=main
Environment=ZDT_DBUSCTL_HELPER=service GORACE=atexit_sleep_ms=0
RuntimeDirectory=%p
ExecStart=/usr/local/bin/dbusctl.test serve "two words"
ExecReload=/bin/sh -c 'test ! -e /run/refuse-reload && { test ! -e /run/slow-reload || sleep 60; }'
TimeoutStopSec=20
TimeoutStartSec=30
WatchdogSec=0
[Install]
WantedBy=multi-user.target
`

const socketText = `
[Socket]
ListenStream=127.0.0.1:8080
ListenDatagram=/run/t.dgram
FileDescriptorName=web
Service=t.service
[Install]
WantedBy=sockets.target
`

// install puts the test binary and the units of this test into a guest.
func install(t *testing.T, g *guest.Guest) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for _, err := range []error{
		g.Copy(self, helperPath, 0o755),
		g.WriteFile("/etc/systemd/system/t.service", []byte(serviceText), 0o644),
		g.WriteFile("/etc/systemd/system/t.socket", []byte(socketText), 0o644),
		g.WriteFile("/etc/systemd/user/u.service", []byte(serviceText), 0o644),
		g.WriteFile("/etc/systemd/system/broken.service", []byte("[Service]\nExecStart=/nonexistent\n"), 0o644),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
}

func dialGuest(t *testing.T, g *guest.Guest) *Manager {
	t.Helper()
	m, err := Dial(testContext(t), Options{Address: g.BusAddress()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	return m
}

// must runs fn and ends the test on its error.
func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestSystemUnit(t *testing.T) {
	guest.Each(t, func(t *testing.T, g *guest.Guest) {
		install(t, g)
		m := dialGuest(t, g)
		ctx := testContext(t)
		must(t, m.DaemonReload(ctx))

		n, full, err := m.Version(ctx)
		if err != nil || n != g.Image().Systemd() || !strings.HasPrefix(full, fmt.Sprint(n)) {
			t.Errorf("Version = %d, %q, %v", n, full, err)
		}

		if _, err := m.Unit(ctx, "nope.service"); !errors.Is(err, ErrNoUnit) {
			t.Errorf("Unit: %v, want ErrNoUnit", err)
		}
		for op, err := range map[string]error{
			"start": m.Start(ctx, "nope.service"), "stop": m.Stop(ctx, "nope.service"), "restart": m.Restart(ctx, "nope.service"),
			"reload": m.Reload(ctx, "nope.service"), "signal": m.Signal(ctx, "nope.service", syscall.SIGUSR2),
			"enable": m.Enable(ctx, false, "nope.service"),
		} {
			if !errors.Is(err, ErrNoUnit) {
				t.Errorf("%s of no unit: %v, want ErrNoUnit", op, err)
			}
		}

		idle, err := m.Unit(ctx, "t.service")
		must(t, err)
		if idle.ActiveState != "inactive" || idle.MainPID != 0 || idle.UnitFileState != "disabled" {
			t.Errorf("idle: %+v", idle)
		}
		if err := m.Signal(ctx, "t.service", syscall.SIGUSR2); !errors.Is(err, ErrNoProcess) {
			t.Errorf("Signal to an idle unit: %v, want ErrNoProcess", err)
		}
		if err := m.ResetFailed(ctx, "t.service"); err != nil {
			t.Errorf("ResetFailed of an idle unit: %v", err)
		}
		must(t, m.Stop(ctx, "t.service"))

		must(t, m.Enable(ctx, false, "t.socket", "t.service"))
		if u, err := m.Unit(ctx, "t.service"); err != nil || u.UnitFileState != "enabled" {
			t.Errorf("enabled: %q, %v", u.UnitFileState, err)
		}
		must(t, m.Disable(ctx, false, "t.service"))
		if u, err := m.Unit(ctx, "t.service"); err != nil || u.UnitFileState != "disabled" {
			t.Errorf("disabled: %q, %v", u.UnitFileState, err)
		}
		if err := m.Enable(ctx, false, "broken.service"); err == nil || !strings.Contains(err.Error(), "[Install]") {
			t.Errorf("Enable without [Install]: %v", err)
		}

		must(t, m.Start(ctx, "t.socket"))
		must(t, m.Start(ctx, "t.service"))
		u, err := m.Unit(ctx, "t.service")
		must(t, err)
		if u.MainPID == 0 || u.StatusText != "up" || u.ActiveState != "active" || u.SubState != "running" || u.UID == 0 ||
			u.ExecStartPath != helperPath || !reflect.DeepEqual(u.ExecStart, []string{helperPath, "serve", "two words"}) ||
			u.Type != "notify" || u.NotifyAccess != "main" || u.KillMode != "control-group" || u.Restart != "no" ||
			u.TimeoutStop != 20*time.Second || u.TimeoutStart != 30*time.Second || u.Watchdog != 0 ||
			!reflect.DeepEqual(u.RuntimeDirectory, []string{"t"}) || u.ControlGroup != "/system.slice/t.service" ||
			!reflect.DeepEqual(u.TriggeredBy, []string{"t.socket"}) || len(u.InvocationID) != 32 || !u.CanReload ||
			!reflect.DeepEqual(u.Environment, []string{"ZDT_DBUSCTL_HELPER=service", "GORACE=atexit_sleep_ms=0"}) || u.FragmentPath != "/etc/systemd/system/t.service" ||
			u.Job != 0 || u.NeedDaemonReload || u.ActiveEnter.IsZero() || u.Result != "success" || len(u.ExecReload) != 3 || u.DynamicUser {
			t.Errorf("running: %+v", u)
		}
		s, err := m.Unit(ctx, "t.socket")
		must(t, err)
		if want := []Listen{{"Stream", "127.0.0.1:8080"}, {"Datagram", "/run/t.dgram"}}; !reflect.DeepEqual(s.Listen, want) ||
			s.FileDescriptorName != "web" || s.Accept || s.Backlog == 0 || !reflect.DeepEqual(s.Triggers, []string{"t.service"}) {
			t.Errorf("socket: %+v", s)
		}
		start := time.Now()
		const reads = 50
		for range reads {
			_, err := m.Unit(ctx, "t.service")
			must(t, err)
		}
		t.Logf("Unit takes %v", time.Since(start)/reads)

		// Of a new drop-in directory 252 takes no notice before a daemon-reload,
		// of a changed file it does.
		must(t, g.WriteFile("/etc/systemd/system/t.service.d/a.conf", []byte("[Service]\nTimeoutStopSec=infinity\n"), 0o644))
		must(t, g.WriteFile("/etc/systemd/system/t.service", []byte(serviceText), 0o644))
		if u, err = m.Unit(ctx, "t.service"); err != nil || !u.NeedDaemonReload {
			t.Errorf("NeedDaemonReload after a file changed: %v, %v", u.NeedDaemonReload, err)
		}
		must(t, m.DaemonReload(ctx))
		if u, err = m.Unit(ctx, "t.service"); err != nil || u.NeedDaemonReload || u.TimeoutStop != Infinity ||
			!reflect.DeepEqual(u.DropInPaths, []string{"/etc/systemd/system/t.service.d/a.conf"}) {
			t.Errorf("after daemon-reload: %+v, %v", u, err)
		}

		must(t, m.Reload(ctx, "t.service"))
		must(t, g.WriteFile("/run/refuse-reload", nil, 0o644))
		var j *JobError
		if err := m.Reload(ctx, "t.service"); !errors.As(err, &j) || j.Result != "failed" || j.UnitResult != "exit-code" {
			t.Errorf("refused reload: %v", err)
		}
		g.MustRun(t, "rm", "/run/refuse-reload")
		if err := m.Reload(ctx, "t.socket"); err == nil || !strings.Contains(err.Error(), "not applicable") {
			t.Errorf("reload of a socket: %v", err)
		}

		before := u.MainPID
		must(t, m.Restart(ctx, "t.service"))
		if u, err = m.Unit(ctx, "t.service"); err != nil || u.MainPID == before || u.MainPID == 0 {
			t.Errorf("restart: MainPID %d → %d, %v", before, u.MainPID, err)
		}
		must(t, m.Stop(ctx, "t.service"))
		if u, err = m.Unit(ctx, "t.service"); err != nil || u.ActiveState != "inactive" || u.MainPID != 0 || u.ControlGroup != "" {
			t.Errorf("stopped: %+v, %v", u, err)
		}
	})
}

func TestSystemReloadBusy(t *testing.T) {
	guest.Each(t, func(t *testing.T, g *guest.Guest) {
		install(t, g)
		m := dialGuest(t, g)
		ctx := testContext(t)
		must(t, m.DaemonReload(ctx))
		must(t, m.Start(ctx, "t.service"))
		states, err := m.Watch(ctx, "t.service")
		must(t, err)
		must(t, g.WriteFile("/run/slow-reload", nil, 0o644))
		first := make(chan error, 1)
		go func() { first <- m.Reload(ctx, "t.service") }()
		next(t, states, "a reload job", func(u Unit) bool { return u.ActiveState == "reloading" && u.Job != 0 && u.ControlPID != 0 })
		if err := m.Reload(ctx, "t.service"); !errors.Is(err, ErrBusy) {
			t.Errorf("second reload: %v, want ErrBusy", err)
		}
		// A stop replaces it; the reload learns that.
		must(t, m.Stop(ctx, "t.service"))
		var j *JobError
		if err := <-first; !errors.As(err, &j) || j.Result != "canceled" {
			t.Errorf("first reload: %v, want canceled", err)
		}
	})
}

func TestSystemWatchAndSignal(t *testing.T) {
	guest.Each(t, func(t *testing.T, g *guest.Guest) {
		install(t, g)
		m := dialGuest(t, g)
		ctx := testContext(t)
		must(t, m.DaemonReload(ctx))
		states, err := m.Watch(ctx, "t.service")
		must(t, err)
		if u := <-states; u.ActiveState != "inactive" {
			t.Errorf("first state: %+v", u)
		}
		must(t, m.Start(ctx, "t.service"))
		u := next(t, states, "running", func(u Unit) bool { return u.SubState == "running" && u.StatusText == "up" })
		old := u.MainPID

		// The signal reaches the main process, not its worker in the same cgroup.
		must(t, m.Signal(ctx, "t.service", syscall.SIGUSR2))
		marks := func() string { return g.MustRun(t, "ls", "/run/t") }
		eventually(t, "the main process got SIGUSR2", func() bool { return strings.Contains(marks(), "usr2.") })
		if want := fmt.Sprintf("usr2.%d", old); marks() != want {
			t.Errorf("marks: %s, want %s only", marks(), want)
		}

		must(t, m.Signal(ctx, "t.service", syscall.SIGUSR1))
		next(t, states, "StatusText", func(u Unit) bool { return u.StatusText == "draining" })

		// The main process hands over to its worker.
		must(t, m.Signal(ctx, "t.service", syscall.SIGHUP))
		u = next(t, states, "another MainPID", func(u Unit) bool { return u.MainPID != old && u.MainPID != 0 })
		if u.ActiveState != "active" || u.NRestarts != 0 {
			t.Errorf("after the handover: %+v", u)
		}
		must(t, m.Signal(ctx, "t.service", syscall.SIGUSR2))
		eventually(t, "the new main process got SIGUSR2", func() bool { return strings.Contains(marks(), fmt.Sprintf("usr2.%d", u.MainPID)) })

		// A daemon-reload in the middle, with a setting that changed.
		must(t, g.WriteFile("/etc/systemd/system/t.service.d/a.conf", []byte("[Unit]\nDescription=changed\n"), 0o644))
		g.MustRun(t, "systemctl", "daemon-reload")
		next(t, states, "the new description", func(u Unit) bool { return u.Description == "changed" })

		// A re-exec: systemd leaves the bus and comes back.
		main := u.MainPID
		g.MustRun(t, "systemctl", "daemon-reexec")
		must(t, m.Restart(ctx, "t.service"))
		next(t, states, "running again", func(u Unit) bool {
			return u.MainPID != main && u.SubState == "running" && u.StatusText == "up"
		})
		must(t, m.Signal(ctx, "t.service", syscall.SIGUSR1))
		next(t, states, "StatusText after the re-exec", func(u Unit) bool { return u.StatusText == "draining" })

		// A re-exec under a job that takes its time.
		must(t, g.WriteFile("/run/slow-reload", nil, 0o644))
		reload := make(chan error, 1)
		go func() { reload <- m.Reload(ctx, "t.service") }()
		next(t, states, "reloading", func(u Unit) bool { return u.ActiveState == "reloading" && u.ControlPID != 0 })
		g.MustRun(t, "systemctl", "daemon-reexec")
		g.MustRun(t, "systemctl", "kill", "--kill-whom=control", "--signal=KILL", "t.service")
		var j *JobError
		if err := <-reload; !errors.As(err, &j) {
			t.Errorf("reload over a re-exec: %v", err)
		} else {
			t.Logf("reload over a re-exec: %v", err)
		}

		// The unit's file goes away while it runs.
		g.MustRun(t, "rm", "-r", "/etc/systemd/system/t.service", "/etc/systemd/system/t.service.d")
		must(t, m.DaemonReload(ctx))
		next(t, states, "not-found but active", func(u Unit) bool { return u.LoadState == "not-found" && u.ActiveState == "active" })

		// The bus goes away.
		g.MustRun(t, "systemctl", "restart", "dbus.service")
		for range states {
		}
		if err := m.Err(); !errors.Is(err, ErrNoBus) || ctx.Err() != nil {
			t.Errorf("after the bus restarted: Err = %v, context %v", err, ctx.Err())
		}
		again := dialGuest(t, g)
		must(t, again.Stop(ctx, "t.service"))
	})
}

func TestSystemOtherManagersAndUsers(t *testing.T) {
	guest.Each(t, func(t *testing.T, g *guest.Guest) {
		install(t, g)
		ctx := testContext(t)
		play := func(role string, uid int) string {
			t.Helper()
			r, err := g.Exec(ctx, guest.Command{Args: []string{helperPath}, Env: []string{helperEnv + "=" + role}, UID: uid})
			must(t, err)
			if r.Code != 0 {
				t.Fatal(r)
			}
			t.Log(r)
			return r.Stdout
		}
		g.MustRun(t, "systemctl", "daemon-reload")
		g.MustRun(t, "systemctl", "start", "t.service")
		play("stranger", guest.UserUID)
		g.MustRun(t, "systemctl", "stop", "t.service")

		r, err := g.Exec(ctx, guest.Command{Args: []string{helperPath}, Env: []string{helperEnv + "=user"}, UID: guest.UserUID})
		must(t, err)
		if r.Code == 0 || !strings.Contains(r.Stderr, "connect to the user's systemd: systemd cannot be reached") {
			t.Errorf("without a user manager: %s", r)
		}
		g.MustRun(t, "loginctl", "enable-linger", guest.User)
		must(t, g.WaitUnit(ctx, fmt.Sprintf("user@%d.service", guest.UserUID), "active"))
		if out := play("user", guest.UserUID); !strings.Contains(out, "direct: false") {
			t.Errorf("the user's bus was not used: %s", out)
		}

		g.MustRun(t, "systemctl", "stop", "dbus.socket", "dbus.service")
		if out := play("direct", 0); !strings.Contains(out, "direct: true") {
			t.Errorf("the private socket was not used: %s", out)
		}
	})
}
