package systest

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/zdt-dev/zdt/internal/guest"
	"github.com/zdt-dev/zdt/upgrade"
)

// plan is a finished zdt plan.
type plan struct {
	upgrade.Plan
	Settings *struct {
		Known        string `json:"known"`
		DaemonReload bool   `json:"daemon_reload"`
		Changes      []struct {
			Key     string `json:"key"`
			Name    string `json:"name"`
			Applied bool   `json:"applied"`
			When    string `json:"when"`
		} `json:"changes"`
		Files []struct {
			Path string `json:"path"`
		} `json:"files"`
	} `json:"settings"`

	exec guest.Result
}

// step is a step of the plan; the zero value if there is none.
func (p plan) step(phase upgrade.Phase) upgrade.PlanStep {
	for _, s := range p.Steps {
		if s.Phase == phase {
			return s
		}
	}
	return upgrade.PlanStep{}
}

func (s *service) plan(flags ...string) plan {
	s.t.Helper()
	// As startUpgrade does it.
	r, err := s.g.Run(s.t.Context(), append([]string{"zdt", "plan", s.name, "-o", "json", "--no-rehearse"}, flags...)...)
	if err != nil {
		s.t.Fatal(err)
	}
	p := plan{exec: r}
	if err := json.Unmarshal([]byte(r.Stdout), &p); err != nil {
		s.t.Fatalf("stdout is not one JSON document: %v\n%s", err, r)
	}
	if p.ExitCode != r.Code || p.Changed {
		s.t.Errorf("the document says exit_code %d, changed %t; zdt ended with %d\n%s", p.ExitCode, p.Changed, r.Code, r)
	}
	return p
}

// changes are the plan's changed settings, each with when it comes into force.
func (p plan) changes() []string {
	var all []string
	if p.Settings != nil {
		for _, c := range p.Settings.Changes {
			text := c.Key
			if c.Name != "" {
				text += " " + c.Name
			}
			all = append(all, text+": "+c.When)
		}
	}
	return all
}

// zdt plan tells which settings of the unit changed since the start, what systemd has read of them and what a handoff takes over,
// which is less with the library than under the helper; and what it tells is so.
func TestPlanSettings(t *testing.T) {
	t.Parallel()
	const dropIn = "/etc/systemd/system/hello.service.d/test.conf"
	guest.Each(t, func(t *testing.T, g *guest.Guest) {
		for _, runtime := range []string{"library", "helper"} {
			t.Run(runtime, func(t *testing.T) {
				s := newService(t, g, options{init: []string{"--runtime", runtime, "--service-user", guest.User}})
				defer s.remove()
				s.run("test", "-s", "/var/lib/zdt/hello/units.json") // zdt init --start has kept them
				p := s.plan("--binary", s.put(good(2)))
				if p.Outcome != upgrade.PlanUpgrade || p.Runtime != runtime || p.ID == "" || p.Settings == nil || p.Settings.Known != "snapshot" || len(p.Settings.Changes) > 0 {
					t.Fatalf("a fresh service: %s", p.exec)
				}
				environ := func() string {
					return s.run("sh", "-c", fmt.Sprintf("tr '\\0' '\\n' < /proc/%d/environ", s.plan().Incumbent))
				}
				want := func(what string, daemonReload bool, changes ...string) {
					t.Helper()
					p := s.plan("--binary", s.put(good(2)))
					if got := p.changes(); !slices.Equal(got, changes) || p.Settings.DaemonReload != daemonReload {
						t.Errorf("%s: daemon-reload %t, %q\nwant %t, %q\n%s", what, p.Settings.DaemonReload, got, daemonReload, changes, p.exec)
					}
				}
				s.write(dropIn, "[Service]\nEnvironment=PLANNED=yes\nLimitNOFILE=1234\nTimeoutStopSec=77\n")
				env := map[string]string{"library": "with a restart", "helper": "with daemon-reload and a handoff"}[runtime]
				want("written", true, "Environment PLANNED: "+env, "LimitNOFILE: with a restart", "TimeoutStopSec: with daemon-reload")
				s.run("systemctl", "daemon-reload")
				env = map[string]string{"library": "with a restart", "helper": "with this handoff"}[runtime]
				want("read", false, "Environment PLANNED: "+env, "LimitNOFILE: with a restart", "TimeoutStopSec: in force")
				if got := s.show("TimeoutStopUSec"); got != "1min 17s" {
					t.Errorf("TimeoutStopUSec=%s", got)
				}

				s.upgrade(good(2)).mustBe(upgrade.Upgraded, 0)
				if runtime == "helper" {
					s.quiet()
				} else {
					s.settled()
				}
				if has := strings.Contains(environ(), "PLANNED=yes"); has != (runtime == "helper") {
					t.Errorf("after the handoff the variable is there: %t", has)
				}
				env = map[string]string{"library": "with a restart", "helper": "in force"}[runtime]
				p = s.plan()
				if got, want := p.changes(), []string{"Environment PLANNED: " + env, "LimitNOFILE: with a restart", "TimeoutStopSec: in force"}; !slices.Equal(got, want) {
					t.Errorf("after the handoff: %q\n%s", got, p.exec)
				}
				s.run("systemctl", "restart", s.unit)
				if p := s.plan(); p.Settings.Known != "snapshot" || len(p.Settings.Changes) > 0 {
					t.Errorf("after a restart: %s", p.exec)
				}
				if !strings.Contains(environ(), "PLANNED=yes") {
					t.Error("the restart did not take the variable over")
				}
				if text := s.run("zdt", "plan", s.name, "--rollback"); !strings.Contains(text, "rollback") {
					t.Errorf("%s", text)
				}
			})
		}
	})
}

