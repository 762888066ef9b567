package handoff

import (
	"context"
	"testing"
	"testing/synctest"
	"time"
)

// The drain waits for an Accept that may still come back with a connection, and
// then for that connection.
func TestDrainWaitsForAccept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o, _ := Options{IdleGrace: time.Second}.withDefaults(func(string) string { return "" })
		tr := newTracker()
		tr.accepting.Add(1)
		began := time.Now()
		d := startDrain(t.Context(), tr, o, o.IdleGrace, nil, func(context.Context) {})
		time.Sleep(2 * time.Second)
		c := &conn{}
		tr.add(c, &fakeConn{closed: make(chan struct{})}, "")
		c.set(connIdle)
		tr.accepting.Add(-1)
		<-d.done
		if took := time.Since(began); took < 3*time.Second || took > 3*time.Second+2*drainTick {
			t.Errorf("took %v, want the grace of the connection that came after 2s", took)
		}
		if got := d.counts.Load().Closed; got != 1 {
			t.Errorf("%d connections closed, want 1", got)
		}
	})
}
