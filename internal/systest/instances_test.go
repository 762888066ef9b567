package systest

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/zdt-dev/zdt/internal/guest"
	"github.com/zdt-dev/zdt/internal/load"
	"github.com/zdt-dev/zdt/upgrade"
)

// fleet are the instances hello@1 to hello@3 of a template, on ports of their own.
type fleet struct {
	*service // for what is not about one of them
	all      []*service
}

func newFleet(t *testing.T, g *guest.Guest, flags ...string) fleet {
	t.Helper()
	f := fleet{service: &service{t: t, g: g, name: "hello@"}}
	f.installZdt()
	args := append([]string{"zdt", "init", "hello@", "--exec", f.put(good(1)), "--listen", "127.0.0.1:808%i=http", "--instances", "1-3", "--dynamic-user", "--start"}, flags...)
	f.run(args...)
	if again := f.run(args...); !strings.Contains(again, "nothing to do") {
		t.Errorf("the same init again: %s", again)
	}
	for i := 1; i <= 3; i++ {
		name := fmt.Sprintf("hello@%d", i)
		s := &service{t: t, g: g, name: name, unit: name + ".service", addr: fmt.Sprintf("127.0.0.1:808%d", i)}
		if i == 1 {
			s.mustFindNothing() // they are all the same
		}
		f.all = append(f.all, s)
	}
	return f
}

// mustAnswer checks which release each instance runs, and would start; 0: it is not looked at.
func (f fleet) mustAnswer(versions ...int) {
	f.t.Helper()
	for i, n := range versions {
		if n != 0 {
			f.all[i].mustRun(n)
		}
	}
}

// rolled is a finished roll.
type rolled struct {
	t         *testing.T
	Schema    string
	Outcome   string
	ExitCode  int `json:"exit_code"`
	Changed   bool
	Stopped   string
	Instances []struct {
		Service, State string
		Report         *upgrade.Report
	}
	exec guest.Result
}

// roll runs a command on the instances that rolls.
func (f fleet) roll(args ...string) rolled {
	f.t.Helper()
	p, err := f.g.Spawn(f.t.Context(), guest.Command{Args: append(append([]string{"zdt"}, args...), "-o", "json")})
	if err != nil {
		f.t.Fatal(err)
	}
	return f.rolled(p)
}

func (f fleet) rolled(p *guest.Process) rolled {
	f.t.Helper()
	r, err := p.Wait()
	if err != nil {
		f.t.Fatalf("%v\n%s", err, r)
	}
	got := rolled{t: f.t, exec: r}
	if err := json.Unmarshal([]byte(r.Stdout), &got); err != nil || got.Schema != "zdt.roll/1" {
		f.t.Fatalf("stdout is not a roll's document: %v\n%s", err, r)
	}
	if got.ExitCode != r.Code {
		f.t.Errorf("the document says exit_code %d, zdt ended with %d\n%s", got.ExitCode, r.Code, r)
	}
	got.mustTakeTurns()
	return got
}

// mustBe ends the test unless the roll ended this way, with its instances in these states.
func (r rolled) mustBe(outcome string, code int, states ...string) {
	r.t.Helper()
	var got []string
	for _, m := range r.Instances {
		got = append(got, m.State)
	}
	if r.Outcome != outcome || r.exec.Code != code || !slices.Equal(got, states) {
		r.t.Fatalf("outcome %s, exit code %d, instances %q; want %s, %d, %q\n%s", r.Outcome, r.exec.Code, got, outcome, code, states, r.exec)
	}
}

// mustTakeTurns checks that no instance was touched before the one in front of it was done: not by the reports, and not by what the
// journal saw of the processes.
func (r rolled) mustTakeTurns() {
	r.t.Helper()
	var last *upgrade.Report
	for _, m := range r.Instances {
		if m.Report == nil {
			continue
		}
		if last != nil {
			if m.Report.StartedAt.Before(last.EndedAt) {
				r.t.Errorf("%s began at %s, before %s was over at %s", m.Service, m.Report.StartedAt, last.Service, last.EndedAt)
			}
			if a, b := last.Story, m.Report.Story; len(a) > 0 && len(b) > 0 && b[0].At.Before(a[len(a)-1].At) {
				r.t.Errorf("%s: %s at %s, before %s: %s at %s", m.Service, b[0].Event, b[0].At, last.Service, a[len(a)-1].Event, a[len(a)-1].At)
			}
		}
		last = m.Report
	}
}

