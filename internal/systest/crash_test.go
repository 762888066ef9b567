package systest

import (
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/zdt-dev/zdt/handoff/control"
	"github.com/zdt-dev/zdt/internal/guest"
	"github.com/zdt-dev/zdt/upgrade"
)

// steps are where a transaction changes something that lasts, in their order; each is stopped in front of and behind.
var steps = []string{"stage", "record trigger", "record listen", "record bake", "record commit", "record drain", "record exit", "record record", "flip", "history", "clear", "prune"}

// victim is what happens at a step.
type victim string

const (
	theZdt       victim = "zdt"        // kill -9
	theIncumbent victim = "incumbent"  // kill -9
	theCandidate victim = "candidate"  // kill -9
	fullDisk     victim = "full disk"  // until the upgrade has ended
	readOnlyDisk victim = "read-only"  // the same
	openStore    victim = "open store" // somebody has made the store writable for all
)

const stepsDir = "/run/zdt-steps"

// stoppedAt starts an upgrade to version n and returns when it stands at the step.
func (s *service) stoppedAt(step string, n int, flags ...string) *running {
	s.t.Helper()
	if err := s.g.WriteFile(stepsDir+"/at", []byte(step), 0o644); err != nil {
		s.t.Fatal(err)
	}
	p, err := s.g.Spawn(s.t.Context(), guest.Command{
		Args: append([]string{"zdt-steps", "upgrade", s.name, "--binary", s.put(good(n)), "-o", "json", "--no-rehearse"}, flags...),
		Env:  []string{"ZDT_STEPS=" + stepsDir},
	})
	if err != nil {
		s.t.Fatal(err)
	}
	u := &running{s.t, p}
	s.await("zdt stands "+step, func() bool {
		select {
		case <-p.Done():
			r, _ := p.Wait()
			s.t.Fatalf("it came to its end before %s\n%s", step, r)
		default:
		}
		_, err := os.Stat(s.g.Path(stepsDir + "/reached"))
		return err == nil
	})
	return u
}

func (s *service) goOn() {
	s.t.Helper()
	s.run("rm", "-f", stepsDir+"/at", stepsDir+"/reached")
}

// hit lets it happen; mend takes back what does not end by itself.
func (s *service) hit(v victim, u *running, incumbent, candidate int) (mend func()) {
	s.t.Helper()
	mend = func() {}
	switch v {
	case theZdt:
		u.Signal(os.Kill)
		<-u.Done()
	case theIncumbent:
		s.kill(incumbent)
		s.await("the incumbent is gone", func() bool { return s.gone(incumbent) })
	case theCandidate:
		s.kill(candidate)
		s.await("the candidate is gone", func() bool { return s.gone(candidate) })
	case fullDisk:
		s.run("sh", "-c", "dd if=/dev/zero of=/var/lib/zdt/.ballast bs=64k 2>/dev/null; true")
		mend = func() { s.run("rm", "-f", "/var/lib/zdt/.ballast") }
	case readOnlyDisk:
		s.run("mount", "-o", "remount,ro", "/var/lib/zdt")
		mend = func() { s.run("mount", "-o", "remount,rw", "/var/lib/zdt") }
	case openStore:
		s.run("chmod", "0777", "/var/lib/zdt/hello")
		mend = func() { s.run("chmod", "0755", "/var/lib/zdt/hello") }
	}
	return mend
}

func (s *service) gone(pid int) bool {
	data, err := os.ReadFile(s.g.Path(fmt.Sprintf("/proc/%d/stat", pid)))
	return err != nil || strings.Contains(string(data), ") Z ")
}

// Whatever happens at whatever step: the service answers, one generation serves, what a restart would start was committed
// once, zdt status explains what is left, and the next upgrade works.
func TestCrashMatrix(t *testing.T) {
	t.Parallel()
	guest.Each(t, func(t *testing.T, g *guest.Guest) {
		s := &service{t: t, g: g, name: "hello", unit: "hello.service", addr: "127.0.0.1:8080"}
		s.installZdt()
		if err := g.Copy(steppedZdt(t), "/usr/local/bin/zdt-steps", 0o755); err != nil {
			t.Fatal(err)
		}
		s.run("mkdir", "-p", "/var/lib/zdt", stepsDir)
		s.run("mount", "-t", "tmpfs", "-o", "size=128m,mode=755", "tmpfs", "/var/lib/zdt")
		s.run("zdt", "init", s.name, "--exec", s.put(good(1)), "--listen", s.addr+"=http", "--start", "--dynamic-user")
		s.write("/etc/systemd/system/hello.service.d/keep.conf", "[X-Zdt]\nKeep=0\nKeepFailed=0\n") // each upgrade deletes what it may
		s.run("systemctl", "daemon-reload")
		n := 0
		for _, step := range steps {
			for _, when := range []string{"before ", "after "} {
				for _, v := range victimsAt(step, when) {
					n = n%8 + 2 // the same few again: their releases have to fit on the disk
					at := when + step
					t.Run(fmt.Sprintf("%s, %s", at, v), func(t *testing.T) {
						cell := *s
						cell.t = t
						cell.crash(v, at, n)
					})
					if t.Failed() {
						return // what follows would fail for the same reason
					}
				}
			}
		}
	})
}

