package dbusctl

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/godbus/dbus/v5"
)

// bus is a private dbus-daemon.
type bus struct {
	address string
	cmd     *exec.Cmd
	ended   chan struct{}
}

const busConfig = `<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN" "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>session</type>
  <listen>unix:dir=%s</listen>
  <policy context="default">
    <allow send_destination="*" eavesdrop="true"/>
    <allow eavesdrop="true"/>
    <allow own="*"/>
  </policy>
</busconfig>
`

func startBus(t *testing.T) *bus {
	t.Helper()
	path, err := exec.LookPath("dbus-daemon")
	if err != nil {
		if os.Getenv("ZDT_SYSTEST") == "require" {
			t.Fatal("dbus-daemon is not installed (package dbus-daemon)")
		}
		t.Skip("dbus-daemon is not installed (package dbus-daemon)")
	}
	dir := t.TempDir()
	config := filepath.Join(dir, "bus.conf")
	if err := os.WriteFile(config, fmt.Appendf(nil, busConfig, dir), 0o600); err != nil {
		t.Fatal(err)
	}
	b := &bus{cmd: exec.Command(path, "--nofork", "--nopidfile", "--print-address=1", "--config-file="+config), ended: make(chan struct{})}
	out, err := b.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := b.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.kill)
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatalf("read the address of dbus-daemon: %v", err)
	}
	b.address = strings.TrimSpace(line)
	go func() { b.cmd.Wait(); close(b.ended) }()
	return b
}

func (b *bus) kill() {
	b.cmd.Process.Kill()
	<-b.ended
}

// systemd is a fake org.freedesktop.systemd1 that misbehaves on demand.
type systemd struct {
	t   *testing.T
	bus *bus

	mu    sync.Mutex
	conn  *dbus.Conn
	calls []string // "StartUnit web.service replace"
	units map[string]map[string]any
	jobs  map[dbus.ObjectPath]bool
	// onCall runs inside every method of the manager, before its reply, and
	// may refuse it.
	onCall func(method, unit string) *dbus.Error
}

const fakeJob = dbus.ObjectPath("/org/freedesktop/systemd1/job/7")

// startFake starts a bus with a fake systemd that knows web.service.
func startFake(t *testing.T) *systemd {
	t.Helper()
	s := &systemd{t: t, bus: startBus(t), units: make(map[string]map[string]any), jobs: make(map[dbus.ObjectPath]bool)}
	s.set("web.service", map[string]any{"Id": "web.service", "LoadState": "loaded", "ActiveState": "active", "MainPID": uint32(100), "StatusText": "", "Result": "success", "ReloadResult": "success"})
	s.join()
	return s
}

// join connects the fake to the bus and takes systemd's name.
func (s *systemd) join() {
	s.t.Helper()
	conn := s.connect()
	s.mu.Lock()
	s.conn = conn
	s.mu.Unlock()
	for _, err := range []error{
		conn.ExportMethodTable(map[string]any{
			"Subscribe":       func() *dbus.Error { return s.called("Subscribe", "") },
			"Reload":          func() *dbus.Error { return s.called("Reload", "") },
			"StartUnit":       s.jobMethod("StartUnit"),
			"StopUnit":        s.jobMethod("StopUnit"),
			"RestartUnit":     s.jobMethod("RestartUnit"),
			"ReloadUnit":      s.jobMethod("ReloadUnit"),
			"ResetFailedUnit": func(unit string) *dbus.Error { return s.called("ResetFailedUnit", unit) },
			"KillUnit": func(unit, whom string, sig int32) *dbus.Error {
				return s.called("KillUnit", unit, whom, fmt.Sprint(sig))
			},
			"EnableUnitFiles": func(units []string, runtime, force bool) (bool, []change, *dbus.Error) {
				err := s.called("EnableUnitFiles", strings.Join(units, ","), fmt.Sprint(runtime), fmt.Sprint(force))
				return units[0] != "static.service", []change{{"symlink", "/a", "/b"}}, err
			},
			"DisableUnitFiles": func(units []string, runtime bool) ([]change, *dbus.Error) {
				return nil, s.called("DisableUnitFiles", strings.Join(units, ","), fmt.Sprint(runtime))
			},
		}, managerPath, managerIface),
		conn.ExportMethodTable(map[string]any{
			"Get": func(iface, name string) (dbus.Variant, *dbus.Error) { return dbus.MakeVariant("252.38-1~deb12u1"), nil },
		}, managerPath, propsIface),
		conn.ExportSubtreeMethodTable(map[string]any{"GetAll": s.getAll}, dbus.ObjectPath(strings.TrimSuffix(unitRoot, "/")), propsIface),
		conn.ExportMethodTable(map[string]any{
			"Get": func(iface, name string) (dbus.Variant, *dbus.Error) {
				s.mu.Lock()
				defer s.mu.Unlock()
				if !s.jobs[fakeJob] {
					return dbus.Variant{}, dbus.NewError("org.freedesktop.DBus.Error.UnknownObject", []any{"Unknown object"})
				}
				return dbus.MakeVariant("running"), nil
			},
		}, fakeJob, propsIface),
	} {
		if err != nil {
			s.t.Fatal(err)
		}
	}
	if reply, err := conn.RequestName(destination, dbus.NameFlagDoNotQueue); err != nil || reply != dbus.RequestNameReplyPrimaryOwner {
		s.t.Fatalf("take systemd's name: %v %v", reply, err)
	}
}

