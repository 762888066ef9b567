package upgrade

import "testing"

// What bounds a rehearsal is the host and the slice, and not the unit's own limits.
func TestRoomBeside(t *testing.T) {
	const mib = 1 << 20
	for _, c := range []struct {
		name  string
		f     Footprint
		want  RoomVerdict
		bound string
	}{
		{"nothing known", Footprint{}, RoomUnknown, ""},
		{"plenty", Footprint{Generation: 100 * mib, HostAvailable: 900 * mib}, RoomFits, "host"},
		{"the unit's own limit", Footprint{Generation: 100 * mib, HostAvailable: 900 * mib, Used: 150 * mib, Max: 200 * mib}, RoomFits, "host"},
		{"the host is full", Footprint{Generation: 100 * mib, HostAvailable: 99 * mib}, RoomNone, "host"},
		{"the slice is full", Footprint{Generation: 100 * mib, HostAvailable: 900 * mib, SliceUsed: 950 * mib, SliceMax: 1024 * mib}, RoomNone, "slice"},
		{"the slice is all but full", Footprint{Generation: 100 * mib, HostAvailable: 900 * mib, SliceUsed: 914 * mib, SliceMax: 1024 * mib}, RoomTight, "slice"},
	} {
		if r := c.f.Beside(); r.Verdict != c.want || r.Bound != c.bound {
			t.Errorf("%s: %s, want %s (%s)", c.name, r, c.want, c.bound)
		}
	}
	// Within the unit the slice bounds as well.
	if r := (Footprint{Generation: 100 * mib, HostAvailable: 900 * mib, SliceUsed: 950 * mib, SliceMax: 1024 * mib}).Rooms()[0]; r.Verdict != RoomNone || r.Bound != "slice" {
		t.Errorf("%s", r)
	}
}
