package upgrade

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/zdt-dev/zdt/handoff/control"
	"github.com/zdt-dev/zdt/release"
)

// sighted is an engine that can plan.
func (w *world) sighted(binary string, world *World) Engine {
	e := w.engine(binary)
	e.Sight = &Sight{
		Peek:  w.store.Peek,
		World: func(context.Context) (World, error) { return *world, nil },
		Footprint: func(context.Context, int) Footprint {
			return Footprint{Generation: 100, HostAvailable: 1000, Used: 120, Max: 200}
		},
		Gates: []string{"http://127.0.0.1/ready"},
	}
	return e
}

func someWorld() *World {
	return &World{Invocation: "ab01", Policy: "bake 0s", Systemd: "read", Files: []WorldFile{{"/etc/systemd/system/web.service", "1"}, {"/etc/default/web", "2"}}}
}

// tree lists everything below dir, with times.
func tree(t *testing.T, dir string) (all []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err == nil {
			all = append(all, path+" "+info.Mode().String()+" "+info.ModTime().String())
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// A plan says what the upgrade then does, with both runtimes, and changes nothing.
func TestPlan(t *testing.T) {
	for _, runtime := range []string{"library", "helper"} {
		t.Run(runtime, func(t *testing.T) {
			var env []string
			if runtime == "helper" {
				env = append(env, helped)
			}
			w := newWorld(t, env...)
			world := someWorld()
			before := tree(t, w.store.Dir())
			binary := program(t, "good", "v2")
			e := w.sighted(binary, world)
			p := e.Plan(t.Context())
			if p.Outcome != PlanUpgrade || p.ExitCode != 0 || p.Changed || len(p.Problems) > 0 || p.Runtime != runtime || p.Strategy != PlanHandoff || p.ID == "" {
				t.Fatalf("%+v", p)
			}
			if p.From == nil || p.From.ID != w.v1.ID || p.To == nil || p.To.ID != "" || len(p.To.SHA256) != 64 || p.To.Size == 0 || p.To.Path != binary {
				t.Errorf("from %+v to %+v", p.From, p.To)
			}
			if p.MainPID != w.systemd.mainPID() || p.Incumbent != serving(w.status()) {
				t.Errorf("main process %d, serves %d", p.MainPID, p.Incumbent)
			}
			var phases []Phase
			for _, s := range p.Steps {
				phases = append(phases, s.Phase)
				if s.Text == "" {
					t.Errorf("%+v", s)
				}
			}
			if !slices.Equal(phases, Phases()[1:]) {
				t.Errorf("steps %v", phases)
			}
			if len(p.Room) != 1 || p.Room[0].Verdict != RoomNone || p.Room[0].Bound != "MemoryMax" || len(p.Gates) != 1 {
				t.Errorf("room %v, gates %v", p.Room, p.Gates)
			}
			if again := e.Plan(t.Context()); again.ID != p.ID {
				t.Errorf("the same plan again is %s, and was %s", again.ID, p.ID)
			}
			if after := tree(t, w.store.Dir()); !slices.Equal(after, before) {
				t.Errorf("the store was\n%s\nand is\n%s", strings.Join(before, "\n"), strings.Join(after, "\n"))
			}
			if s := w.status(); s.Attempts != 0 || s.Armed != nil {
				t.Errorf("the runtime: %+v", s)
			}

			e.Options.PlanID = p.ID
			rep := e.Run(t.Context())
			w.want(rep, Upgraded, "", "")
			if rep.To.SHA256 != p.To.SHA256 {
				t.Errorf("%s was planned, %s serves", p.To.SHA256, rep.To.SHA256)
			}
			if e.Options.PlanID = ""; e.Plan(t.Context()).Outcome != PlanUnchanged {
				t.Errorf("once more: %+v", e.Plan(t.Context()))
			}
			e.Options.PlanID = p.ID
			wantText(t, "cause", e.Run(t.Context()).Cause, "another release is the current one")
		})
	}
}

// The steps of a plan say whether there is a rehearsal, and which hooks run in which step.
func TestPlanRehearsalAndHooks(t *testing.T) {
	impossible := func(context.Context) (time.Duration, error) {
		return 0, &NoRehearsal{Why: "its sockets are shared", Fix: "share none"}
	}
	possible := func(context.Context) (time.Duration, error) { return 42 * time.Second, nil }
	hook := func(p HookPoint) string { return "/etc/zdt/hooks.d/" + string(p) + "/50-x" }
	handoff := "pre-upgrade in stage, post-listen in listen, pre-commit in commit, post-commit in commit, rollback in rollback"
	w := newWorld(t)
	binary := program(t, "good", "v2")
	for _, c := range []struct {
		name      string
		rehearsal *Rehearsal
		change    func(e *Engine)
		want      string // of the rehearsal; "": no such step
		hooks     string
		exit      int
	}{
		{"none", nil, nil, "", handoff, 0},
		{"possible", &Rehearsal{Look: possible}, nil, "42s: try the new program", handoff, 0},
		{"always", &Rehearsal{Look: possible, Must: true}, nil, "42s: try the new program", handoff, 0},
		{"impossible", &Rehearsal{Look: impossible}, nil, "skipped: none: its sockets are shared", handoff, 0},
		{"impossible, always", &Rehearsal{Look: impossible, Must: true}, nil, "", handoff, 10},
		{"off", &Rehearsal{Off: "--no-rehearse", Look: possible}, nil, "skipped: none: --no-rehearse", handoff, 0},
		{"restart", &Rehearsal{Look: possible}, func(e *Engine) { e.Options.Strategy = StrategyRestart }, "skipped: none: with --strategy restart",
			"pre-upgrade in stage, post-listen in listen, pre-commit in record, post-commit in record, rollback in rollback", 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			e := w.sighted(binary, someWorld())
			e.Rehearsal = c.rehearsal
			e.Hooks = &Hooks{Each: time.Minute, Found: map[HookPoint][]string{}}
			for _, p := range []HookPoint{HookPreUpgrade, HookPostListen, HookPreCommit, HookPostCommit, HookRollback} {
				e.Hooks.Found[p] = []string{hook(p)}
			}
			e.Options.Retain = &Retention{Keep: 7, KeepFailed: 3}
			if c.change != nil {
				c.change(&e)
			}
			p := e.Plan(t.Context())
			if p.ExitCode != c.exit {
				t.Fatalf("%+v", p)
			}
			if c.exit != 0 {
				wantText(t, "problem", p.Problems[0].Cause, "a rehearsal is not possible: its sockets are shared")
				wantText(t, "hint", p.Problems[0].Hint, "share none", "--no-rehearse")
			}
			var got string
			var hooks []string
			for i, s := range p.Steps {
				if s.Phase == Rehearse {
					if got = s.Within.String(); s.Skipped {
						got = "skipped"
					}
					got += ": " + s.Text
					if p.Steps[i-1].Phase != Stage || p.Steps[i+1].Phase != Trigger {
						t.Errorf("it comes behind %s", p.Steps[i-1].Phase)
					}
				}
				for _, h := range s.Hooks {
					if h.Path != hook(h.Point) || h.Within != time.Minute || h.Else == "" {
						t.Errorf("%+v", h)
					}
					hooks = append(hooks, string(h.Point)+" in "+string(s.Phase))
				}
				if s.Phase == Record {
					wantText(t, "what follows the record", s.Then, "Keep=7, KeepFailed=3")
				}
			}
			if !strings.HasPrefix(got, c.want) || c.want == "" && got != "" {
				t.Errorf("rehearsal %q, want %q", got, c.want)
			}
			if strings.Join(hooks, ", ") != c.hooks {
				t.Errorf("hooks: %s, want %s", strings.Join(hooks, ", "), c.hooks)
			}
		})
	}
}

// Whatever moves, the upgrade does not begin, and it is said what has moved.
func TestPlanMoved(t *testing.T) {
	w := newWorld(t)
	binary := program(t, "good", "v2")
	other := program(t, "good", "v3")
	base := w.sighted(binary, someWorld()).Plan(t.Context())
	if base.ID == "" {
		t.Fatal(base)
	}
	for _, tt := range []struct {
		name   string
		world  func(*World)
		engine func(*Engine)
		moved  string
	}{
		{"unit file", func(w *World) { w.Files[0].Sum = "x" }, nil, "/etc/systemd/system/web.service changed"},
		{"new drop-in", func(w *World) { w.Files = append(w.Files, WorldFile{"/etc/systemd/system/web.service.d/x.conf", "1"}) }, nil, "x.conf is new"},
		{"file gone", func(w *World) { w.Files = w.Files[:1] }, nil, "a file that it depends on is gone"},
		{"started anew", func(w *World) { w.Invocation = "cd" }, nil, "the service was started anew"},
		{"daemon-reload", func(w *World) { w.Systemd = "again" }, nil, "systemd has read"},
		{"policy", func(w *World) { w.Policy = "bake 1s" }, func(e *Engine) { e.Options.Bake = time.Second }, "the policy in [X-Zdt] of the unit changed"},
		{"flags", nil, func(e *Engine) { e.Options.Bake = time.Second }, "the flags are others"},
		{"new hook", func(w *World) {
			w.Files = append(w.Files, WorldFile{"/etc/zdt/hooks.d/pre-commit/50-x", "1"})
		}, nil, "/etc/zdt/hooks.d/pre-commit/50-x is new"},
		{"rehearsal", nil, func(e *Engine) { e.Rehearsal = &Rehearsal{} }, "whether there is a rehearsal first"},
		{"another program", nil, func(e *Engine) { e.Options.Binary = other }, "the program to upgrade to is another one"},
		{"hold", nil, func(e *Engine) {
			if err := w.store.SetHold(release.Hold{Why: "x"}); err != nil {
				t.Fatal(err)
			}
			e.Options.IgnoreHold = true
		}, "the service is held now"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			world := someWorld()
			if tt.world != nil {
				tt.world(world)
			}
			e := w.sighted(binary, world)
			e.Options.PlanID = base.ID
			if tt.engine != nil {
				tt.engine(&e)
			}
			rep := e.Run(t.Context())
			w.store.ClearHold()
			w.want(rep, Refused, Preflight, reasonMoved)
			wantText(t, "cause", rep.Cause, "the world has moved", tt.moved)
			if n := strings.Count(rep.Cause, ";"); n > 0 {
				t.Errorf("more than that: %s", rep.Cause)
			}
			wantText(t, "hint", rep.Hint, "zdt plan web")
			w.wantOld()
		})
	}
	t.Run("nonsense", func(t *testing.T) {
		e := w.sighted(binary, someWorld())
		e.Options.PlanID = "p1.x"
		w.want(e.Run(t.Context()), Refused, Preflight, "")
	})
	t.Run("not moved", func(t *testing.T) {
		e := w.sighted(binary, someWorld())
		e.Options.PlanID = base.ID
		w.want(e.Run(t.Context()), Upgraded, "", "")
	})
}

