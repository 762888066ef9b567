package cmd

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/zdt-dev/zdt/rehearse"
	"github.com/zdt-dev/zdt/release"
	"github.com/zdt-dev/zdt/unitgen"
	"github.com/zdt-dev/zdt/upgrade"
)

func TestRehearsalPolicy(t *testing.T) {
	yes, no, always := unitgen.RehearseYes, unitgen.RehearseNo, unitgen.RehearseAlways
	for _, c := range []struct {
		flag *unitgen.Rehearse
		unit unitgen.Rehearse
		off  string
		must bool
	}{
		{nil, yes, "", false},
		{nil, always, "", true},
		{nil, no, "Rehearse=no in [X-Zdt] of the unit", false},
		{&no, always, "--no-rehearse", false},
		{&always, no, "", true},
	} {
		s := &site{policy: unitgen.Policy{Rehearse: c.unit}}
		if q := s.rehearsalOf(upgradeOptions{Rehearse: c.flag}, nil); q.Off != c.off || q.Must != c.must {
			t.Errorf("flag %v, unit %s: off %q, must %t", c.flag, c.unit, q.Off, q.Must)
		}
	}
	// What a unit says nothing of is rehearsed.
	if p, err := unitgen.ParsePolicy(unitgen.File{Path: "/u", Data: []byte("[X-Zdt]\nName=web\n")}); err != nil || p.Rehearse != yes {
		t.Errorf("%q, %v", p.Rehearse, err)
	}
}

// Nothing is started where there is not the memory for it.
func TestRehearsalNeedsRoom(t *testing.T) {
	full := func(context.Context) upgrade.Room {
		return upgrade.Room{What: "memory", Verdict: upgrade.RoomNone, Needs: 3 << 30, Free: 200 << 20, Bound: "host"}
	}
	_, err := (&site{}).rehearsalOf(upgradeOptions{}, full).Play(t.Context(), release.Release{}, "", nil) // a site without a host
	var no *upgrade.NoRehearsal
	if !errors.As(err, &no) || !strings.Contains(no.Why, "needs about 3.0 GiB, 200 MiB are left on the host") {
		t.Errorf("%v", err)
	}
	for _, v := range []upgrade.RoomVerdict{upgrade.RoomFits, upgrade.RoomTight, upgrade.RoomUnknown} {
		if err := tooLittle(upgrade.Room{Verdict: v}); err != nil {
			t.Errorf("%s: %v", v, err)
		}
	}
}

// Whatever keeps a rehearsal from being played is not the candidate's fault.
func TestWhyNoRehearsal(t *testing.T) {
	for _, err := range []error{&rehearse.Impossible{Why: "x", Fix: "y"}, errors.New("x")} {
		var no *upgrade.NoRehearsal
		if !errors.As(noRehearsal(err), &no) || no.Why != "x" {
			t.Errorf("%v: %v", err, no)
		}
	}
}
