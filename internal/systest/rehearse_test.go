package systest

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/zdt-dev/zdt/internal/guest"
	"github.com/zdt-dev/zdt/rehearse"
	"github.com/zdt-dev/zdt/upgrade"
)

// rehearsed is a finished zdt rehearse.
type rehearsed struct {
	rehearse.Result
	exec guest.Result
}

func (s *service) rehearse(file string, flags ...string) rehearsed {
	s.t.Helper()
	r, err := s.g.Run(s.t.Context(), append([]string{"zdt", "rehearse", s.name, "--binary", file, "-o", "json"}, flags...)...)
	if err != nil {
		s.t.Fatal(err)
	}
	out := rehearsed{exec: r}
	if err := json.Unmarshal([]byte(r.Stdout), &out.Result); err != nil {
		s.t.Fatalf("stdout is not one JSON document: %v\n%s", err, r)
	}
	if out.ExitCode != r.Code {
		s.t.Errorf("the document says exit_code %d\n%s", out.ExitCode, r)
	}
	return out
}

// upgradeByDefault is zdt upgrade as an operator types it.
func (s *service) upgradeByDefault(p program, flags ...string) result {
	s.t.Helper()
	return s.begin(append([]string{"zdt", "upgrade", s.name, "--binary", s.put(p), "-o", "json"}, flags...)...).wait()
}

// nothingLeft checks that there is no trace of a rehearsal.
func (s *service) nothingLeft() {
	s.t.Helper()
	for _, dir := range []string{"/run", "/run/systemd/system", "/sys/fs/cgroup/system.slice"} {
		entries, err := os.ReadDir(s.g.Path(dir))
		if err != nil {
			s.t.Error(err)
		}
		for _, e := range entries {
			if strings.Contains(e.Name(), "rehearse") {
				s.t.Errorf("%s is left", filepath.Join(dir, e.Name()))
			}
		}
	}
	if units := s.run("systemctl", "list-units", "--all", "--plain", "--no-legend", "zdt-rehearse-*"); units != "" {
		s.t.Errorf("units are left:\n%s", units)
	}
}

// undisturbed returns a check that the service is as it was.
func (s *service) undisturbed() func() {
	look := func() string {
		return s.run("systemctl", "show", "-p", "MainPID,ActiveState,SubState,InvocationID,NRestarts,UID,NeedDaemonReload,ActiveEnterTimestampMonotonic", s.unit, s.name+".socket")
	}
	before := look()
	return func() {
		s.t.Helper()
		if now := look(); now != before {
			s.t.Errorf("the service was\n%s\nand is\n%s", before, now)
		}
	}
}

// Candidates of a few lines.
const (
	sandboxed    = "#!/bin/sh\necho state >/usr/hello.state || exit 9\nsystemd-notify --ready\nsleep 60 & wait\n"
	neverAccepts = "#!/bin/sh\ntrap 'kill $p; exit 0' TERM\nsystemd-notify --ready\nsleep 60 & p=$!; wait\n"
	// A child serves; the main process is what systemd goes by.
	ignoresTERM   = "#!/bin/sh\n" + served + "trap '' TERM\nwhile :; do sleep 1; done\n"
	exits5        = "#!/bin/sh\n" + served + "trap 'exit 5' TERM\nwhile :; do wait; done\n"
	served        = "sh -c 'LISTEN_PID=$$ exec /srv/v0002/hello' &\n"
	shortDraining = "[Service]\nTimeoutStopSec=1s\nNotifyAccess=all\n"
)