// The plan names every reason for which the upgrade is refused, in the same words, and first the one that the upgrade names.
func TestPlanAgreesWithPreflight(t *testing.T) {
	w := newWorld(t)
	binary := program(t, "good", "v2")
	for _, tt := range []struct {
		name   string
		unit   func(*Unit)
		engine func(*Engine)
		exit   int
	}{
		{"job", func(u *Unit) { u.Job = true }, nil, 10},
		{"no main process", func(u *Unit) { u.MainPID = 0 }, nil, 10},
		{"type", func(u *Unit) { u.Type = "simple" }, nil, 10},
		{"notify access", func(u *Unit) { u.NotifyAccess = "none" }, nil, 10},
		{"program", func(u *Unit) { u.Program = "/usr/bin/web" }, nil, 10},
		{"check", nil, func(e *Engine) { e.Check = func(string) error { return errors.New("for another architecture") } }, 10},
		{"no file", nil, func(e *Engine) { e.Options.Binary = "/nonexistent" }, 10},
		{"checksum", nil, func(e *Engine) { e.Options.Stage.SHA256 = strings.Repeat("0", 64) }, 10},
		{"no release", nil, func(e *Engine) { e.Options.Binary, e.Options.Release = "", "20260101T000000Z-000000000000" }, 10},
		{"nowhere to go back to", nil, func(e *Engine) { e.Options.Binary, e.Options.Kind = "", release.KindRollback }, 10},
		{"no runtime", nil, func(e *Engine) {
			e.Host.Control = func(context.Context) (*control.Client, error) { return nil, os.ErrNotExist }
		}, 10},
		{"hold", nil, func(e *Engine) {
			if err := w.store.SetHold(release.Hold{Why: "x"}); err != nil {
				t.Fatal(err)
			}
		}, 75},
		{"lock", nil, func(e *Engine) {
			lock, err := release.Acquire(t.Context(), e.LockPath, release.Holder{TxID: "01", Since: time.Now()}, 0)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { lock.Release() })
		}, 75},
	} {
		t.Run(tt.name, func(t *testing.T) {
			e := w.sighted(binary, someWorld())
			e.slack = 100 * time.Millisecond
			e.Host.Unit = func(context.Context) (Unit, error) {
				u, _, err := w.systemd.state()
				if tt.unit != nil {
					tt.unit(&u)
				}
				return u, err
			}
			if tt.engine != nil {
				tt.engine(&e)
			}
			p, rep := e.Plan(t.Context()), e.Run(t.Context())
			w.store.ClearHold()
			if len(p.Problems) == 0 || p.ExitCode != tt.exit || rep.ExitCode != tt.exit {
				t.Fatalf("plan %+v\nupgrade %s", p, asJSON(rep))
			}
			first := p.Problems[0]
			if first.Cause != rep.Cause || first.Hint != rep.Hint || first.Reason != rep.Reason || first.Outcome != rep.Outcome {
				t.Errorf("plan    %+v\nupgrade %s %s %q hint %q", first, rep.Outcome, rep.Reason, rep.Cause, rep.Hint)
			}
		})
	}
}

