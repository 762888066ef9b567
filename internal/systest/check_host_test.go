package systest

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/zdt-dev/zdt/handoffcheck"
	"github.com/zdt-dev/zdt/internal/guest"
	"github.com/zdt-dev/zdt/upgrade"
)

// Where zdt is run from decides what it can see of the service and hold on to. What is missing is found before anything happens, and
// the upgrade fails over it indeed. Without the check one by restart ended with a service that nobody had judged.
func TestCheckFromElsewhere(t *testing.T) {
	t.Parallel()
	g := guest.Boot(t, guest.Trixie)
	s := newService(t, g, options{init: []string{"--service-user", guest.User}})
	n := 1
	for _, tt := range []struct {
		want  string
		where []string
	}{
		{"ZDT057", []string{"unshare", "--pid", "--fork", "--mount-proc"}},
		{"ZDT058", []string{"systemd-run", "--pipe", "--wait", "-q", "-p", "CapabilityBoundingSet=~CAP_SYS_PTRACE"}},
		{"ZDT059", []string{"unshare", "--cgroup"}},
		{"ZDT060", []string{"systemd-run", "--pipe", "--wait", "-q", "-p", "SystemCallFilter=~pidfd_open", "-p", "SystemCallErrorNumber=ENOSYS"}},
	} {
		r, err := g.Run(t.Context(), append(tt.where, "zdt", "check", s.name, "-o", "json")...)
		var doc struct{ Findings []handoffcheck.Finding }
		if err != nil || json.Unmarshal([]byte(r.Stdout), &doc) != nil || r.Code != 10 || len(doc.Findings) != 1 || doc.Findings[0].ID != tt.want {
			t.Errorf("%s: got %+v, want %s\n%s", tt.where, doc.Findings, tt.want, r)
			continue
		}
		t.Logf("%s: %s", tt.want, doc.Findings[0].Seen)
		n++
		from := func(more ...string) result {
			return s.begin(slices.Concat(tt.where, []string{"zdt", "upgrade", s.name, "--binary", s.put(good(n)), "-o", "json", "--no-rehearse"}, more)...).wait()
		}
		// What keeps zdt from finding the running release is met by preflight itself.
		if r := from(); r.exec.Code != 10 || r.Phase != upgrade.Preflight || !strings.Contains(r.Cause, tt.want) && !strings.Contains(r.Cause, "/exe: ") {
			t.Errorf("%s: the upgrade is not refused: %s", tt.want, r.exec)
		}
		r2 := from("--accept-risk", tt.want)
		t.Logf("%s: %s", tt.want, r2.Cause)
		if r2.exec.Code != 10 && r2.exec.Code != 11 || strings.Contains(r2.Cause, tt.want) {
			t.Errorf("%s: the upgrade does not fail: %s", tt.want, r2.exec)
		}
		if found := s.check(0); len(found) > 0 {
			t.Errorf("on the host: %+v", found)
		}
		s.upgrade(good(n)).mustBe(upgrade.Upgraded, 0)
	}
	if r := s.must(0, "zdt", "check"); !strings.Contains(r.Stdout, "hello: nothing stands in the way of an upgrade\n") {
		t.Errorf("of all services:\n%s", r)
	}
}

// What keeps lines out of the journal that zdt reads is found: then the story of a handoff is missing, and a gate that waits for a
// line waits in vain or lets everything pass.
func TestCheckJournal(t *testing.T) {
	t.Parallel()
	g := guest.Boot(t, guest.Trixie)
	s := newService(t, g, options{init: []string{"--service-user", guest.User}})
	const dir = "/etc/systemd/system/hello.service.d/"
	const journaldConf = "/etc/systemd/journald.conf.d/zz-defect.conf"
	restart := func() {
		s.run("systemctl", "daemon-reload")
		s.run("systemctl", "restart", s.unit)
	}
	n := 1
	story := func(whole bool) {
		t.Helper()
		n++
		before := s.mainPID()
		s.upgrade(good(n)).mustBe(upgrade.Upgraded, 0)
		s.run("journalctl", "--sync")
		told := s.run("journalctl", "-q", "-o", "cat", fmt.Sprintf("_PID=%d", before), "SYSLOG_IDENTIFIER=zdt")
		lines := strings.FieldsFunc(told, func(r rune) bool { return r == '\n' })
		if whole != (len(lines) == 4) {
			t.Errorf("of the handoff there is in the journal:\n%s", told)
		}
	}
	find := func(lines, want string) (fix string) {
		t.Helper()
		found := s.check(0)
		if len(found) != 1 || found[0].ID != want {
			t.Errorf("%s: got %+v, want %s", lines, found, want)
			return ""
		}
		t.Logf("%s: %s", found[0].ID, found[0].Seen)
		return found[0].DropIn
	}

	for _, lines := range []string{"LogNamespace=x", "LogRateLimitIntervalSec=1min\nLogRateLimitBurst=1"} {
		s.writeUnit(dir+"a-defect.conf", "[Service]\n"+lines+"\n")
		restart()
		fix := find(lines, "ZDT055")
		story(false)
		s.writeUnit(dir+"b-mended.conf", fix)
		restart()
		if left := s.check(0); len(left) > 0 {
			t.Errorf("%s: the drop-in leaves %+v", lines, left)
		}
		story(true)
		s.run("rm", "-r", dir)
	}
	restart()
	s.write(journaldConf, "[Journal]\nStorage=none\n")
	s.run("systemctl", "restart", "systemd-journald.service")
	find("Storage=none", "ZDT055")
	story(false)
	s.run("rm", journaldConf)
	s.run("systemctl", "restart", "systemd-journald.service")
	journald := []string{"systemd-journald.socket", "systemd-journald-dev-log.socket", "systemd-journald.service"}
	s.run(append([]string{"systemctl", "stop"}, journald...)...)
	find("no journald", "ZDT055")
	s.run(append([]string{"systemctl", "start"}, journald...)...)

	// With a gate.
	for _, lines := range []string{"LogNamespace=x", "StandardOutput=null\nStandardError=null"} {
		s.writeUnit(dir+"a-defect.conf", "[Service]\n"+lines+"\n[X-Zdt]\nGate=journal!:no.database\n")
		restart()
		fix := find(lines, "ZDT056")
		n++
		s.upgrade(bad(n, complain)).mustBe(upgrade.Upgraded, 0) // which the gate is there to prevent
		s.writeUnit(dir+"b-mended.conf", fix)
		restart()
		if left := s.check(0); len(left) > 0 {
			t.Errorf("%s: the drop-in leaves %+v", lines, left)
		}
		n++
		s.upgrade(bad(n, complain)).mustBe(upgrade.RolledBack, 11)
		s.run("rm", "-r", dir)
	}
}