// Candidates good and bad are tried beside a service under load, which notices nothing, and nothing is left of any.
func TestRehearse(t *testing.T) {
	t.Parallel()
	guest.Each(t, func(t *testing.T, g *guest.Guest) {
		s := newService(t, g, options{init: []string{"--dynamic-user", "--health", "http://127.0.0.1:8080/"}})
		// systemd-notify is a process of its own, which only counts so.
		s.write("/etc/systemd/system/hello.service.d/short.conf", shortDraining)
		s.run("systemctl", "daemon-reload")
		l := s.lightLoad()
		check := s.undisturbed()

		r := s.rehearse(s.put(good(2)))
		if r.Outcome != rehearse.Passed || r.exec.Code != 0 || r.ReadyAfter <= 0 || r.MemoryPeak == 0 || len(r.Gates) != 1 || len(r.Skipped) != 0 || len(r.Differences) != 0 || len(r.Warnings) != 0 {
			t.Errorf("a good candidate: %s", r.exec)
		}
		check()
		s.nothingLeft()
		for _, c := range []struct {
			name, file string
			phase      rehearse.Phase
			cause, log string
			within     string
		}{
			{"crashes", s.put(bad(101, crash)), rehearse.Ready, "exit status 1", "read configuration: file does not exist", "30s"},
			{"is never ready", s.put(bad(102, hang)), rehearse.Ready, "not READY within 700ms", "waiting for a database", "700ms"},
			{"panics after READY", s.put(bad(103, crashAfterReady)), "", "exit status 2", "one too many", "30s"},
			{"crashes in the sandbox alone", s.write("/srv/sandboxed", sandboxed), rehearse.Ready, "exit status 9", "Read-only file system", "30s"},
			{"does not accept", s.write("/srv/accept", neverAccepts), rehearse.Accept, "did not accept a connection", "", "30s"},
			{"ignores SIGTERM", s.write("/srv/ignores", ignoresTERM), rehearse.Stop, "did not end within 1s after SIGTERM", "", "30s"},
			{"ends badly", s.write("/srv/exits5", exits5), rehearse.Stop, "exit status 5", "", "30s"},
		} {
			r := s.rehearse(c.file, "--ready-timeout="+c.within)
			if r.Outcome != rehearse.Failed || r.exec.Code != 10 || c.phase != "" && r.Phase != c.phase || !strings.Contains(r.Cause, c.cause) || !strings.Contains(strings.Join(r.Log, "\n"), c.log) {
				t.Errorf("%s: %s", c.name, r.exec)
			}
			check()
			s.nothingLeft()
		}
		// An upgrade does so by itself, before anything is changed.
		up := s.upgradeByDefault(bad(104, crash))
		up.mustBe(upgrade.Refused, 10)
		if up.Phase != upgrade.Rehearse || up.Reason != "rehearsal" || len(up.CandidateLog) == 0 || !strings.Contains(up.Hint, "--no-rehearse") || up.Rehearsal == nil {
			t.Errorf("%s", up.exec)
		}
		check()
		s.nothingLeft()
		p := s.plan("--binary", s.put(good(3)), "--rehearse")
		if step := p.step(upgrade.Rehearse); step.Phase == "" || step.Skipped || step.Within == 0 {
			t.Errorf("the plan: %s", p.exec)
		}
		up = s.upgradeByDefault(good(3), "--rehearse", "--plan-id", p.ID)
		up.mustBe(upgrade.Upgraded, 0)
		told := slices.ContainsFunc(up.Timings, func(x upgrade.Timing) bool {
			return x.Phase == upgrade.Rehearse && x.State == upgrade.Done && x.Took > 0
		})
		if !told || up.Rehearsal == nil || up.Rehearsal.State != upgrade.RehearsalPassed || len(up.Warnings) > 0 {
			t.Errorf("the rehearsal is not told: %s", up.exec)
		}
		// Where it is not possible an upgrade goes on and says why, or is refused.
		s.write("/etc/systemd/system/hello.socket.d/shared.conf", "[Socket]\nReusePort=yes\n")
		s.run("systemctl", "daemon-reload")
		p = s.plan("--binary", s.put(good(5)), "--rehearse")
		up = s.upgradeByDefault(good(5), "--rehearse")
		up.mustBe(upgrade.Refused, 10)
		if p.Outcome != upgrade.PlanRefused || p.Problems[0].Cause != up.Cause || p.Problems[0].Hint != up.Hint {
			t.Errorf("the plan %s says otherwise than the upgrade %s", p.exec, up.exec)
		}
		if up.Phase != upgrade.Rehearse || !strings.Contains(up.Cause, "ReusePort=yes") {
			t.Errorf("%s", up.exec)
		}
		up = s.upgradeByDefault(good(5))
		up.mustBe(upgrade.Upgraded, 0)
		if up.Rehearsal == nil || up.Rehearsal.State != upgrade.RehearsalLeftOut || !strings.Contains(up.Rehearsal.Text, "ReusePort=yes") {
			t.Errorf("%s", up.exec)
		}
		s.nothingLeft()
		mustLoseNothing(t, l.Stop())
	})
}

