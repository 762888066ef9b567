package systest

import (
	"encoding/json"
	"fmt"
	"path"
	"strconv"
	"strings"
	"testing"

	"github.com/zdt-dev/zdt/internal/guest"
)

// initResult is a finished zdt init.
type initResult struct {
	Outcome  string `json:"outcome"`
	ExitCode int    `json:"exit_code"`
	Changed  bool   `json:"changed"`
	Files    []struct {
		Path   string `json:"path"`
		Change string `json:"change"`
		Before string `json:"before"`
		Diff   string `json:"diff"`
	} `json:"files"`
	Steps []string `json:"steps"`
	Error string   `json:"error"`
	Hint  string   `json:"hint"`

	exec guest.Result
}

// newHost is a guest with zdt and release 1 of hello as a file, but without a service.
func newHost(t *testing.T, g *guest.Guest) (s *service, program string) {
	t.Helper()
	s = &service{t: t, g: g, name: "hello", unit: "hello.service", addr: "127.0.0.1:8080"}
	s.installZdt()
	return s, s.put(good(1))
}

// init runs zdt init with the flags, however it ends.
func (s *service) init(flags ...string) initResult {
	s.t.Helper()
	r, err := s.g.Run(s.t.Context(), append([]string{"zdt", "init", s.name, "-o", "json"}, flags...)...)
	if err != nil {
		s.t.Fatal(err)
	}
	doc := initResult{exec: r}
	if err := json.Unmarshal([]byte(r.Stdout), &doc); err != nil {
		s.t.Fatalf("stdout is not one JSON document: %v\n%s", err, r)
	}
	if doc.ExitCode != r.Code {
		s.t.Errorf("the document says exit_code %d, zdt ended with %d\n%s", doc.ExitCode, r.Code, r)
	}
	return doc
}

func (r initResult) mustBe(t *testing.T, outcome string, code int) {
	t.Helper()
	if r.Outcome != outcome || r.exec.Code != code || r.Changed != (outcome == "changed") {
		t.Fatalf("outcome %s, changed %t, exit code %d, want %s and %d\n%s", r.Outcome, r.Changed, r.exec.Code, outcome, code, r.exec)
	}
}

// fingerprint is everything of the guest that zdt init may write, as text: names, owners, modes, times and contents, and
// what systemd makes of it.
func (s *service) fingerprint() string {
	s.t.Helper()
	return s.run("sh", "-c", `
		for d in /etc/systemd /run/systemd/system /var/lib/zdt /run/zdt; do
			test -e $d || continue
			find $d -printf '%p %l %u:%g %m %T@\n' | sort
			find $d -type f -exec sha256sum {} + | sort
		done
		systemctl list-unit-files --no-legend --no-pager
		systemctl list-units --all --no-legend --no-pager '`+s.name+`*'`)
}