func (s *systemd) connect() *dbus.Conn {
	s.t.Helper()
	conn, err := dbus.Connect(s.bus.address)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { conn.Close() })
	return conn
}

func (s *systemd) called(method, unit string, more ...string) *dbus.Error {
	s.mu.Lock()
	s.calls = append(s.calls, strings.Join(append([]string{method, unit}, more...), " "))
	on := s.onCall
	s.mu.Unlock()
	if on != nil {
		return on(method, unit)
	}
	return nil
}

func (s *systemd) jobMethod(method string) func(unit, mode string) (dbus.ObjectPath, *dbus.Error) {
	return func(unit, mode string) (dbus.ObjectPath, *dbus.Error) {
		s.mu.Lock()
		s.jobs[fakeJob] = true
		s.mu.Unlock()
		return fakeJob, s.called(method, unit, mode)
	}
}

// on sets what happens inside the manager's methods.
func (s *systemd) on(f func(method, unit string) *dbus.Error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.onCall = f
}

func (s *systemd) log() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]string(nil), s.calls...)
}

func (s *systemd) getAll(msg dbus.Message, iface string) (map[string]dbus.Variant, *dbus.Error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	path, _ := msg.Headers[dbus.FieldPath].Value().(dbus.ObjectPath)
	all := make(map[string]dbus.Variant)
	for name, unit := range s.units {
		if unitPath(name) == path {
			for k, v := range unit {
				all[k] = dbus.MakeVariant(v)
			}
			return all, nil
		}
	}
	all["LoadState"] = dbus.MakeVariant("not-found")
	all["ActiveState"] = dbus.MakeVariant("inactive")
	return all, nil
}

// set changes properties without a signal.
func (s *systemd) set(unit string, changed map[string]any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.units[unit] == nil {
		s.units[unit] = make(map[string]any)
	}
	for k, v := range changed {
		s.units[unit][k] = v
	}
}

// change changes properties as systemd does: with a signal of one interface.
func (s *systemd) change(unit, iface string, changed map[string]any) {
	s.set(unit, changed)
	s.emit(unitPath(unit), propsIface+".PropertiesChanged", destination+"."+iface, map[string]dbus.Variant{}, []string{})
}

func (s *systemd) jobRemoved(path dbus.ObjectPath, unit, result string) {
	s.mu.Lock()
	delete(s.jobs, path)
	s.mu.Unlock()
	s.emit(managerPath, managerIface+".JobRemoved", uint32(7), path, unit, result)
}

func (s *systemd) emit(path dbus.ObjectPath, name string, body ...any) {
	s.mu.Lock()
	conn := s.conn
	s.mu.Unlock()
	if err := conn.Emit(path, name, body...); err != nil {
		s.t.Errorf("emit %s: %v", name, err)
	}
}

// reexec leaves the bus and comes back under another unique name.
func (s *systemd) reexec() {
	s.leave()
	s.join()
}

func (s *systemd) leave() {
	if _, err := s.conn.ReleaseName(destination); err != nil {
		s.t.Error(err)
	}
	s.conn.Close()
}

func (s *systemd) dial() *Manager {
	s.t.Helper()
	m, err := Dial(testContext(s.t), Options{Address: s.bus.address})
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { m.Close() })
	return m
}

// waiting waits until m has learned the path of a job and waits for its end.
func (s *systemd) waiting(m *Manager) {
	s.t.Helper()
	eventually(s.t, "the job is waited for", func() bool {
		m.sig.mu.Lock()
		defer m.sig.mu.Unlock()
		for j := range m.sig.jobs {
			if j.path != "" {
				return true
			}
		}
		return false
	})
}

func testContext(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}
