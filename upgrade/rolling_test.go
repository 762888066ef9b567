package upgrade

import (
	"testing"
	"time"

	"github.com/zdt-dev/zdt/handoff/control"
)

// The time for several workers is theirs, one after the other.
func TestRolling(t *testing.T) {
	for _, tt := range []struct {
		workers *control.Workers
		limit   time.Duration
		text    string
	}{
		{nil, 0, ""},
		{&control.Workers{Want: 4, Left: 4}, 33 * time.Second, "0 of 4 workers replaced"},
		{&control.Workers{Want: 4, Left: 1}, 33 * time.Second, "3 of 4 workers replaced"},
	} {
		r := &run{Engine: Engine{slack: time.Second}, before: control.Status{Workers: tt.workers}, ev: &evidence{status: control.Status{Workers: tt.workers}}}
		r.Options.ReadyTimeout = 10 * time.Second
		if limit, text := r.rolling(), r.ev.replaced(); limit != tt.limit || text != tt.text {
			t.Errorf("%+v: %s, %q", tt.workers, limit, text)
		}
	}
}
