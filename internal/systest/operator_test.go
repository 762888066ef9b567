package systest

import (
	"encoding/json"
	"strings"
	"syscall"
	"testing"

	"github.com/zdt-dev/zdt/handoff/control"
	"github.com/zdt-dev/zdt/internal/guest"
	"github.com/zdt-dev/zdt/upgrade"
)

// login is what makes a command one of somebody who has just logged in, with all groups of that user.
func login(user string, args ...string) []string {
	return append([]string{"setpriv", "--reuid", user, "--regid", user, "--init-groups", "--reset-env", "env", "PATH=/usr/local/bin:/usr/bin:/usr/sbin"}, args...)
}

// as runs a command as a user, who must get that exit code; -1 stands for any but 0.
func (s *service) as(user string, code int, args ...string) guest.Result {
	s.t.Helper()
	r, err := s.g.Run(s.t.Context(), login(user, args...)...)
	if err != nil {
		s.t.Fatal(err)
	}
	if code >= 0 && r.Code != code || code < 0 && r.Code == 0 {
		s.t.Errorf("%s: exit %d, want %d\n%s", user, r.Code, code, r)
	}
	return r
}

// asReport is as, of a command that prints the report of an upgrade.
func (s *service) asReport(user string, code int, args ...string) upgrade.Report {
	s.t.Helper()
	return s.reportOf(s.as(user, code, append(args, "-o", "json")...))
}

func (s *service) reportOf(r guest.Result) upgrade.Report {
	s.t.Helper()
	var report upgrade.Report
	if err := json.Unmarshal([]byte(r.Stdout), &report); err != nil {
		s.t.Fatalf("%v\n%s", err, r)
	}
	return report
}

// operators gives the service a group of operators, in which is guest.User.
func (s *service) operators() {
	s.t.Helper()
	s.run("groupadd", "--system", "hello-ops")
	s.run("usermod", "-aG", "hello-ops,systemd-journal", guest.User)
	s.run("useradd", "--create-home", "stranger")
	if r := s.must(0, "zdt", "operators", s.name, "--group", "hello-ops", "--dry-run"); !strings.Contains(r.Stdout, "+polkit.addRule") {
		s.t.Errorf("the dry run does not show the rule\n%s", r)
	}
	s.must(0, "zdt", "operators", s.name, "--group", "hello-ops")
	if r := s.must(0, "zdt", "operators", s.name, "--group", "hello-ops"); !strings.Contains(r.Stdout, "nothing to do") {
		s.t.Errorf("not idempotent:\n%s", r)
	}
}

// A member of a group that zdt operators was told of upgrades one service, under load and without root, decides about that
// upgrade, and hears how it ends.
func TestOperatorUpgrades(t *testing.T) {
	guest.Each(t, func(t *testing.T, g *guest.Guest) {
		s := newService(t, g, options{})
		s.operators()
		two, three := s.put(good(2)), s.put(good(3))
		l := s.lightLoad()
		r := s.asReport(guest.User, 0, "zdt", "upgrade", s.name, "--binary", two, "-m", "as an operator")
		if r.Outcome != upgrade.Upgraded || r.Who.UID != guest.UserUID || !r.Who.Operator || r.Why != "as an operator" {
			t.Errorf("%+v", r)
		}
		s.mustRun(2)
		if r := s.asReport(guest.User, 10, "zdt", "upgrade", s.name, "--binary", s.put(bad(3, crash))); r.Outcome != upgrade.Refused || r.Phase != upgrade.Rehearse {
			t.Errorf("%+v", r)
		}
		s.mustRun(2)
		for _, args := range [][]string{{"zdt", "status", s.name}, {"zdt", "history", s.name}, {"zdt", "releases", s.name}, {"journalctl", "-q", "-n", "1", "-u", s.unit}} {
			s.as(guest.User, 0, args...)
		}

		// Somebody else's turn comes later; whoever has begun can end it.
		begin := func() *guest.Process {
			t.Helper()
			p, err := g.Spawn(t.Context(), guest.Command{Args: login(guest.User, "zdt", "upgrade", s.name, "--binary", three, "--bake", "10m", "-o", "json")})
			if err != nil {
				t.Fatal(err)
			}
			s.await("the bake", func() bool {
				st := s.status()
				return st.Runtime != nil && st.Runtime.Phase == control.Held && st.Txn != nil
			})
			return p
		}
		end := func(p *guest.Process, code int, outcomes ...upgrade.Outcome) {
			t.Helper()
			r, err := p.Wait()
			if err != nil || r.Code != code {
				t.Fatalf("exit %d, want %d: %v\n%s", r.Code, code, err, r)
			}
			if got := s.reportOf(r).Outcome; got != outcomes[0] && got != outcomes[len(outcomes)-1] {
				t.Errorf("%s, want %s", got, outcomes)
			}
		}
		p := begin()
		s.as(guest.User, 75, "zdt", "upgrade", s.name, "--binary", three)
		s.as("stranger", 77, "zdt", "abort", s.name)
		s.as(guest.User, 0, "zdt", "abort", s.name)
		end(p, 11, upgrade.Aborted)
		s.mustRun(2)

		p = begin()
		if err := p.Signal(syscall.SIGINT); err != nil {
			t.Fatal(err)
		}
		end(p, 130, upgrade.Aborted, upgrade.Interrupted)
		s.mustRun(2)

		p = begin()
		s.as(guest.User, 0, "zdt", "promote", s.name)
		end(p, 0, upgrade.Upgraded)
		s.mustRun(3)

		if r := s.asReport(guest.User, 0, "zdt", "rollback", s.name); r.Outcome != upgrade.Upgraded {
			t.Errorf("%+v", r)
		}
		s.mustRun(2)
		mustLoseNothing(t, l.Stop())
	})
}

