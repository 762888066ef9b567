package systest

import (
	"encoding/json"
	"os"
	"strings"
	"testing"

	"github.com/zdt-dev/zdt/handoff/control"
	"github.com/zdt-dev/zdt/internal/guest"
	"github.com/zdt-dev/zdt/internal/load"
	"github.com/zdt-dev/zdt/release"
	"github.com/zdt-dev/zdt/upgrade"
)

// rollback runs zdt rollback and returns its report.
func (s *service) rollback(flags ...string) result {
	s.t.Helper()
	p, err := s.g.Spawn(s.t.Context(), guest.Command{Args: append([]string{"zdt", "rollback", s.name, "-o", "json"}, flags...)})
	if err != nil {
		s.t.Fatal(err)
	}
	return (&running{s.t, p}).wait()
}

// settleBy runs a command that settles an upgrade and returns its report.
func (s *service) settleBy(code int, args ...string) upgrade.Report {
	s.t.Helper()
	r := s.must(code, append(args, s.name, "-o", "json")...)
	var rep upgrade.Report
	if err := json.Unmarshal([]byte(r.Stdout), &rep); err != nil {
		s.t.Fatalf("%v\n%s", err, r)
	}
	return rep
}

// history is zdt history, newest first.
func (s *service) history() []release.Entry {
	s.t.Helper()
	var doc struct {
		Entries []release.Entry `json:"entries"`
	}
	if err := json.Unmarshal([]byte(s.run("zdt", "history", s.name, "-o", "json", "-n", "0")), &doc); err != nil {
		s.t.Fatal(err)
	}
	return doc.Entries
}

// Whoever is awake decides: they end the bake early, undo it, go back, hold the service, and go on with what a zdt
// that was killed has left. Clients notice none of it.
func TestOperatorDecides(t *testing.T) {
	t.Parallel()
	guest.Each(t, func(t *testing.T, g *guest.Guest) {
		s := newService(t, g, options{})
		s.mustUpgrade(good(2))
		before := s.footprint()
		l := s.lightLoad()
		if err := l.Until(t.Context(), func(r load.Report) bool { return r.Requests > 100 }); err != nil {
			t.Fatal(err)
		}

		// The bake would take an hour.
		u := s.keepIn(control.Held, 3)
		s.run("zdt", "promote", s.name)
		u.wait().mustBe(upgrade.Upgraded, 0)
		s.mustRun(3)

		// It is undone, and by whom.
		u = s.keepIn(control.Held, 4)
		s.run("zdt", "abort", s.name)
		u.wait().mustBe(upgrade.Aborted, 11)
		s.mustRun(3)
		if e := s.history()[0]; e.Outcome != string(upgrade.Aborted) || e.Reason != "requested" {
			t.Errorf("history %+v", e)
		}
		s.must(10, "zdt", "abort", s.name)

		// Back, further back, forward by name; never to what has not served.
		s.rollback("-m", "too slow").mustBe(upgrade.Upgraded, 0)
		s.mustRun(2)
		s.rollback().mustBe(upgrade.Upgraded, 0)
		s.mustRun(1)
		s.rollback().mustBe(upgrade.Refused, 10)
		third := ""
		for _, e := range s.history() {
			if e.Kind == release.KindUpgrade && e.Committed && third == "" {
				third = e.To
			}
		}
		s.rollback("--to", third).mustBe(upgrade.Upgraded, 0)
		s.mustRun(3)

		// Nobody touches it.
		s.run("zdt", "hold", s.name, "-m", "black friday")
		s.upgrade(good(4)).mustBe(upgrade.Locked, 75)
		s.rollback().mustBe(upgrade.Locked, 75)
		if st := s.status(); !strings.Contains(st.text, "black friday") {
			t.Errorf("the status does not tell of the hold:\n%s", st.text)
		}
		s.run("zdt", "hold", s.name, "--off")

		// zdt is killed in the middle: go on, or do not.
		for _, how := range []string{"resume", "abort", "promote"} {
			u = s.keepIn(control.Held, 5)
			u.Signal(os.Kill)
			<-u.Done()
			switch how {
			case "resume":
				rep := s.settleBy(0, "zdt", "resume")
				if rep.Outcome != upgrade.Upgraded {
					t.Errorf("resumed: %+v", rep)
				}
				s.mustRun(5)
				s.rollback().mustBe(upgrade.Upgraded, 0)
			case "abort":
				if rep := s.settleBy(0, "zdt", "abort"); rep.Outcome != upgrade.Aborted {
					t.Errorf("aborted: %+v", rep)
				}
				s.mustRun(3)
			case "promote":
				if rep := s.settleBy(0, "zdt", "promote"); rep.Outcome != upgrade.Upgraded {
					t.Errorf("promoted: %+v", rep)
				}
				s.mustRun(5)
			}
		}
		// Somebody has broken the unit's policy, and put a hook there that all can write: nothing is begun, but what is open
		// can be undone.
		u = s.keepIn(control.Held, 6)
		u.Signal(os.Kill)
		<-u.Done()
		const bad, hook = "/etc/systemd/system/hello.service.d/90-bad.conf", "/etc/zdt/hooks.d/pre-upgrade/10-bad"
		for path, text := range map[string]string{bad: "[X-Zdt]\nGate=nonsense\nReadyTimeout=soon\n", hook: "#!/bin/sh\n"} {
			s.run("mkdir", "-p", path[:strings.LastIndex(path, "/")])
			if err := s.g.WriteFile(path, []byte(text), 0o777); err != nil {
				t.Fatal(err)
			}
		}
		s.run("chmod", "0777", hook)
		s.run("systemctl", "daemon-reload")
		if r := s.upgrade(good(6)); r.exec.Code != 10 {
			t.Errorf("an upgrade with a policy that nobody understands:\n%s", r.exec)
		}
		if rep := s.settleBy(0, "zdt", "abort"); rep.Outcome != upgrade.Aborted {
			t.Errorf("aborted: %+v", rep)
		}
		s.run("rm", bad, hook)
		s.run("systemctl", "daemon-reload")
		s.mustRun(5)

		if rep := s.settleBy(0, "zdt", "resume"); rep.Outcome != upgrade.Unchanged {
			t.Errorf("nothing was open: %+v", rep)
		}
		s.mustUpgrade(good(7)) // who has undone a handoff keeps the journal open
		mustLoseNothing(t, l.Stop())
		s.mustLeaveNothing(before)
	})
}