// What zdt init writes is read by systemd without a word of complaint, is sandboxed well, and serves. Doing it again
// changes nothing.
func TestInit(t *testing.T) {
	t.Parallel()
	guest.Each(t, func(t *testing.T, g *guest.Guest) {
		host, program := newHost(t, g)
		for _, tt := range []struct {
			name  string
			addr  string
			flags []string
		}{
			{"dynamic-user", "127.0.0.1:8081", []string{"--dynamic-user", "--listen", "127.0.0.1:8081=http"}},
			{"account", "127.0.0.1:8082", []string{"--service-user", guest.User, "--listen", "127.0.0.1:8082=http", "--bake", "100ms"}},
			{"root", "127.0.0.1:8083", []string{"--listen", "127.0.0.1:8083=http", "--drain-timeout", "3s", "--description", `100% "hello"`}},
			{"several-sockets", "127.0.0.1:8084", []string{"--dynamic-user", "--listen", "8084=http", "--listen", "unix:/run/hello.sock=local", "--listen", "udp:127.0.0.1:8053=dns"}},
			{"no-socket", "127.0.0.1:8085", []string{"--dynamic-user", "--", "-listen", "127.0.0.1:8085"}},
		} {
			t.Run(tt.name, func(t *testing.T) {
				s := *host
				s.t, s.name, s.unit, s.addr = t, tt.name, tt.name+".service", tt.addr
				flags := append([]string{"--exec", program, "--start"}, tt.flags...)
				first := s.init(flags...)
				first.mustBe(t, "changed", 0)
				var units []string
				for _, f := range first.Files {
					units = append(units, f.Path)
				}
				s.mustVerify(units)
				if score := s.exposure(); score >= 5 {
					t.Errorf("systemd-analyze security: exposure %.1f, OK is less than 5", score)
				}
				for _, unit := range units {
					if state := s.run("systemctl", "is-enabled", path.Base(unit)); state != "enabled" {
						t.Errorf("%s is %s", unit, state)
					}
				}

				if found := s.check(0); tt.name == "no-socket" && (len(found) != 1 || found[0].ID != "ZDT020") { // its port is its own
					t.Errorf("zdt check finds %+v", found)
				} else if tt.name != "no-socket" && len(found) > 0 {
					t.Errorf("zdt check finds %+v", found)
				}

				before, pid := s.fingerprint(), s.mainPID()
				s.init(flags...).mustBe(t, "unchanged", 0)
				if after := s.fingerprint(); after != before || s.mainPID() != pid {
					t.Errorf("the second init changed something. Before:\n%s\nAfter:\n%s", before, after)
				}

				s.mustUpgrade(good(2))
				s.mustRun(2)
				s.init(flags...).mustBe(t, "unchanged", 0) // it does not deploy release 1 again
				s.mustRun(2)
				s.run("systemctl", "restart", s.unit)
				s.mustRun(2)
			})
		}
		// What else zdt init is asked for, and the examples of the repository that are not hello.
		for i, tt := range []struct {
			name, socket string
			flags        []string
		}{
			{"chat", "http", []string{"--dynamic-user"}},
			{"line", "line", []string{"--dynamic-user"}},
			{"alone", "http", []string{"--dynamic-user", "--runtime", "helper", "--strategy", "restart", "--stop-signal", "INT"}},
			{"probed", "http", []string{"--service-user", guest.User, "--runtime", "helper", "--ready", "tcp:127.0.0.1:8093", "--ready-timeout", "5s", "--drain-timeout", "2m",
				"--health", "http://127.0.0.1:8093/", "--bake", "10s", "--env", "MODE=production", "--start-probe", "true"}},
		} {
			t.Run(tt.name, func(t *testing.T) {
				exec := program
				if i < 2 {
					exec = "/srv/" + tt.name
					file := build(t, tt.name, func(out string) error { return goBuild(out, "../../examples/"+tt.name, false, "") })
					if err := g.Copy(file, exec, 0o755); err != nil {
						t.Fatal(err)
					}
				}
				s := *host
				s.t, s.name, s.unit = t, tt.name, tt.name+".service"
				s.init(append([]string{"--exec", exec, "--listen", fmt.Sprintf("127.0.0.1:809%d=%s", i, tt.socket), "--start"}, tt.flags...)...).mustBe(t, "changed", 0)
				s.mustFindNothing()
			})
		}
	})
}

// mustVerify has systemd-analyze judge the units; its exit status is 0 for keys that it does not know.
func (s *service) mustVerify(units []string) {
	s.t.Helper()
	r, err := s.g.Run(s.t.Context(), append([]string{"systemd-analyze", "verify"}, units...)...)
	if err != nil || r.Code != 0 || r.Stdout+r.Stderr != "" {
		s.t.Errorf("%v\n%s", err, r)
	}
}

// exposure is the score of systemd-analyze security: 0 is best, 10 worst.
func (s *service) exposure() float64 {
	s.t.Helper()
	out := s.run("systemd-analyze", "security", "--no-pager", s.unit)
	_, score, _ := strings.Cut(out, "Overall exposure level for "+s.unit+": ")
	score, _, _ = strings.Cut(score, " ")
	f, err := strconv.ParseFloat(score, 64)
	if err != nil {
		s.t.Fatalf("no score in\n%s", out)
	}
	return f
}

