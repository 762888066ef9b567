package takeover

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/zdt-dev/zdt/handoff/control"
	"github.com/zdt-dev/zdt/internal/wire"
)

func TestTrusted(t *testing.T) {
	for _, tt := range []struct {
		uid  uint32
		euid int
		want string // "": trusted
	}{
		{0, 0, ""},
		{0, 1000, ""},
		{1000, 1000, ""},
		{1000, 0, "it runs as uid 1000, and only root and uid 0 are"},
		{1001, 1000, "it runs as uid 1001, and only root and uid 1000 are"},
		{65534, 0, "its user has no number here"},
		{65534, 1000, "its user has no number here"},
		{65534, 65534, "or as nobody"}, // which of the two cannot be told
	} {
		err := trusted(tt.uid, tt.euid)
		if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
			t.Errorf("trusted(%d, %d) = %v, want %q", tt.uid, tt.euid, err, tt.want)
		}
	}
}

func TestRefusedBecause(t *testing.T) {
	for _, tt := range []struct{ code, want string }{
		{control.CodeBusy, "refused (busy): why; start this one again when that is over"},
		{control.CodeNotReady, "refused (not-ready): why; start this one again when that is over"},
		{wire.CodeVersion, "refused (version): why; go by way of a release that speaks a version of both"},
		{control.CodeDenied, "refused (denied): why"},
		{"of the future", "refused (of the future): why"},
	} {
		if got := refusedBecause(wire.Message{Code: tt.code, Reason: "why"}).Error(); !strings.HasSuffix(got, tt.want) {
			t.Errorf("%s: %q, want …%q", tt.code, got, tt.want)
		}
	}
}

// The lock is what keeps two processes from both finding nobody; one who
// holds it for ever must not be able to keep the service down for ever.
func TestLockDirectory(t *testing.T) {
	dir := t.TempDir()
	unlock, err := lockDirectory(dir)
	if err != nil {
		t.Fatal(err)
	}
	second := make(chan error, 1)
	go func() {
		unlock, err := lockDirectory(dir)
		if err == nil {
			unlock()
		}
		second <- err
	}()
	select {
	case err := <-second:
		t.Fatalf("two hold the lock: %v", err)
	case <-time.After(30 * time.Millisecond):
	}
	unlock()
	if err := <-second; err != nil {
		t.Error(err)
	}
	if _, err := lockDirectory(filepath.Join(dir, "missing")); !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), "share it") {
		t.Errorf("%v", err)
	}
}
