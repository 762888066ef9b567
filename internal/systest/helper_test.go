package systest

import (
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/zdt-dev/zdt/handoff/control"
	"github.com/zdt-dev/zdt/internal/guest"
	"github.com/zdt-dev/zdt/internal/load"
	"github.com/zdt-dev/zdt/upgrade"
)

// What zdt run promises, with examples/hello as the program: it says READY, and finishes its requests at SIGTERM. Its
// connections do not move between groups, so they close politely.

// underHelper is newService under zdt run.
func underHelper(t *testing.T, g *guest.Guest, flags ...string) *service {
	t.Helper()
	s := newService(t, g, options{init: append([]string{"--runtime", "helper", "--dynamic-user"}, flags...)})
	s.quiet()
	s.mustFindNothing() // whatever the flags
	return s
}

// quiet waits until one group serves and no other process is there but the helper.
func (s *service) quiet() control.Status {
	s.t.Helper()
	var r control.Status
	s.await("one group that serves", func() bool {
		st := s.status()
		if st.Runtime == nil {
			return false
		}
		r = *st.Runtime
		return r.Phase == control.Idle && r.Predecessor == nil && r.Handoff == nil && r.PID == st.Unit.MainPID && s.processes() == 2
	})
	return r
}

// mustUpgradeApp upgrades and checks that the main process stayed.
func (s *service) mustUpgradeApp(n int) upgrade.Report {
	s.t.Helper()
	helper := s.mainPID()
	r := s.upgrade(good(n))
	r.mustBe(upgrade.Upgraded, 0)
	if got := s.mainPID(); got != helper {
		s.t.Errorf("the main process was %d and is %d", helper, got)
	}
	if got := s.answers(); got != version(n) {
		s.t.Errorf("%s answers after the upgrade to %s", got, version(n))
	}
	return r.Report
}

// Twenty upgrades in a row: no request fails, none is refused, the main process stays, and nothing piles up.
func TestHelperUpgradesUnderLoad(t *testing.T) {
	t.Parallel()
	guest.Each(t, func(t *testing.T, g *guest.Guest) {
		s := underHelper(t, g)
		s.mustUpgradeApp(2)
		s.quiet()
		before := s.descriptors()
		l := s.lightLoad()
		if err := l.Until(t.Context(), func(r load.Report) bool { return r.Requests > 200 }); err != nil {
			t.Fatal(err)
		}
		for n := 3; n < 23; n++ {
			s.mustUpgradeApp(n)
		}
		r := l.Stop()
		t.Log(r)
		mustFailNothing(t, r)
		if st := s.quiet(); st.Generation != 22 {
			t.Errorf("generation %d", st.Generation)
		}
		s.await("the descriptors of before", func() bool { return slices.Equal(s.descriptors(), before) })
	})
}

// A release that does not come up leaves the old one serving, and the next upgrade works.
func TestHelperRollsBack(t *testing.T) {
	t.Parallel()
	guest.Each(t, func(t *testing.T, g *guest.Guest) {
		s := underHelper(t, g)
		l := s.lightLoad()
		app := s.quiet().App
		for i, fault := range []string{crash, exit0, hang, crashAfterReady} {
			var flags []string
			if fault == hang {
				flags = []string{"--ready-timeout=50ms"}
			}
			s.upgrade(bad(2+i, fault), flags...).mustBe(upgrade.RolledBack, 11)
			if st := s.quiet(); st.App != app && fault != crashAfterReady {
				t.Errorf("%s: process %d serves, and not %d", fault, st.App, app)
			}
			if got := s.answers(); got != version(1) {
				t.Errorf("%s: %s answers", fault, got)
			}
		}
		s.mustUpgradeApp(9)
		mustFailNothing(t, l.Stop())
	})
}

// The program ends by itself: so does the unit, with the program's own status.
func TestHelperEndsAsTheProgramDoes(t *testing.T) {
	t.Parallel()
	guest.Each(t, func(t *testing.T, g *guest.Guest) {
		s := underHelper(t, g)
		for _, end := range []struct {
			sig  syscall.Signal
			says string
		}{
			{syscall.SIGKILL, "status=9/KILL"},
			{syscall.SIGABRT, "status=2/INVALIDARGUMENT"}, // Go catches it, prints its goroutines and exits with 2
		} {
			st := s.quiet()
			s.run("kill", "-"+strconv.Itoa(int(end.sig)), strconv.Itoa(st.App))
			s.await("a new start by systemd", func() bool {
				now := s.status()
				return now.Runtime != nil && now.Unit.MainPID != st.PID && now.Runtime.Phase == control.Idle
			})
			if said := s.run("journalctl", "-o", "cat", "-u", s.unit); !strings.Contains(said, end.says) {
				t.Errorf("systemd does not say %q:\n%s", end.says, said)
			}
		}
	})
}

// The helper itself is killed: systemd ends the program with it and starts the service again. Nobody is refused, as
// the socket is systemd's.
func TestHelperIsKilled(t *testing.T) {
	t.Parallel()
	guest.Each(t, func(t *testing.T, g *guest.Guest) {
		s := underHelper(t, g)
		l := s.load(load.Config{KeepAlive: -1, Fresh: 2, Think: 5 * time.Millisecond})
		for range 3 {
			st := s.quiet()
			s.run("kill", "-9", strconv.Itoa(st.PID))
			s.await("a new start by systemd", func() bool {
				now := s.status()
				return now.Runtime != nil && now.Unit.MainPID != st.PID && now.Runtime.Phase == control.Idle
			})
			s.quiet() // no process of before is left
		}
		if r := l.Stop(); r.Refused > 0 || r.Requests == 0 {
			t.Error(r)
		}
	})
}