// A service that is down is started, one that cannot hand over restarted: the plan says so.
func TestPlanOfAnExchange(t *testing.T) {
	w := newWorld(t)
	binary := program(t, "good", "v2")
	e := w.sighted(binary, someWorld())
	e.Options.Strategy = StrategyRestart
	p := e.Plan(t.Context())
	if p.Outcome != PlanUpgrade || p.Strategy != PlanRestart || len(p.Steps) != 5 || len(p.Room) != 0 {
		t.Errorf("%+v", p)
	}
	e = w.sighted(binary, someWorld())
	e.Host.Unit = func(context.Context) (Unit, error) {
		u, _, err := w.systemd.state()
		u.ActiveState, u.MainPID = "failed", 0
		return u, err
	}
	p = e.Plan(t.Context())
	if p.Outcome != PlanUpgrade || p.Strategy != PlanStart || p.Incumbent != 0 || !strings.Contains(p.Steps[1].Text, "is failed") {
		t.Errorf("%+v", p)
	}
}

func TestRooms(t *testing.T) {
	for _, tt := range []struct {
		name  string
		f     Footprint
		want  RoomVerdict
		bound string
	}{
		{"nothing known", Footprint{}, RoomUnknown, ""},
		{"no bound known", Footprint{Generation: 100}, RoomUnknown, ""},
		{"host", Footprint{Generation: 100, HostAvailable: 1000}, RoomFits, "host"},
		{"tight host", Footprint{Generation: 100, HostAvailable: 110}, RoomTight, "host"},
		{"no room on the host", Footprint{Generation: 100, HostAvailable: 99, Used: 1, Max: 1000}, RoomNone, "host"},
		{"max", Footprint{Generation: 100, HostAvailable: 1000, Used: 100, Max: 500}, RoomFits, "MemoryMax"},
		{"max reached", Footprint{Generation: 100, HostAvailable: 1000, Used: 100, Max: 150}, RoomNone, "MemoryMax"},
		{"over max", Footprint{Generation: 100, HostAvailable: 1000, Used: 200, Max: 150}, RoomNone, "MemoryMax"},
		{"high is soft", Footprint{Generation: 100, HostAvailable: 1000, Used: 100, High: 150, Max: 500}, RoomTight, "MemoryHigh"},
		{"high leaves enough", Footprint{Generation: 100, HostAvailable: 1000, Used: 100, High: 210, Max: 500}, RoomFits, "MemoryHigh"},
		{"not counted", Footprint{Generation: 100, HostAvailable: 1000, Max: 150}, RoomFits, "host"},
	} {
		r := tt.f.Rooms()[0]
		if r.Verdict != tt.want || r.Bound != tt.bound {
			t.Errorf("%s: %s", tt.name, r)
		}
	}
	r := Footprint{Tasks: 40, TasksMax: 60}.Rooms()
	if len(r) != 2 || r[1].Verdict != RoomNone || r[1].Free != 20 {
		t.Errorf("%v", r)
	}
}