// An operator can do nothing else, and nobody else can do that.
func TestOperatorIsRefused(t *testing.T) {
	guest.Each(t, func(t *testing.T, g *guest.Guest) {
		s := newService(t, g, options{})
		s.operators()
		two := s.put(good(2))
		main := s.mainPID()
		const unit = "zdt-operator@hello.service"
		for _, user := range []string{guest.User, "stranger"} {
			for _, command := range []string{
				"stop hello.service", "restart hello.service", "start hello.service", "reload hello.service", "kill hello.service",
				"reload-or-restart " + unit, "restart " + unit, "stop " + unit, "kill " + unit, "reload dbus.service",
				"set-property --runtime hello.service MemoryMax=1G", "set-property --runtime " + unit + " MemoryMax=1G", "daemon-reload", "daemon-reexec",
				"mask --runtime " + unit, "disable " + unit, "edit --full --runtime " + unit, "reboot",
			} {
				s.as(user, -1, append([]string{"systemctl", "--no-ask-password"}, strings.Fields(command)...)...)
			}
			s.as(user, -1, "systemd-run", "--no-ask-password", "--wait", "true")
			for _, command := range []string{"hold hello -m no", "stage hello --binary " + two, "prune hello", "operators hello --group " + user, "operators hello --off", "accept hello"} {
				s.as(user, 77, append([]string{"zdt"}, strings.Fields(command)...)...)
			}
		}
		s.as("stranger", -1, "systemctl", "--no-ask-password", "reload", unit)
		s.as("stranger", 77, "zdt", "upgrade", s.name, "--binary", two)
		s.as("stranger", 77, "zdt", "rollback", s.name)
		s.as("stranger", -1, "ls", "/var/lib/zdt-operators/hello")
		s.as(guest.User, -1, "ls", "/var/lib/zdt-operators/hello/taken")
		s.as(guest.User, -1, "touch", "/var/lib/zdt-operators/hello/answers/x")

		// A reload that no job may replace does not keep the host from going down.
		if c := s.run("systemctl", "show", "-P", "Conflicts", "-P", "Requires", unit); strings.Contains(c, "shutdown.target") || strings.Contains(c, "sysinit.target") {
			t.Errorf("a shutdown has to stop it: %s", c)
		}
		// What would take something of the policy away.
		for _, flag := range []string{"--ignore-hold", "--accept-risk=ZDT023", "--skip-gates", "--no-rehearse", "--gate=exec:/bin/true", "--strategy=restart", "--on-failure=freeze", "--ready-timeout=1s", "--drain-timeout=1s"} {
			s.as(guest.User, 77, "zdt", "upgrade", s.name, "--binary", two, flag)
		}
		s.must(0, "zdt", "hold", s.name, "-m", "no")
		s.as(guest.User, 75, "zdt", "upgrade", s.name, "--binary", two)
		s.must(0, "zdt", "hold", s.name, "--off")

		// What lies in incoming is not believed.
		const id = "0123456789abcdef0123456789abcdef"
		const dir = "/var/lib/zdt-operators/hello/incoming/" + id
		post := func(more string) string {
			request := `{"schema":"zdt.request/1","service":"hello","do":"upgrade","program":{"name":"x","sha256":"` + strings.Repeat("0", 64) + `"}` + more + `}`
			return "umask 077; echo '" + request + "' >" + dir + ".draft; mv " + dir + ".draft " + dir + ".request; "
		}
		for what, script := range map[string]string{
			"symbolic link":      "ln -s /etc/shadow " + dir + ".program; " + post(""),
			"not a regular file": "mkfifo " + dir + ".program; " + post(""),
			"hard links":         "cp " + two + " " + dir + ".x; ln " + dir + ".x " + dir + ".program; " + post(""),
			"written by others":  "cp " + two + " " + dir + ".program; chmod 666 " + dir + ".program; " + post(""),
			"unknown field":      post(`,"ignore_hold":true`),
			"no such file":       post(""),
			"sha256":             "umask 077; cp " + two + " " + dir + ".program; " + post(""),
		} {
			s.as(guest.User, -1, "sh", "-c", script+"systemctl --no-ask-password reload "+unit)
			r := s.as(guest.User, 0, "sh", "-c", "cat /var/lib/zdt-operators/hello/answers/"+id+".ndjson; rm -f "+dir+".x "+dir+".program")
			if !strings.Contains(r.Stdout, what) {
				t.Errorf("the answer does not say %q:\n%s", what, r)
			}
			s.run("rm", "/var/lib/zdt-operators/hello/answers/"+id+".ndjson")
		}
		if left := s.run("ls", "-A", "/var/lib/zdt-operators/hello/incoming", "/var/lib/zdt-operators/hello/taken"); strings.Contains(left, id) {
			t.Errorf("left over:\n%s", left)
		}
		s.mustRun(1)
		if now := s.mainPID(); now != main {
			t.Errorf("main process %d, was %d", now, main)
		}

		// A policy that asks for a signature holds for operators, too, and so does a stop.
		if err := g.WriteFile("/etc/systemd/system/hello.service.d/50-signed.conf", []byte("[X-Zdt]\nRequireSignature=yes\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		s.run("systemctl", "daemon-reload")
		s.as(guest.User, 10, "zdt", "upgrade", s.name, "--binary", two)
		s.run("rm", "/etc/systemd/system/hello.service.d/50-signed.conf")
		s.run("systemctl", "daemon-reload")
		s.run("systemctl", "stop", "hello.socket", s.unit)
		if r := s.as(guest.User, 10, "zdt", "upgrade", s.name, "--binary", two); !strings.Contains(r.Stderr, "may not start it") {
			t.Errorf("%s", r)
		}
		if state := s.show("ActiveState"); state != "inactive" {
			t.Errorf("an operator has started it: %s", state)
		}

		// It is taken away as it was given.
		s.must(0, "zdt", "operators", s.name, "--off")
		s.as(guest.User, 77, "zdt", "upgrade", s.name, "--binary", two)
		s.as(guest.User, -1, "systemctl", "--no-ask-password", "reload", unit)
		if left := s.run("sh", "-c", "ls /etc/polkit-1/rules.d /etc/systemd/system /var/lib/zdt-operators"); strings.Contains(left, "zdt-operator@") || strings.Contains(left, "60-zdt") {
			t.Errorf("left over:\n%s", left)
		}
	})
}

// What an operator's turn would give him beyond the upgrade is looked at when it is his turn, however long he has waited for it.
func TestOperatorGetsNoMore(t *testing.T) {
	guest.Each(t, func(t *testing.T, g *guest.Guest) {
		s := newService(t, g, options{init: []string{"--service-user", guest.User}})
		s.run("useradd", "--create-home", "ann")
		s.run("groupadd", "--system", "hello-ops")
		s.run("usermod", "-aG", "hello-ops", "ann")
		s.must(10, "zdt", "operators", s.name, "--group", guest.User) // the service's own
		s.must(0, "zdt", "operators", s.name, "--group", "hello-ops")
		two := s.put(good(2))
		const dropIn = "/etc/systemd/system/hello.service.d/60-test.conf"
		with := func(text string, do func()) {
			t.Helper()
			s.writeUnit(dropIn, text)
			s.run("systemctl", "daemon-reload")
			do()
			s.run("rm", dropIn)
			s.run("systemctl", "daemon-reload")
		}
		refused := func(code int, what string, args ...string) {
			t.Helper()
			if r := s.as("ann", code, append([]string{"zdt"}, args...)...); !strings.Contains(r.Stderr, what) {
				t.Errorf("it does not say %q\n%s", what, r)
			}
		}
		program := strings.TrimSpace(s.run("sh", "-c", "systemctl cat hello.service | sed -n 's/^ExecStart=//p'"))
		for what, text := range map[string]string{
			"ExecStart=":           "ExecStart=\nExecStart=!" + program,
			"ExecStartPre=":        "ExecStartPre=+/var/lib/zdt/hello/current/hello -version",
			"AmbientCapabilities=": "AmbientCapabilities=CAP_DAC_OVERRIDE",
			"it runs as root":      "User=",
		} {
			with("[Service]\n"+text+"\n", func() { refused(10, what, "upgrade", s.name, "--binary", two) })
		}

		// The service's bake is not an operator's to end.
		with("[X-Zdt]\nBake=1h\n", func() {
			refused(77, "may only lengthen it", "upgrade", s.name, "--binary", two, "--bake", "1s")
			p, err := g.Spawn(t.Context(), guest.Command{Args: login("ann", "zdt", "upgrade", s.name, "--binary", two)})
			if err != nil {
				t.Fatal(err)
			}
			s.await("the bake", func() bool {
				st := s.status()
				return st.Runtime != nil && st.Runtime.Phase == control.Held && st.Txn != nil
			})
			refused(77, "may not end it early", "promote", s.name)
			s.as("ann", 0, "zdt", "abort", s.name)
			if r, err := p.Wait(); err != nil || r.Code != 11 {
				t.Errorf("%v, %s", err, r)
			}
		})

		// Nor are its gates to be gone round.
		with("[X-Zdt]\nGate=within=5m tcp:127.0.0.1:1\n", func() {
			p, err := g.Spawn(t.Context(), guest.Command{Args: login("ann", "zdt", "upgrade", s.name, "--binary", two)})
			if err != nil {
				t.Fatal(err)
			}
			s.await("the gates are asked", func() bool {
				st := s.status()
				return st.Runtime != nil && st.Runtime.Phase == control.Held && st.Txn != nil
			})
			refused(77, "has gates", "promote", s.name)
			s.as("ann", 0, "zdt", "abort", s.name)
			if r, err := p.Wait(); err != nil || r.Code != 11 {
				t.Errorf("%v, %s", err, r)
			}
		})

		// Who has left the group while he waited has waited in vain.
		root := s.startUpgrade(two, "--bake", "10m")
		s.await("the bake of root", func() bool {
			st := s.status()
			return st.Runtime != nil && st.Runtime.Phase == control.Held && st.Txn != nil
		})
		p, err := g.Spawn(t.Context(), guest.Command{Args: login("ann", "zdt", "upgrade", s.name, "--binary", s.put(good(3)), "--wait=5m")})
		if err != nil {
			t.Fatal(err)
		}
		s.await("the operator waits", func() bool {
			r, err := g.Run(t.Context(), "sh", "-c", "systemctl list-units --plain --no-legend 'zdt-hello-*' | grep -c running")
			return err == nil && strings.TrimSpace(r.Stdout) == "1"
		})
		s.run("gpasswd", "-d", "ann", "hello-ops")
		s.must(0, "zdt", "promote", s.name)
		root.wait().mustBe(upgrade.Upgraded, 0)
		if r, err := p.Wait(); err != nil || r.Code != 10 || !strings.Contains(r.Stderr, "is not in the group") {
			t.Errorf("%v, %s", err, r)
		}
		// What serves the policy of today has to be signed, also if it served unsigned once. Root may know better.
		s.run("usermod", "-aG", "hello-ops", "ann")
		with("[X-Zdt]\nRequireSignature=yes\n", func() {
			refused(10, "not signed", "rollback", s.name)
			s.mustRun(2)
			s.must(0, "zdt", "rollback", s.name)
		})
		s.mustRun(1)
	})
}