// systemctl reload takes over what the unit says by now: its environment and its arguments.
func TestHelperReloadsTheUnit(t *testing.T) {
	t.Parallel()
	guest.Each(t, func(t *testing.T, g *guest.Guest) {
		// Not a dynamic user: the bus of these guests does not know any (libnss-systemd), and zdt handoff could not ask for
		// the arguments.
		s := newService(t, g, options{init: []string{"--runtime", "helper", "--service-user", guest.User}})
		before := s.quiet()
		dir := g.Path("/etc/systemd/system/" + s.unit + ".d")
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		_, command, _ := strings.Cut(s.run("systemctl", "cat", s.unit), "\nExecStart=")
		command, _, _ = strings.Cut(command, "\n")
		helper, program, _ := strings.Cut(command, " -- ")
		text := "[Service]\nEnvironment=COLOUR=green\nExecStart=\nExecStart=" + helper + " -- /usr/bin/env PAINT=${COLOUR} " + program + "\n"
		if err := os.WriteFile(dir+"/colour.conf", []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		s.run("systemctl", "daemon-reload")
		s.run("systemctl", "reload", s.unit)
		after := s.quiet()
		if after.App == before.App || after.PID != before.PID || after.Generation != before.Generation+1 {
			t.Errorf("before %+v\nafter %+v", before, after)
		}
		env, err := os.ReadFile(g.Path(fmt.Sprintf("/proc/%d/environ", after.App)))
		if err != nil {
			t.Fatal(err)
		}
		vars := strings.Split(string(env), "\x00")
		for _, want := range []string{"COLOUR=green", "PAINT=green", "LISTEN_FDS=1", "LISTEN_FDNAMES=http", fmt.Sprintf("LISTEN_PID=%d", after.App)} {
			if !slices.Contains(vars, want) {
				t.Errorf("no %s in %q", want, vars)
			}
		}
		for _, v := range vars {
			if name, _, _ := strings.Cut(v, "="); name == "MAINPID" || name == "WATCHDOG_PID" || name == "SYSTEMD_EXEC_PID" {
				t.Errorf("the program has %s", v)
			}
		}
	})
}

// Fifty times a newer helper takes the place of the one that runs, under load: no client notices, neither does the
// program, and nothing is left behind.
func TestHelperRenewsItself(t *testing.T) {
	t.Parallel()
	guest.Each(t, func(t *testing.T, g *guest.Guest) {
		s := underHelper(t, g)
		first := s.quiet()
		before := s.descriptors()
		l := s.lightLoad()
		if err := l.Until(t.Context(), func(r load.Report) bool { return r.Requests > 200 }); err != nil {
			t.Fatal(err)
		}
		for n := 1; n <= 50; n++ {
			s.run("systemctl", "kill", "-s", "HUP", "--kill-who=main", s.unit)
			s.await(fmt.Sprintf("renewal %d", n), func() bool {
				r := s.status().Runtime
				if r != nil && r.Helper != nil && r.Helper.Error != "" {
					t.Fatal(r.Helper.Error)
				}
				return r != nil && r.Helper != nil && r.Helper.Renewals == n
			})
		}
		last := s.quiet()
		if last.PID != first.PID || last.App != first.App || last.Generation != first.Generation {
			t.Errorf("before %+v\nafter %+v", first, last)
		}
		r := l.Stop()
		t.Log(r)
		mustLoseNothing(t, r)
		s.await("the descriptors of before", func() bool { return slices.Equal(s.descriptors(), before) })
		s.mustUpgradeApp(2)
	})
}

// zdt upgrade --helper tells what became of it: a zdt that cannot go on is not executed, a good one is.
func TestHelperUpgradesItself(t *testing.T) {
	t.Parallel()
	guest.Each(t, func(t *testing.T, g *guest.Guest) {
		s := underHelper(t, g)
		before := s.quiet()
		l := s.lightLoad()
		s.run("cp", "/usr/local/bin/zdt", "/usr/local/bin/zdt.good")
		s.write("/usr/local/bin/zdt.bad", "#!/bin/sh\necho this one is broken >&2; exit 3\n")
		s.run("chmod", "755", "/usr/local/bin/zdt.bad")
		s.run("mv", "/usr/local/bin/zdt.bad", "/usr/local/bin/zdt")
		if r := s.must(11, "/usr/local/bin/zdt.good", "upgrade", s.name, "--helper"); !strings.Contains(r.Stderr, "cannot go on with the state of this one (it ended: exited 3)") {
			t.Errorf("%s", r)
		}
		if now := s.statusBy("/usr/local/bin/zdt.good"); now.PID != before.PID || now.App != before.App {
			t.Errorf("before %+v\nafter %+v", before, now)
		}
		s.run("mv", "/usr/local/bin/zdt.good", "/usr/local/bin/zdt")
		s.run("zdt", "upgrade", s.name, "--helper")
		if now := s.quiet(); now.PID != before.PID || now.App != before.App || now.Helper.Renewals != 1 {
			t.Errorf("before %+v\nafter %+v", before, now)
		}
		mustLoseNothing(t, l.Stop())
		s.must(64, "zdt", "upgrade", s.name, "--helper", "--binary", "/usr/local/bin/zdt")
	})
}

// statusBy is what the runtime says, asked with another zdt.
func (s *service) statusBy(zdt string) control.Status {
	s.t.Helper()
	var doc struct {
		Services []status `json:"services"`
	}
	if err := json.Unmarshal([]byte(s.run(zdt, "status", s.name, "-o", "json")), &doc); err != nil || len(doc.Services) != 1 || doc.Services[0].Runtime == nil {
		s.t.Fatalf("zdt status: %v, %+v", err, doc)
	}
	return *doc.Services[0].Runtime
}
