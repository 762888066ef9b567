package upgrade

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/zdt-dev/zdt/handoffcheck"
	"github.com/zdt-dev/zdt/release"
)

// A blocker refuses before anything is changed, unless it is accepted; what is accepted is recorded.
func TestFindings(t *testing.T) {
	w := newWorld(t)
	found := []handoffcheck.Finding{
		{ID: "ZDT001", Severity: handoffcheck.Blocker, Seen: "Type=simple", Why: "nobody hears", Fix: "put Type=notify"},
		{ID: "ZDT022", Severity: handoffcheck.Blocker, Seen: "releases are not there", Why: "it is not seen", Fix: "bind them"},
		{ID: "ZDT007", Severity: handoffcheck.Risk, Seen: "Restart=no", Why: "it stays down", Fix: "put Restart=always"},
	}
	engine := func(accept ...string) Engine {
		e := w.engine(program(t, "good", "v2"))
		e.Options.AcceptRisk, e.Sight = accept, &Sight{Peek: w.store.Peek}
		e.Findings = func(context.Context) ([]handoffcheck.Finding, error) { return slices.Clone(found), nil }
		return e
	}
	for _, accept := range [][]string{nil, {"ZDT001"}, {"ZDT007"}} {
		p := engine(accept...).Plan(t.Context())
		if p.Outcome != PlanRefused || len(p.Findings) != len(found) {
			t.Errorf("the plan: %s, %+v", p.Outcome, p.Findings)
		}
		rep := engine(accept...).Run(t.Context())
		w.want(rep, Refused, Preflight, "")
		wantText(t, "cause", rep.Cause, "ZDT022", "releases are not there")
		wantText(t, "hint", rep.Hint, "bind them", "zdt explain")
		if slices.Contains(accept, "ZDT001") == strings.Contains(rep.Cause, "ZDT001") {
			t.Errorf("accepted %q: %s", accept, rep.Cause)
		}
		w.wantOld()
		w.wantHistory()
		if all, err := w.store.List(); err != nil || len(all) != 1 {
			t.Errorf("a release was staged: %v %v", all, err)
		}
		if _, err := w.store.ReadTxn(); !errors.Is(err, release.ErrNoTxn) {
			t.Errorf("there is a record: %v", err)
		}
	}

	e := engine("ZDT022", "ZDT001", "ZDT014")
	var recorded []string
	w.at(Listen, func() {
		if txn, err := w.store.ReadTxn(); err == nil {
			recorded = txn.AcceptedRisks
		}
	})
	rep := e.Run(t.Context())
	w.want(rep, Upgraded, "", "")
	h, err := w.store.History()
	if err != nil || len(h.Entries) == 0 {
		t.Fatal(h, err)
	}
	for where, ids := range map[string][]string{"report": rep.AcceptedRisks, "record": recorded, "history": h.Entries[len(h.Entries)-1].AcceptedRisks} {
		if strings.Join(ids, " ") != "ZDT001 ZDT022" {
			t.Errorf("the %s has %q", where, ids)
		}
	}

	// What serves already changes nothing, so nothing can fail.
	if p := engine().Plan(t.Context()); p.Outcome != PlanUnchanged || len(p.Findings) != len(found) {
		t.Errorf("the plan of what serves: %s, %+v", p.Outcome, p.Findings)
	}
	w.want(engine().Run(t.Context()), Unchanged, "", "")
	e = engine()
	e.Options.Binary, e.Options.Release = "", rep.To.ID
	w.want(e.Run(t.Context()), Unchanged, "", "")

	// A rollback is not asked.
	e = engine()
	e.Options.Kind, e.Options.Binary = release.KindRollback, ""
	w.want(e.Run(t.Context()), Upgraded, "", "")

	// What is not known is no reason to refuse.
	e = engine()
	e.Findings = func(context.Context) ([]handoffcheck.Finding, error) { return nil, errors.New("no answer") }
	rep = e.Run(t.Context())
	w.want(rep, Upgraded, "", "")
	wantText(t, "warnings", strings.Join(rep.Warnings, "\n"), "no answer")
}

// What only a handoff would fail of does not refuse a start of the service.
func TestFindingsOfAStart(t *testing.T) {
	for id, want := range map[string]bool{"ZDT022": true, "ZDT014": false} {
		r := Engine{
			Options: Options{Strategy: StrategyRestart},
			Findings: func(context.Context) ([]handoffcheck.Finding, error) {
				return []handoffcheck.Finding{{ID: id, Severity: handoffcheck.Blocker}}, nil
			},
		}
		run := &run{Engine: r, ctx: t.Context()}
		if err := run.checkFindings(); (err == nil) != want {
			t.Errorf("%s: %v", id, err)
		}
	}
}