// A dry run shows the units and changes nothing at all.
func TestInitDryRun(t *testing.T) {
	t.Parallel()
	guest.Each(t, func(t *testing.T, g *guest.Guest) {
		s, program := newHost(t, g)
		flags := []string{"--exec", program, "--listen", "127.0.0.1:8080=http", "--dynamic-user", "--start"}
		before := s.fingerprint()
		r := s.init(append(flags, "--dry-run")...)
		r.mustBe(t, "would-change", 0)
		if after := s.fingerprint(); after != before {
			t.Errorf("something changed. Before:\n%s\nAfter:\n%s", before, after)
		}
		if len(r.Files) != 3 || len(r.Steps) == 0 || !strings.Contains(r.exec.Stdout, "+ExecStart=/var/lib/zdt/hello/current/hello") {
			t.Errorf("does not say what would be done:\n%s", r.exec)
		}

		s.init(flags...).mustBe(t, "changed", 0)
		before = s.fingerprint()
		r = s.init(append(flags, "--drain-timeout=7s", "--dry-run")...)
		r.mustBe(t, "would-change", 0)
		if after := s.fingerprint(); after != before {
			t.Errorf("something changed. Before:\n%s\nAfter:\n%s", before, after)
		}
		if len(r.Files) != 1 || !strings.Contains(r.Files[0].Diff, "+DrainTimeout=7s") {
			t.Errorf("does not show the difference:\n%s", r.exec)
		}
		s.mustRun(1)
	})
}

// A unit that a person wrote or edited stays as it is, wherever systemd has it from; with --force a copy is kept.
func TestInitHandMade(t *testing.T) {
	t.Parallel()
	const unit = "/etc/systemd/system/hello.service"
	const handMade = "[Service]\nExecStart=/bin/sleep infinity\n"
	guest.Each(t, func(t *testing.T, g *guest.Guest) {
		s, program := newHost(t, g)
		flags := []string{"--exec", program, "--listen", "127.0.0.1:8080=http", "--dynamic-user"}
		refuses := func(what string) {
			t.Helper()
			before := s.fingerprint()
			r := s.init(flags...)
			if r.exec.Code != 10 || r.Changed || r.Error == "" || r.Hint == "" {
				t.Errorf("%s: want a refusal with the reason and a hint\n%s", what, r.exec)
			}
			if !strings.Contains(r.Error, "hello.service") {
				t.Errorf("%s: %q does not name the unit", what, r.Error)
			}
			if after := s.fingerprint(); after != before {
				t.Errorf("%s: something changed. Before:\n%s\nAfter:\n%s", what, before, after)
			}
		}
		s.write("/usr/lib/systemd/system/hello.service", handMade)
		s.run("systemctl", "daemon-reload")
		refuses("a package's unit")
		s.run("rm", "/usr/lib/systemd/system/hello.service")

		s.write(unit, handMade)
		s.run("systemctl", "daemon-reload")
		refuses("a hand-made unit")

		s.init(append(flags, "--force", "--start")...).mustBe(t, "changed", 0)
		if copies := s.run("sh", "-c", fmt.Sprintf("cat %s.zdt-saved-*", unit)); copies+"\n" != handMade {
			t.Errorf("the copy of the hand-made unit has %q", copies)
		}
		s.mustRun(1)

		s.run("sed", "-i", "s/^Restart=always/Restart=no/", unit)
		s.run("systemctl", "daemon-reload")
		refuses("an edited unit")
		s.run("sed", "-i", "s/^Restart=no/Restart=always/", unit)
		s.run("systemctl", "daemon-reload")

		// A drop-in is the way to change something, and stays.
		s.write("/etc/systemd/system/hello.service.d/mine.conf", "[Service]\nRestart=no\n")
		s.run("systemctl", "daemon-reload")
		s.init(flags...).mustBe(t, "unchanged", 0)
		if got := s.show("Restart"); got != "no" {
			t.Errorf("Restart=%s in spite of the drop-in", got)
		}
		s.mustUpgrade(good(2))
		s.mustRun(2)
	})
}