// The instances of a template are upgraded one after the other, and no client of any of them notices. The first one that fails
// stops the roll, those behind it are not touched, and the same command goes on there.
func TestInstancesRoll(t *testing.T) {
	t.Parallel()
	guest.Each(t, func(t *testing.T, g *guest.Guest) {
		f := newFleet(t, g)
		ok := func(instance string, is bool) {
			t.Helper()
			if err := g.WriteFile("/srv/ok-"+instance, nil, 0o644); err != nil {
				t.Fatal(err)
			}
			if !is {
				f.run("rm", "/srv/ok-"+instance)
			}
		}
		for _, i := range []string{"1", "2", "3"} {
			ok(i, true)
		}
		gate := "[X-Zdt]\nGate=within=1s every=100ms exec:/usr/bin/test -e /srv/ok-%i\n"
		if err := g.WriteFile("/etc/systemd/system/hello@.service.d/gate.conf", []byte(gate), 0o644); err != nil {
			t.Fatal(err)
		}
		f.run("systemctl", "daemon-reload")
		var loads []*load.Load
		for _, s := range f.all {
			loads = append(loads, s.load(load.Config{KeepAlive: 4, Fresh: 1}))
		}
		two, three := f.put(good(2)), f.put(good(3))

		r := f.roll("upgrade", "hello@", "--binary", two, "--bake", "200ms")
		r.mustBe("done", 0, "changed", "changed", "changed")
		f.mustAnswer(2, 2, 2)
		f.roll("upgrade", "hello@*", "--binary", two).mustBe("unchanged", 0, "unchanged", "unchanged", "unchanged")

		// The release is no good for the second one.
		ok("2", false)
		third := f.all[2].settled()
		r = f.roll("upgrade", "hello@", "--binary", three)
		r.mustBe("stopped", 15, "changed", "failed", "pending")
		if r.Stopped != "hello@2" || !r.Changed {
			t.Errorf("%s", r.exec)
		}
		f.mustAnswer(3, 2, 2)
		if now := f.all[2].settled(); now.Unit.MainPID != third.Unit.MainPID || now.Runtime.Generation != third.Runtime.Generation {
			t.Errorf("hello@3 was touched:\n%s", now.text)
		}

		// What was brought to one of them is taken back from that one only.
		f.roll("rollback", "hello@").mustBe("done", 0, "changed", "unchanged", "unchanged")
		f.mustAnswer(2, 2, 2)

		// Once more, and then the same command goes on where it stopped.
		f.roll("upgrade", "hello@", "--binary", three).mustBe("stopped", 15, "changed", "failed", "pending")
		ok("2", true)
		f.roll("upgrade", "hello@", "--binary", three).mustBe("done", 0, "unchanged", "changed", "changed")
		f.mustAnswer(3, 3, 3)
		f.roll("rollback", "hello@").mustBe("done", 0, "changed", "changed", "changed")
		f.mustAnswer(2, 2, 2)

		// All or none; in an order of one's own.
		ok("1", false)
		f.roll("upgrade", "hello@3", "hello@", "--binary", f.put(good(4)), "--all-or-none").mustBe("undone", 11, "brought-back", "failed", "pending")
		f.mustAnswer(2, 2, 2)
		ok("1", true)
		for i, l := range loads {
			report := l.Stop()
			t.Logf("%s: %s", f.all[i].name, report)
			mustLoseNothing(t, report)
		}
	})
}

// A release that dies behind its commit does not reach the next instance, two rolls do not run at once, and instances that
// somebody has stopped stay so. An instance is a service like any other.
func TestInstancesAlone(t *testing.T) {
	t.Parallel()
	guest.Each(t, func(t *testing.T, g *guest.Guest) {
		f := newFleet(t, g)
		two, three := f.put(good(2)), f.put(good(3))

		p, err := g.Spawn(t.Context(), guest.Command{Args: []string{"zdt", "upgrade", "hello@", "--binary", two, "--pause", "1h", "-o", "json"}})
		if err != nil {
			t.Fatal(err)
		}
		f.all[0].await("the first one is done", func() bool {
			st := f.all[0].status()
			return f.all[0].answers() == version(2) && st.Txn == nil && st.Runtime != nil && st.Runtime.Predecessor == nil
		})
		if r, err := g.Run(t.Context(), "zdt", "upgrade", "hello@", "--binary", three, "-o", "json"); err != nil || r.Code != 75 {
			t.Errorf("a second roll: %v\n%s", err, r)
		}
		f.run("kill", "-KILL", fmt.Sprint(f.all[0].mainPID()))
		r := f.rolled(p)
		// Whether it is seen between its end and its start by systemd is a matter of luck.
		if r.Outcome != "stopped" || r.Stopped != "hello@1" || r.exec.Code != 15 && r.exec.Code != 12 {
			t.Errorf("%s", r.exec)
		}
		f.mustAnswer(2, 1, 1)

		f.run("systemctl", "stop", "hello@2.socket", "hello@2.service")
		f.roll("upgrade", "hello@", "--binary", three).mustBe("done", 0, "changed", "changed", "left-out")
		f.mustAnswer(3, 0, 3)
		if r, err := g.Run(t.Context(), "zdt", "status", "hello@"); err != nil || r.Code != 3 || strings.Count(r.Stdout, "hello@") < 3 {
			t.Errorf("status of all: %v\n%s", err, r)
		}
		f.run("systemctl", "start", "hello@2.socket", "hello@2.service")

		// A hold on one of them is seen before the first one is touched.
		f.run("zdt", "hold", "hello@3", "-m", "not now")
		if r, err := g.Run(t.Context(), "zdt", "upgrade", "hello@", "--binary", two, "-o", "json"); err != nil || r.Code != 75 {
			t.Errorf("with a hold: %v\n%s", err, r)
		}
		f.mustAnswer(3, 1, 3)
		f.run("zdt", "hold", "hello@3", "--off")

		// What the other commands make of such a name.
		one := f.all[0]
		f.run("systemctl", "reload", one.unit)
		one.mustRun(3)
		tx := strings.TrimSpace(f.run("zdt", "upgrade", one.name, "--binary", two, "--bake", "200ms", "--detach"))
		f.run("zdt", "wait", one.name, tx)
		one.mustRun(2)
		for _, args := range []string{"rehearse hello@1 --binary " + three, "plan hello@1 --binary " + three, "prove hello@1 --handoffs 1 --clients 2", "history hello@1", "releases hello@1", "rollback hello@1",
			"stage hello@1 --binary " + three, "prune hello@1 --dry-run", "resume hello@1"} {
			f.run(append([]string{"zdt"}, strings.Fields(args)...)...)
		}
		one.mustRun(3)
	})
}
