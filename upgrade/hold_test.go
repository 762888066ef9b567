package upgrade

import (
	"strings"
	"testing"

	"github.com/zdt-dev/zdt/release"
)

func TestHold(t *testing.T) {
	w := newWorld(t)
	if err := w.store.SetHold(release.Hold{Who: release.Who{User: "anna"}, Why: "black friday"}); err != nil {
		t.Fatal(err)
	}
	rep := w.upgrade(program(t, "good", "v2"))
	w.want(rep, Locked, Preflight, "")
	wantText(t, "cause", rep.Cause, "held by anna since")
	wantText(t, "cause", rep.Cause, "black friday")
	w.wantOld()
	w.wantHistory()
	e := w.engine(program(t, "good", "v2"))
	e.Options.IgnoreHold = true
	rep = e.Run(t.Context())
	w.want(rep, Upgraded, "", "")
	wantText(t, "warnings", strings.Join(rep.Warnings, "\n"), "black friday")
	if _, err := w.store.ClearHold(); err != nil {
		t.Fatal(err)
	}
	w.wantNextWorks()
}