// Whoever ends a rehearsal does not wait for a candidate that does not want to end.
func TestRehearsalIsInterrupted(t *testing.T) {
	t.Parallel()
	guest.Each(t, func(t *testing.T, g *guest.Guest) {
		s := newService(t, g, options{})
		s.write("/etc/systemd/system/hello.service.d/long.conf", "[Service]\nTimeoutStopSec=10min\nNotifyAccess=all\n")
		s.run("systemctl", "daemon-reload")
		s.put(good(2))
		check := s.undisturbed()
		p, err := g.Spawn(t.Context(), guest.Command{Args: []string{"zdt", "rehearse", s.name, "--binary", s.write("/srv/ignores", ignoresTERM)}})
		if err != nil {
			t.Fatal(err)
		}
		s.await("it is told to end", func() bool {
			return strings.Contains(s.run("systemctl", "list-units", "--all", "--plain", "--no-legend", "zdt-rehearse-*.service"), "deactivating")
		})
		began := time.Now()
		if err := p.Signal(syscall.SIGINT); err != nil {
			t.Fatal(err)
		}
		if r, err := p.Wait(); err != nil || r.Code != 130 || time.Since(began) > 5*time.Minute {
			t.Errorf("after %s: %v, %s", time.Since(began), err, r)
		}
		s.nothingLeft()
		check()
	})
}

// A rehearsal whose zdt was killed is ended by the next one.
func TestRehearsalIsKilled(t *testing.T) {
	t.Parallel()
	guest.Each(t, func(t *testing.T, g *guest.Guest) {
		s := newService(t, g, options{})
		p, err := g.Spawn(t.Context(), guest.Command{Args: []string{"zdt", "rehearse", s.name, "--binary", s.put(bad(2, hang))}})
		if err != nil {
			t.Fatal(err)
		}
		s.await("the rehearsal runs", func() bool {
			return strings.Contains(s.run("systemctl", "list-units", "--all", "--plain", "--no-legend", "zdt-rehearse-*"), ".service")
		})
		if err := p.Signal(os.Kill); err != nil {
			t.Fatal(err)
		}
		<-p.Done()
		if r := s.rehearse(s.put(good(3))); r.Outcome != rehearse.Passed {
			t.Errorf("%s", r.exec)
		}
		s.nothingLeft()
		s.mustRun(1)
	})
}

// The same under zdt run, whose question for readiness is asked of the rehearsal.
func TestHelperRehearses(t *testing.T) {
	t.Parallel()
	guest.Each(t, func(t *testing.T, g *guest.Guest) {
		s := underHelper(t, g, "--ready=http://127.0.0.1:8080/")
		check := s.undisturbed()
		if r := s.rehearse(s.put(good(2))); r.Outcome != rehearse.Passed || len(r.Gates) != 1 {
			t.Errorf("%s", r.exec)
		}
		if r := s.rehearse(s.put(bad(3, crash))); r.Outcome != rehearse.Failed {
			t.Errorf("%s", r.exec)
		}
		check()
		s.nothingLeft()
	})
}
