package systest

import (
	"fmt"
	"strings"
	"testing"

	"github.com/zdt-dev/zdt/internal/guest"
	"github.com/zdt-dev/zdt/upgrade"
)

// hook puts a script at a point of all upgrades of the service.
func (s *service) hook(point, script string) {
	s.t.Helper()
	path := "/etc/zdt/hooks.d/hello.d/" + point + "/50-test"
	s.run("mkdir", "-p", path[:strings.LastIndex(path, "/")])
	if err := s.g.WriteFile(path, []byte("#!/bin/sh\n"+script+"\n"), 0o755); err != nil {
		s.t.Fatal(err)
	}
}

// Hooks run at their points, in the order of the upgrade, with what they need to know; an objection counts for what the
// documentation says, and what they say is in the verdict and in the journal.
func TestHooks(t *testing.T) {
	t.Parallel()
	guest.Each(t, func(t *testing.T, g *guest.Guest) {
		s := newService(t, g, options{})
		l := s.lightLoad()
		for _, point := range []string{"pre-upgrade", "post-listen", "pre-commit", "post-commit", "rollback"} {
			s.hook(point, `cat >>/run/hooked; echo "$ZDT_HOOK_POINT $ZDT_SERVICE $ZDT_REASON" >>/run/hooks; test ! -e /run/object-$ZDT_HOOK_POINT || { echo "not today"; exit 3; }`)
		}
		points := func() string {
			return strings.Join(strings.Fields(s.run("sh", "-c", "cut -d' ' -f1 /run/hooks; rm -f /run/hooks")), " ")
		}
		p := s.plan("--binary", s.put(good(2)))
		planned := ""
		for _, step := range p.Steps {
			for _, h := range step.Hooks {
				planned += fmt.Sprintf("%s in %s; ", h.Point, step.Phase)
			}
		}
		if planned != "pre-upgrade in stage; post-listen in listen; pre-commit in commit; post-commit in commit; rollback in rollback; " {
			t.Errorf("hooks of the plan: %s", planned)
		}
		s.run("touch", "/etc/zdt/hooks.d/hello.d/pre-commit/50-test") // as if it were another one
		s.upgrade(good(2), "--plan-id", p.ID).mustBe(upgrade.Refused, 10)
		s.mustUpgrade(good(2))
		if got := points(); got != "pre-upgrade post-listen pre-commit post-commit" {
			t.Errorf("hooks of an upgrade: %s", got)
		}
		for _, tt := range []struct {
			point   string
			outcome upgrade.Outcome
			code    int
			asked   string
		}{
			{"pre-upgrade", upgrade.Refused, 10, "pre-upgrade"},
			{"post-listen", upgrade.RolledBack, 11, "pre-upgrade post-listen rollback"},
			{"pre-commit", upgrade.RolledBack, 11, "pre-upgrade post-listen pre-commit rollback"},
		} {
			s.run("touch", "/run/object-"+tt.point)
			r := s.upgrade(good(3))
			r.mustBe(tt.outcome, tt.code)
			if !strings.Contains(r.Cause, "not today") || r.Reason != "hook" {
				t.Errorf("cause %q, reason %q", r.Cause, r.Reason)
			}
			if got := points(); got != tt.asked {
				t.Errorf("%s objects, hooks: %s", tt.point, got)
			}
			s.run("rm", "/run/object-"+tt.point)
			s.mustRun(2)
		}
		if log := s.run("journalctl", "-o", "cat", "-t", "zdt-hook/50-test"); strings.Count(log, "not today") != 3 {
			t.Errorf("the journal has:\n%s", log)
		}
		// Too late to stop anything.
		s.run("touch", "/run/object-post-commit")
		r := s.upgrade(good(3))
		r.mustBe(upgrade.Upgraded, 0)
		if !strings.Contains(strings.Join(r.Warnings, "\n"), "not today") {
			t.Errorf("warnings %q", r.Warnings)
		}
		s.run("rm", "/run/object-post-commit")
		s.rollback().mustBe(upgrade.Upgraded, 0)
		// What others can write is not run, and nothing is changed.
		s.run("chmod", "0777", "/etc/zdt/hooks.d/hello.d/pre-commit/50-test")
		r = s.upgrade(good(4))
		if r.exec.Code != 10 {
			t.Errorf("exit code %d\n%s", r.exec.Code, r.exec)
		}
		s.mustRun(2)
		mustLoseNothing(t, l.Stop())
	})
}
