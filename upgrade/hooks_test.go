package upgrade

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"
)

// hooked has hooks that object at one point, and notes all that are asked.
func hooked(e *Engine, objects HookPoint) *[]HookDoc {
	asked := new([]HookDoc)
	e.Hooks = &Hooks{Limit: time.Second, Run: func(_ context.Context, d HookDoc) ([]HookRun, error) {
		*asked = append(*asked, d)
		if d.Point == objects {
			return []HookRun{{Point: d.Point, Name: "10-no", Error: "exit status 1"}}, errors.New("10-no: not today")
		}
		return []HookRun{{Point: d.Point, Name: "10-yes"}}, nil
	}}
	return asked
}

func TestHooks(t *testing.T) {
	for _, strategy := range []Strategy{StrategyHandoff, StrategyRestart} {
		for _, tt := range []struct {
			objects HookPoint
			outcome Outcome
			phase   Phase
			asked   []HookPoint
		}{
			{"", Upgraded, "", []HookPoint{HookPreUpgrade, HookPostListen, HookPreCommit, HookPostCommit}},
			{HookPreUpgrade, Refused, Stage, []HookPoint{HookPreUpgrade}},
			{HookPostListen, RolledBack, Listen, []HookPoint{HookPreUpgrade, HookPostListen, HookRollback}},
			{HookPreCommit, RolledBack, Commit, []HookPoint{HookPreUpgrade, HookPostListen, HookPreCommit, HookRollback}},
			{HookPostCommit, Upgraded, "", []HookPoint{HookPreUpgrade, HookPostListen, HookPreCommit, HookPostCommit}},
		} {
			t.Run(string(strategy)+" "+string(tt.objects), func(t *testing.T) {
				w := newWorld(t)
				e := w.engine(program(t, "good", "v2"))
				e.Options.Strategy = strategy
				asked := hooked(&e, tt.objects)
				rep := e.Run(t.Context())
				reason := ""
				if tt.outcome != Upgraded {
					reason = reasonHook
					wantText(t, "cause", rep.Cause, "10-no: not today")
				}
				if strategy == StrategyRestart && tt.phase == Commit {
					tt.phase = Record
				}
				w.want(rep, tt.outcome, tt.phase, reason)
				var points []HookPoint
				for _, d := range *asked {
					points = append(points, d.Point)
					if d.TxID != rep.TxID || d.To == nil || (d.Candidate != 0) != (d.Point != HookPreUpgrade) || (d.Reason != "") != (d.Point == HookRollback) {
						t.Errorf("asked %+v", d)
					}
				}
				if !slices.Equal(points, tt.asked) || len(rep.Hooks) != len(points) {
					t.Errorf("asked at %v, want %v; told %v", points, tt.asked, rep.Hooks)
				}
				if tt.objects == HookPostCommit {
					wantText(t, "warnings", strings.Join(rep.Warnings, "\n"), "post-commit hook: 10-no: not today")
				}
				if tt.outcome == Upgraded {
					w.wantServing("v2")
				} else {
					w.wantOld()
				}
				w.wantNextWorks()
			})
		}
	}
}

// A hook may take longer than the incumbent would wait for zdt.
func TestHooksHaveTime(t *testing.T) {
	w := newWorld(t)
	e := w.engine(program(t, "good", "v2"))
	e.Hooks = &Hooks{Limit: 100 * time.Hour, Run: func(_ context.Context, d HookDoc) ([]HookRun, error) {
		if d.Point == HookPreCommit {
			if left := time.Until(w.status().Handoff.Deadline); left < 99*time.Hour {
				t.Errorf("the incumbent waits %s", left)
			}
		}
		return nil, nil
	}}
	w.want(e.Run(t.Context()), Upgraded, "", "")
}
