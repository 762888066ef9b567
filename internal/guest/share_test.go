package guest_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/zdt-dev/zdt/internal/guest"
)

// What one guest writes into a shared directory the other one reads, and the directory outlives both.
func TestShare(t *testing.T) {
	guest.Require(t)
	dir := t.TempDir()
	guests := []*guest.Guest{guest.Boot(t, guest.Trixie), guest.Boot(t, guest.Trixie)}
	for _, g := range guests {
		if err := g.Share(dir, "/srv/shared"); err != nil {
			t.Fatal(err)
		}
	}
	if err := guests[0].WriteFile("/srv/shared/note", []byte("from the first"), 0o644); err != nil {
		t.Fatal(err)
	}
	if got := guests[1].MustRun(t, "cat", "/srv/shared/note"); got != "from the first" {
		t.Errorf("the other guest reads %q", got)
	}
	for _, g := range guests {
		if err := g.Close(); err != nil {
			t.Error(err)
		}
	}
	if text, err := os.ReadFile(filepath.Join(dir, "note")); string(text) != "from the first" {
		t.Errorf("afterwards: %q, %v", text, err)
	}
}
