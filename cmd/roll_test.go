package cmd

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/zdt-dev/zdt/release"
	"github.com/zdt-dev/zdt/upgrade"
)

func TestExpandSet(t *testing.T) {
	all := func(template string) ([]string, error) {
		if template != "web@" {
			return nil, nil
		}
		return []string{"web@1", "web@2", "web@10", "web@blue"}, nil
	}
	for _, c := range []struct{ args, names, err string }{
		{"web@", "web@1 web@2 web@10 web@blue", ""},
		{"web@.service", "web@1 web@2 web@10 web@blue", ""},
		{"web@*", "web@1 web@2 web@10 web@blue", ""},
		{"web@1*", "web@1 web@10", ""},
		{"web@[12]", "web@1 web@2", ""},
		{"web@2 web@", "web@2 web@1 web@10 web@blue", ""},
		{"web@2 web@1.service web@2", "web@2 web@1", ""},
		{"web@7 web@8", "web@7 web@8", ""}, // what they are is seen when they are opened
		{"api@", "", "no instance that is called api@"},
		{"web@x*", "", "no instance that is called web@x*"},
		{"web api", "", "web is no instance"},
		{"web@1 api@1", "", "two templates"},
		{"web*", "", "need not have one program"},
		{"web@[", "", "no pattern"},
		{"web@1 web@a/b", "", "only letters"},
		{"../x@ web@1", "", "only letters"},
	} {
		set, err := expandSet(strings.Fields(c.args), all)
		if c.err != "" {
			if err == nil || !strings.Contains(err.Error(), c.err) {
				t.Errorf("%s: %v, want %s", c.args, err, c.err)
			}
			continue
		}
		if got := strings.Join(set.Names, " "); err != nil || got != c.names {
			t.Errorf("%s: %s, %v; want %s", c.args, got, err, c.names)
		}
	}
}

func TestInstancesFlag(t *testing.T) {
	for in, want := range map[string]string{
		"1-3": "1 2 3", "1,blue": "1 blue", "08-11": "08 09 10 11", "eu-1": "eu-1", "5-5": "5",
		"": "!", "1,": "!", "3-1": "!", "0-999999999": "!", "1-2,2": "!", "a b": "!", "a@b": "!",
	} {
		var f instancesFlag
		err := f.Set(in)
		if got := strings.Join(f, " "); (want == "!") != (err != nil) || err == nil && got != want {
			t.Errorf("%q: %q, %v; want %q", in, got, err, want)
		}
	}
}

