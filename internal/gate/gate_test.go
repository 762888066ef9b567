package gate

import (
	"errors"
	"net"
	"testing"
	"testing/synctest"
	"time"
)

// fakeSide is a socket's deadline.
type fakeSide struct{ at time.Time }

func (f *fakeSide) SetDeadline(t time.Time) error { f.at = t; return nil }

func TestGate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := New(Paused)
		side := &fakeSide{}
		g.Add(side)
		if side.at.IsZero() {
			t.Error("a socket added to a paused gate may read")
		}
		passed := make(chan error, 1)
		try := func(stop chan struct{}) { passed <- g.Pass(stop) }
		go try(nil)
		synctest.Wait()
		if len(passed) > 0 {
			t.Fatal("passed a paused gate")
		}
		g.Open()
		if err := <-passed; err != nil || !side.at.IsZero() {
			t.Errorf("open gate: %v, deadline %v", err, side.at)
		}
		g.Pause()
		if side.at.IsZero() {
			t.Error("a pause wakes nobody")
		}
		stop := make(chan struct{})
		go try(stop)
		synctest.Wait()
		close(stop)
		if err := <-passed; !errors.Is(err, net.ErrClosed) {
			t.Errorf("stopped: %v", err)
		}
		go try(nil)
		synctest.Wait()
		g.Close()
		if err := <-passed; !errors.Is(err, net.ErrClosed) {
			t.Errorf("closed: %v", err)
		}
		g.Open() // no way back
		if err := g.Pass(nil); !errors.Is(err, net.ErrClosed) {
			t.Errorf("reopened: %v", err)
		}
		g.Remove(side)
	})
}