// remove takes the service away, for another one of its name.
func (s *service) remove() {
	s.t.Helper()
	s.run("sh", "-c", "systemctl disable --now hello.service hello.socket; rm -rf /etc/systemd/system/hello.* /var/lib/zdt/hello; systemctl daemon-reload")
}

// An upgrade with a plan-id goes on while the world is the plan's, and is refused with what has moved when it is not: nothing is
// changed then.
func TestPlanID(t *testing.T) {
	t.Parallel()
	guest.Each(t, func(t *testing.T, g *guest.Guest) {
		s := newService(t, g, options{})
		file := s.put(good(2))
		p := s.plan("--binary", file)
		refused := func(what string, flags ...string) {
			t.Helper()
			pid := s.mainPID()
			r := s.upgradeFile(file, append([]string{"--plan-id", p.ID}, flags...)...)
			r.mustBe(upgrade.Refused, 10)
			if !strings.Contains(r.Cause, what) || s.mainPID() != pid {
				t.Errorf("%q does not tell that %s", r.Cause, what)
			}
		}
		refused("the flags are others", "--bake", "1s")
		s.write("/etc/systemd/system/hello.service.d/x.conf", "[Service]\nNice=1\n")
		refused("/etc/systemd/system/hello.service.d/x.conf is new")
		s.run("systemctl", "daemon-reload")
		p = s.plan("--binary", file)
		s.write("/etc/systemd/system/hello.service.d/x.conf", "[Service]\nNice=2\n")
		refused("/etc/systemd/system/hello.service.d/x.conf changed")
		s.run("systemctl", "daemon-reload")
		p = s.plan("--binary", file)
		s.run("systemctl", "restart", s.unit)
		refused("the service was started anew")
		p = s.plan("--binary", file)
		s.run("systemctl", "reload", s.unit)
		s.settled()
		refused("another process serves")
		p = s.plan("--binary", file)
		s.run("systemctl", "daemon-reload") // for whatever other service
		r := s.upgradeFile(file, "--plan-id", p.ID)
		r.mustBe(upgrade.Upgraded, 0)
		refused("another release is the current one")
		s.mustRun(2)
		if p := s.plan("--binary", file); p.Outcome != upgrade.PlanUnchanged {
			t.Errorf("once more: %s", p.exec)
		}
	})
}
