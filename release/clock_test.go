package release

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"
)

// A clock that was a year ahead and is set right again does not make an old release the newest one for a year, neither
// in the list nor for Prune; and the way back is what the history says.
func TestClockSetBack(t *testing.T) {
	s := newStore(t)
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	var staged []string
	for i, at := range []time.Time{now.Add(-time.Hour), now.AddDate(1, 0, 0), now, now.Add(time.Second), now.Add(-24 * time.Hour)} {
		r := stageAt(t, s, string(rune('a'+i)), at)
		if i < 3 {
			mustFlip(t, s, r)
			mustAppend(t, s, Entry{TxID: testTxID(byte(i + 1)), Kind: KindUpgrade, To: r.ID, Committed: true, Started: at, Ended: at})
		}
		if !r.StagedAt.Equal(at) {
			t.Errorf("staged at %s, want %s", r.StagedAt, at)
		}
		staged = append(staged, r.ID)
	}
	if !slices.IsSorted(staged) {
		t.Errorf("they sort otherwise than they were staged: %q", staged)
	}
	if r, err := s.Previous(); err != nil || r.ID != staged[1] {
		t.Errorf("the previous one is %s, %v; want %s", r.ID, err, staged[1])
	}
	removed, err := pruneFor(t, s, 1)
	if err != nil {
		t.Fatal(err)
	}
	var ids []string
	for _, r := range removed {
		ids = append(ids, r.ID)
	}
	if want := []string{staged[3]}; !slices.Equal(ids, want) {
		t.Errorf("removed %q, want %q", ids, want)
	}
}

// Reports of the future are not kept in place of those that are written now.
func TestReportsOfTheFuture(t *testing.T) {
	s := newStore(t)
	d, err := s.openReports(true)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	id := func(at time.Duration) string { return txID(time.Now().Add(at), [4]byte{1, 2, 3, 4}) }
	future, later, recent, last := id(24*time.Hour), id(365*24*time.Hour), id(-2*time.Minute), id(-time.Minute)
	for _, id := range []string{future, later, recent, last} {
		if err := os.WriteFile(filepath.Join(d.Name(), id+reportSuffix), []byte("{}"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := pruneReports(d, 1, last+reportSuffix); err != nil {
		t.Fatal(err)
	}
	names, err := readNames(d)
	if slices.Sort(names); err != nil || !slices.Equal(names, []string{recent + reportSuffix, last + reportSuffix}) {
		t.Errorf("%q are left, %v", names, err)
	}
}
