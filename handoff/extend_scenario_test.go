package handoff

import (
	"context"
	"testing"
	"time"

	"github.com/zdt-dev/zdt/handoff/control"
	"github.com/zdt-dev/zdt/journal"
)

// Who cannot decide yet puts the deadline of a held handoff off, or brings it near.
func TestExtend(t *testing.T) {
	t.Parallel()
	s := stand(t, serviceConfig{})
	extend := func(txid string, d time.Duration) (control.Status, error) {
		return s.ask(func(ctx context.Context, c *control.Client) (control.Status, error) { return c.Extend(ctx, txid, d) })
	}
	_, err := extend("t1", time.Hour)
	checkCode(t, err, control.CodeNotHeld)
	s.hold("t1")
	_, err = extend("t2", time.Hour)
	checkCode(t, err, control.CodeTxID)
	for _, d := range []time.Duration{0, -time.Second, control.MaxHold + 1} {
		_, err = extend("t1", d)
		checkCode(t, err, control.CodeBadRequest)
	}
	st, err := extend("t1", 100*time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	if left := time.Until(st.Handoff.Deadline); left < 99*time.Hour || left > 100*time.Hour {
		t.Errorf("decided within %s", left)
	}
	if _, err := extend("t1", time.Millisecond); err != nil {
		t.Fatal(err)
	}
	s.awaitFailure(string(journal.ReasonHoldTimeout))
	s.nextWorks()
}