// The release that is taken back is the one that came last, until nobody runs it any more.
func TestGivenUp(t *testing.T) {
	at := time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)
	id := func(instance int, sum string) string { return fmt.Sprintf("20261101T00000%dZ-%s", instance, sum) }
	// A line is MINUTE INSTANCE KIND FROM TO, with ! behind what was not committed.
	parse := func(lines string) ([][]release.Entry, []string) {
		histories, current := make([][]release.Entry, 2), make([]string, 2)
		for _, line := range strings.Split(lines, "; ") {
			var minute, instance int
			var kind, from, to string
			fmt.Sscan(line, &minute, &instance, &kind, &from, &to)
			kind, undone := strings.CutSuffix(kind, "!")
			histories[instance] = append(histories[instance], release.Entry{
				Kind: release.Kind(kind), Committed: !undone, From: id(instance, from), To: id(instance, to), Ended: at.Add(time.Duration(minute) * time.Minute)})
			if !undone {
				current[instance] = id(instance, to)
			}
		}
		return histories, current
	}
	const begin = "0 0 init - a; 0 1 init - a; "
	for _, c := range []struct{ name, lines, want string }{
		{"only imported", begin + "1 0 upgrade! a b", ""},
		{"all upgraded", begin + "1 0 upgrade a b; 2 1 upgrade a b", "b"},
		{"half-way", begin + "1 0 upgrade a b; 2 1 upgrade! a b", "b"},
		{"rolled back half-way", begin + "1 0 upgrade a b; 2 1 upgrade a b; 3 0 rollback b a", "b"},
		{"rolled back", begin + "1 0 upgrade a b; 2 1 upgrade a b; 3 0 rollback b a; 4 1 rollback b a", "a"},
		{"rolled back from half-way", begin + "1 0 upgrade a b; 2 1 upgrade! a b; 3 0 rollback b a", "a"},
		{"a new instance", begin + "1 0 upgrade a b; 5 1 init - c", "b"},
	} {
		if got := givenUp(parse(begin + c.lines)); got != c.want {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
}

// scripted is a roll over web@1, web@2 and web@3 whose transactions end as the script says, by instance; the same instance
// once more: how its way back ends. All others succeed.
type scripted struct {
	roll
	ends  map[string][]upgrade.Report
	errs  map[string]error
	down  map[string]error // of restarts, from the time the instance was changed
	times map[string]uint32
	calls []string
}

func newScripted() *scripted {
	s := &scripted{ends: map[string][]upgrade.Report{}, errs: map[string]error{}, down: map[string]error{}, times: map[string]uint32{}}
	s.doc, s.zdt = &rollDoc{Service: "web@", Kind: release.KindUpgrade}, "zdt"
	for _, n := range []string{"web@1", "web@2", "web@3"} {
		s.doc.Instances = append(s.doc.Instances, rollInstance{Service: n, State: rollPending, From: "x-old", Runs: "x-old", To: "x-new"})
	}
	s.transact = func(_ context.Context, service string, o upgradeOptions) (upgrade.Report, error) {
		call := service
		if o.Kind == release.KindRollback {
			call += " back"
		}
		s.calls = append(s.calls, call)
		if o.Service != service || o.Binary != "" || o.Kind != release.KindRollback && o.Release != "x-new" || o.Kind == release.KindRollback && o.Release != "x-old" {
			return upgrade.Report{}, fmt.Errorf("asked for %+v", o)
		}
		if err := s.errs[service]; err != nil {
			return upgrade.Report{}, err
		}
		if left := s.ends[service]; len(left) > 0 {
			s.ends[service] = left[1:]
			return left[0], nil
		}
		return upgrade.Report{Outcome: upgrade.Upgraded, Changed: true, From: &upgrade.Release{ID: "x-old"}, To: &upgrade.Release{ID: o.Release}}, nil
	}
	s.restarts = func(_ context.Context, service string) (uint32, error) {
		s.times[service]++
		if s.times[service] > 1 { // the first time is right behind the transaction
			if err := s.down[service]; errors.Is(err, errRestarted) {
				return 1, nil
			} else if err != nil {
				return 0, err
			}
		}
		return 0, nil
	}
	return s
}

func TestRoll(t *testing.T) {
	good := upgrade.Report{Outcome: upgrade.Upgraded, Changed: true, From: &upgrade.Release{ID: "x-old"}, To: &upgrade.Release{ID: "x-new"}}
	end := func(code ExitCode) upgrade.Report { return upgrade.Report{ExitCode: int(code), Cause: "because"} }
	for _, c := range []struct {
		name      string
		script    func(s *scripted)
		allOrNone bool
		outcome   string
		code      ExitCode
		states    string
		calls     string
	}{
		{"good", func(s *scripted) {}, false, "done", 0, "changed changed changed", "web@1, web@2, web@3"},
		{"goes on", func(s *scripted) { s.ends["web@1"] = []upgrade.Report{{Outcome: upgrade.Unchanged}} }, false,
			"done", 0, "unchanged changed changed", "web@1, web@2, web@3"},
		{"not needed", func(s *scripted) { s.doc.Instances[0].State, s.doc.Instances[2].State = rollUnchanged, rollLeftOut }, false,
			"done", 0, "unchanged changed left-out", "web@2"},
		{"first fails", func(s *scripted) { s.ends["web@1"] = []upgrade.Report{end(11)} }, false, "stopped", 11, "failed pending pending", "web@1"},
		{"first is refused", func(s *scripted) { s.ends["web@1"] = []upgrade.Report{end(10)} }, true, "stopped", 10, "failed pending pending", "web@1"},
		{"second fails", func(s *scripted) { s.ends["web@2"] = []upgrade.Report{end(11)} }, false, "stopped", 15, "changed failed pending", "web@1, web@2"},
		{"second fails, first had it", func(s *scripted) {
			s.ends["web@1"], s.ends["web@2"] = []upgrade.Report{{Outcome: upgrade.Unchanged}}, []upgrade.Report{end(11)}
		}, false, "stopped", 11, "unchanged failed pending", "web@1, web@2"},
		{"second is held", func(s *scripted) { s.ends["web@2"] = []upgrade.Report{end(75)} }, false, "stopped", 15, "changed failed pending", "web@1, web@2"},
		{"second cannot be asked", func(s *scripted) { s.errs["web@2"] = fail(ExitUnavailable, "", "no bus") }, false, "stopped", 15, "changed failed pending", "web@1, web@2"},
		{"second is lost", func(s *scripted) { s.ends["web@2"] = []upgrade.Report{end(12)} }, true, "stopped", 12, "changed failed pending", "web@1, web@2"},
		{"second is frozen", func(s *scripted) { s.ends["web@2"] = []upgrade.Report{end(14)} }, true, "stopped", 14, "changed failed pending", "web@1, web@2"},
		{"second is interrupted", func(s *scripted) { s.ends["web@2"] = []upgrade.Report{end(130)} }, false, "stopped", 130, "changed failed pending", "web@1, web@2"},
		{"all or none", func(s *scripted) { s.ends["web@3"] = []upgrade.Report{end(11)} }, true,
			"undone", 11, "brought-back brought-back failed", "web@1, web@2, web@3, web@2 back, web@1 back"},
		{"all or none, and one does not go back", func(s *scripted) {
			s.ends["web@3"], s.ends["web@2"] = []upgrade.Report{end(11)}, []upgrade.Report{good, end(11)}
		}, true, "stopped", 15, "changed changed failed", "web@1, web@2, web@3, web@2 back"},
		{"all or none, and one is lost", func(s *scripted) {
			s.ends["web@3"], s.ends["web@2"] = []upgrade.Report{end(11)}, []upgrade.Report{good, end(12)}
		}, true, "stopped", 12, "changed changed failed", "web@1, web@2, web@3, web@2 back"},
		{"restarted behind its commit", func(s *scripted) { s.down["web@1"] = errRestarted }, false, "stopped", 15, "changed pending pending", "web@1"},
		{"restarted, all or none", func(s *scripted) { s.down["web@1"] = errRestarted }, true, "undone", 11, "brought-back pending pending", "web@1, web@1 back"},
		{"down behind its commit", func(s *scripted) { s.down["web@1"] = errDown }, false, "stopped", 12, "changed pending pending", "web@1"},
	} {
		s := newScripted()
		c.script(s)
		s.run(t.Context(), rollOptions{upgradeOptions: upgradeOptions{Binary: "./web"}, AllOrNone: c.allOrNone})
		var states []string
		for _, m := range s.doc.Instances {
			states = append(states, string(m.State))
		}
		if s.doc.Outcome != c.outcome || s.doc.ExitCode != c.code || strings.Join(states, " ") != c.states || strings.Join(s.calls, ", ") != c.calls {
			t.Errorf("%s: %s %d, %q, %q; want %s %d, %q, %q", c.name, s.doc.Outcome, s.doc.ExitCode, states, s.calls, c.outcome, c.code, c.states, c.calls)
		}
		if (s.doc.Stopped == "") != (c.code == 0) || (s.doc.Hint == "") != (c.code == 0) {
			t.Errorf("%s: stopped at %q, hint %q", c.name, s.doc.Stopped, s.doc.Hint)
		}
	}
}

// A signal between two instances ends the roll, and --all-or-none holds all the same.
func TestRollInterrupted(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	s := newScripted()
	do := s.transact
	s.transact = func(ctx context.Context, service string, o upgradeOptions) (upgrade.Report, error) {
		cancel(signalled{15})
		if o.Kind == release.KindRollback && ctx.Err() != nil {
			return upgrade.Report{}, ctx.Err()
		}
		return do(ctx, service, o)
	}
	s.run(ctx, rollOptions{AllOrNone: true, Pause: time.Hour})
	if want := []string{"web@1", "web@1 back"}; s.doc.ExitCode != ExitTerm || s.doc.Outcome != "undone" || !slices.Equal(s.calls, want) || s.doc.Changed {
		t.Errorf("%d %s %q", s.doc.ExitCode, s.doc.Outcome, s.calls)
	}
}