// A service that counts its processes by itself cannot be started with sockets, and a gate that asks where nobody listens fails.
func TestCheckNamespaces(t *testing.T) {
	t.Parallel()
	g := guest.Boot(t, guest.Trixie)
	s := newService(t, g, options{init: []string{"--service-user", guest.User}})
	const dir = "/etc/systemd/system/hello.service.d/"
	s.writeUnit(dir+"a-defect.conf", "[Service]\nPrivatePIDs=yes\n")
	s.run("systemctl", "daemon-reload")
	found := s.check(10)
	if len(found) != 1 || found[0].ID != "ZDT061" {
		t.Fatalf("got %+v, want ZDT061", found)
	}
	if r, err := g.Run(t.Context(), "systemctl", "restart", s.unit); err != nil || r.Code == 0 {
		t.Errorf("it is started: %s", r)
	}
	s.writeUnit(dir+"b-mended.conf", found[0].DropIn)
	s.run("systemctl", "daemon-reload")
	s.run("systemctl", "restart", s.unit)
	if left := s.check(0); len(left) > 0 {
		t.Errorf("the drop-in leaves %+v", left)
	}
	s.upgrade(good(2)).mustBe(upgrade.Upgraded, 0)
	s.run("rm", "-r", dir)

	s.writeUnit("/usr/local/bin/ask", "#!/bin/sh\n") // not executable
	for _, gate := range []string{"tcp:nowhere", "exec:/usr/local/bin/ask"} {
		s.writeUnit(dir+"a-defect.conf", "[X-Zdt]\nGate="+gate+"\n")
		s.run("systemctl", "daemon-reload")
		if found := s.check(10); len(found) != 1 || found[0].ID != "ZDT064" {
			t.Errorf("%s: got %+v, want ZDT064", gate, found)
		}
		if r, err := g.Run(t.Context(), "zdt", "upgrade", s.name, "--binary", s.put(good(3))); err != nil || r.Code != 10 {
			t.Errorf("%s: %v, %s", gate, err, r)
		}
		s.upgrade(good(3), "--skip-gates").mustBe(upgrade.Upgraded, 0)
		s.upgrade(good(2), "--skip-gates").mustBe(upgrade.Upgraded, 0)
	}
	s.run("chmod", "755", "/usr/local/bin/ask")
	if left := s.check(0); len(left) > 0 {
		t.Errorf("of a program that can be run: %+v", left)
	}
	s.upgrade(good(3)).mustBe(upgrade.Upgraded, 0)
	s.upgrade(good(2)).mustBe(upgrade.Upgraded, 0)

	for _, private := range []string{"no", "yes"} {
		s.writeUnit(dir+"a-defect.conf", "[Service]\nPrivateNetwork="+private+"\n[X-Zdt]\nGate=tcp:127.0.0.1:8081 within=1s every=100ms\n")
		s.run("systemctl", "daemon-reload")
		s.run("systemctl", "restart", s.unit)
		found := s.check(0)
		if len(found) != 1 || found[0].ID != "ZDT062" || strings.Contains(found[0].Seen, "of its own") != (private == "yes") {
			t.Errorf("got %+v, want ZDT062", found)
		}
		s.upgrade(good(3)).mustBe(upgrade.RolledBack, 11)
		// The port that the socket unit has opened is the host's.
		s.writeUnit(dir+"a-defect.conf", "[Service]\nPrivateNetwork="+private+"\n[X-Zdt]\nGate=tcp:127.0.0.1:8080 within=1s every=100ms\n")
		s.run("systemctl", "daemon-reload")
		if left := s.check(0); len(left) > 0 {
			t.Errorf("with a port that is asked for there is %+v", left)
		}
		s.upgrade(good(3)).mustBe(upgrade.Upgraded, 0)
		s.upgrade(good(2)).mustBe(upgrade.Upgraded, 0)
	}
}
