//go:build linux

package helper

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/zdt-dev/zdt/handoff/control"
)

// Who cannot decide yet puts the deadline of a held handoff off, or brings it near.
func TestExtend(t *testing.T) {
	s := begin(t, stageConfig{})
	extend := func(txid string, d time.Duration) (control.Status, error) {
		return s.ask(func(ctx context.Context, c *control.Client) (control.Status, error) { return c.Extend(ctx, txid, d) })
	}
	refused := func(err error, code string) {
		t.Helper()
		var e *control.Error
		if !errors.As(err, &e) || e.Code != code {
			t.Errorf("error %v, want code %q", err, code)
		}
	}
	_, err := extend("tx", time.Hour)
	refused(err, control.CodeNotHeld)
	s.hold(s.release("two", "web"))
	_, err = extend("other", time.Hour)
	refused(err, control.CodeTxID)
	_, err = extend("tx", -time.Second)
	refused(err, control.CodeBadRequest)
	st, err := extend("tx", 100*time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	if left := time.Until(st.Handoff.Deadline); left < 99*time.Hour || left > 100*time.Hour {
		t.Errorf("decided within %s", left)
	}
	if _, err := extend("tx", time.Millisecond); err != nil {
		t.Fatal(err)
	}
	s.awaitUndone("hold-timeout")
}