func FuzzParsePlanID(f *testing.F) {
	f.Add(makePlanID(nil, someWorld().Files).String())
	f.Fuzz(func(t *testing.T, s string) {
		id, err := ParsePlanID(s)
		if err != nil {
			return
		}
		now := makePlanID(map[string]string{"policy": "x"}, someWorld().Files)
		if moved := id.Moved(now); (len(moved) == 0) != (id.all == now.all) {
			t.Errorf("%q", moved)
		}
		if id.String() != s {
			t.Errorf("%s is %s", s, id)
		}
	})
}

// Of a running program that was overwritten the upgrade makes a release. The plan says so, and leaves it.
func TestPlanOfAnOverwrittenProgram(t *testing.T) {
	w := newWorld(t)
	other, err := os.ReadFile(program(t, "good", "v3"))
	if err != nil {
		t.Fatal(err)
	}
	for _, err := range []error{os.Chmod(filepath.Dir(w.v1.Path), 0o755), os.WriteFile(w.v1.Path+".new", other, 0o555), os.Rename(w.v1.Path+".new", w.v1.Path)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	before := tree(t, w.store.Dir())
	e := w.sighted(program(t, "good", "v2"), someWorld())
	p := e.Plan(t.Context())
	if p.Outcome != PlanUpgrade || p.From == nil || p.From.Program == "" || !strings.Contains(strings.Join(p.Notes, "\n"), "an upgrade first makes one of it") {
		t.Errorf("%+v", p)
	}
	if after := tree(t, w.store.Dir()); !slices.Equal(after, before) {
		t.Errorf("the store was\n%s\nand is\n%s", strings.Join(before, "\n"), strings.Join(after, "\n"))
	}
	e.Options.PlanID = p.ID
	w.want(e.Run(t.Context()), Upgraded, "", "")
}