// The host goes down at a step: after the boot a release that was committed serves, the boot unit has closed the record
// without anybody doing anything, and the next upgrade works.
func TestHostCrashMatrix(t *testing.T) {
	t.Parallel()
	guest.Each(t, func(t *testing.T, g *guest.Guest) {
		s := newService(t, g, options{})
		if err := g.Copy(steppedZdt(t), "/usr/local/bin/zdt-steps", 0o755); err != nil {
			t.Fatal(err)
		}
		serves, n := 1, 0
		for _, tt := range []struct {
			at      string
			new     bool // the new release serves after the boot
			outcome upgrade.Outcome
		}{
			{"after stage", false, ""},
			{"after record trigger", false, upgrade.Interrupted},
			{"after record bake", false, upgrade.Interrupted},
			{"after record commit", false, upgrade.Interrupted},
			{"before record drain", false, upgrade.Interrupted}, // committed, and current is the one before
			{"before flip", false, upgrade.Interrupted},
			{"after flip", true, upgrade.Upgraded},
			{"before clear", true, upgrade.Upgraded},
			{"before prune", true, upgrade.Upgraded},
		} {
			n = n%8 + 2
			s.run("mkdir", "-p", stepsDir)
			s.stoppedAt(tt.at, n)
			s.g = guest.PowerCycle(t, s.g)
			if tt.new {
				serves = n
			}
			s.await("the boot unit has closed the record", func() bool { return s.status().Txn == nil })
			s.mustRun(serves)
			last := s.history()
			switch {
			case tt.outcome == "" && !last[0].Committed: // nothing was under way
				t.Errorf("%s: history %+v", tt.at, last[0])
			case tt.outcome != "" && (len(last) == 0 || last[0].Outcome != string(tt.outcome)):
				t.Errorf("%s: history %+v, want %s", tt.at, last, tt.outcome)
			}
			s.mustUpgrade(good(n + 1))
			serves = n + 1
			if t.Failed() {
				return
			}
		}
	})
}

// victimsAt are those that exist at a step. What happens behind a step happens in front of the next one, so
// that only one of both is gone through where nothing lies between them.
func victimsAt(step, when string) []victim {
	i := slices.Index(steps, step)
	at := func(name string) int { return slices.Index(steps, name) }
	v := []victim{theZdt}
	if when == "after " && i < at("record drain") && i > 0 {
		v = append(v, theIncumbent)
	}
	if when == "before " && i > at("record listen") && i <= at("record commit") || when == "after " && i >= at("record bake") {
		v = append(v, theCandidate)
	}
	if when == "before " {
		v = append(v, readOnlyDisk)
		switch step {
		case "stage", "record trigger", "record commit", "history", "prune":
			v = append(v, fullDisk)
		case "record bake", "flip":
			v = append(v, openStore)
		}
	}
	return v
}

// crash is one cell of the matrix.
func (s *service) crash(v victim, at string, n int) {
	incumbent := s.mainPID()
	u := s.stoppedAt(at, n)
	candidate := 0
	if r := s.runtime(); r != nil && r.Handoff != nil {
		candidate = r.Handoff.Candidate
	}
	if pid := s.mainPID(); candidate == 0 && pid != incumbent {
		candidate = pid // it is committed
	}
	if v == theCandidate && candidate == 0 {
		s.t.Fatalf("there is no candidate %s", at)
	}
	if v == theIncumbent && s.gone(incumbent) {
		s.t.Fatalf("there is no incumbent any more %s", at)
	}
	mend := s.hit(v, u, incumbent, candidate)
	s.goOn()
	if v != theZdt {
		r, err := u.Wait()
		mend()
		if err != nil {
			s.t.Fatalf("%v\n%s", err, r)
		}
		var rep upgrade.Report
		if err := json.Unmarshal([]byte(r.Stdout), &rep); err != nil || rep.ExitCode != r.Code || rep.Outcome == "" {
			s.t.Errorf("%v\n%s", err, r)
		}
		if strings.HasSuffix(at, " prune") && v != theCandidate && rep.Outcome != upgrade.Upgraded {
			s.t.Errorf("what happens to old releases is no failure of the upgrade:\n%s", r)
		}
		if rep.Outcome != upgrade.Upgraded && (rep.Cause == "" || rep.Hint == "") {
			s.t.Errorf("it does not say what failed and what to do:\n%s", r)
		}
	}

	s.await("the service answers", func() bool { _, err := s.ask("/"); return err == nil })
	var st status
	s.await("one generation serves, or two in a named phase", func() bool {
		st = s.status()
		r := st.Runtime
		return st.State == "serving" && r != nil && r.PID == st.Unit.MainPID && (r.Phase == control.Idle || r.Handoff != nil)
	})
	if st.Current == nil || !s.wasCommitted(st.Current.ID) {
		s.t.Errorf("a restart would start what was never committed:\n%s", st.text)
	}
	if st.Txn != nil && len(st.Notes) == 0 {
		s.t.Errorf("the status does not explain the open upgrade:\n%s", st.text)
	}
	for _, note := range st.Notes {
		if note.ID == "upgrade-open" && note.Next == "" {
			s.t.Errorf("the status does not say what to do:\n%s", st.text)
		}
	}
	s.upgrade(good(n+1)).mustBe(upgrade.Upgraded, 0)
	s.mustRun(n + 1)
	if left := strings.Fields(s.run("ls", "-A", "/var/lib/zdt/hello/releases")); len(left) > 2 {
		s.t.Errorf("the next upgrade leaves %q: more than the current release and the one before", left)
	}
}

// wasCommitted reports whether a release has served: by the history, or as the one that an open upgrade has committed.
func (s *service) wasCommitted(id string) bool {
	for _, e := range s.history() {
		if e.Committed && (e.To == id || e.From == id) {
			return true
		}
	}
	data, err := s.g.ReadFile("/var/lib/zdt/hello/txn.json")
	return len(s.history()) == 0 || err == nil && strings.Contains(string(data), `"to": "`+id+`"`) && strings.Contains(string(data), `"phase": "record"`)
}
