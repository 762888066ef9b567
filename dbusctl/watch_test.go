package dbusctl

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/godbus/dbus/v5"
)

// next is the next state for which want holds; others may be skipped over.
func next(t *testing.T, states <-chan Unit, what string, want func(Unit) bool) Unit {
	t.Helper()
	ctx := testContext(t)
	var last Unit
	for {
		select {
		case u, ok := <-states:
			if !ok {
				t.Fatalf("watch ended before %s", what)
			}
			if want(u) {
				return u
			}
			last = u
		case <-ctx.Done():
			t.Fatalf("no state with %s; last: %+v", what, last)
		}
	}
}

func TestWatch(t *testing.T) {
	s := startFake(t)
	m := s.dial()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	states, err := m.Watch(ctx, "web.service")
	if err != nil {
		t.Fatal(err)
	}
	if u := <-states; u.MainPID != 100 || u.ActiveState != "active" {
		t.Errorf("first state: %+v", u)
	}
	s.change("web.service", "Service", map[string]any{"MainPID": uint32(200)})
	next(t, states, "MainPID 200", func(u Unit) bool { return u.MainPID == 200 })
	s.change("web.service", "Service", map[string]any{"StatusText": "draining 3"})
	next(t, states, "StatusText", func(u Unit) bool { return u.StatusText == "draining 3" && u.MainPID == 200 })
	s.change("web.service", "Unit", map[string]any{"ActiveState": "failed"})
	next(t, states, "failed", func(u Unit) bool { return u.ActiveState == "failed" })

	// Settings change silently at a daemon-reload.
	s.set("web.service", map[string]any{"Description": "new"})
	s.emit(managerPath, managerIface+".Reloading", false)
	next(t, states, "reloaded settings", func(u Unit) bool { return u.Description == "new" })

	// An idle unit is unloaded, and announced anew with what has changed.
	s.set("web.service", map[string]any{"ActiveState": "activating"})
	s.emit(managerPath, managerIface+".UnitNew", "web.service", unitPath("web.service"))
	next(t, states, "loaded anew", func(u Unit) bool { return u.ActiveState == "activating" })

	// It disappears; the watch stays.
	s.set("web.service", map[string]any{"LoadState": "not-found"})
	s.emit(managerPath, managerIface+".UnitRemoved", "web.service", unitPath("web.service"))
	next(t, states, "gone", func(u Unit) bool { return u.LoadState == "not-found" })

	cancel()
	for range states {
	}
	if m.Err() != nil {
		t.Errorf("the connection ended with the watch: %v", m.Err())
	}
	eventually(t, "bookkeeping is gone", func() bool {
		m.sig.mu.Lock()
		defer m.sig.mu.Unlock()
		return len(m.sig.watches) == 0
	})
}

func TestWatchNoUnit(t *testing.T) {
	m := startFake(t).dial()
	if _, err := m.Watch(testContext(t), "nope.service"); !errors.Is(err, ErrNoUnit) {
		t.Errorf("err = %v", err)
	}
	if _, err := m.Watch(testContext(t), "web"); err == nil {
		t.Error("a name without a suffix is accepted")
	}
}

// A receiver that does not receive costs nobody anything, and finds the last
// state when it comes back.
func TestWatchSlowReceiver(t *testing.T) {
	s := startFake(t)
	m := s.dial()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	slow, err := m.Watch(ctx, "web.service")
	if err != nil {
		t.Fatal(err)
	}
	quick, err := m.Watch(ctx, "web.service")
	if err != nil {
		t.Fatal(err)
	}
	const last = 500
	for i := 1; i <= last; i++ {
		s.change("web.service", "Service", map[string]any{"StatusText": fmt.Sprint(i)})
	}
	next(t, quick, "the last text", func(u Unit) bool { return u.StatusText == fmt.Sprint(last) })
	received := 0
	next(t, slow, "the last text", func(u Unit) bool { received++; return u.StatusText == fmt.Sprint(last) })
	if received > 10 {
		t.Errorf("the slow receiver got %d states, want the latest", received)
	}
	// And calls work meanwhile, that is, the reader was never blocked.
	s.on(func(method, unit string) *dbus.Error { s.jobRemoved(fakeJob, unit, "done"); return nil })
	if err := m.Start(testContext(t), "web.service"); err != nil {
		t.Error(err)
	}
}

func TestWatchOverReexec(t *testing.T) {
	s := startFake(t)
	m := s.dial()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	states, err := m.Watch(ctx, "web.service")
	if err != nil {
		t.Fatal(err)
	}
	<-states
	s.leave()
	s.set("web.service", map[string]any{"MainPID": uint32(300)}) // no signal tells
	s.join()
	next(t, states, "what changed in between", func(u Unit) bool { return u.MainPID == 300 })
	s.change("web.service", "Service", map[string]any{"MainPID": uint32(301)})
	next(t, states, "what changes afterwards", func(u Unit) bool { return u.MainPID == 301 })
}

func TestWatchEndsWithContextAtOnce(t *testing.T) {
	s := startFake(t)
	m := s.dial()
	ctx, cancel := context.WithCancel(context.Background())
	states, err := m.Watch(ctx, "web.service")
	if err != nil {
		t.Fatal(err)
	}
	s.leave() // a read would now wait for systemd to come back
	m.sig.mu.Lock()
	for w := range m.sig.watches {
		poke(w.look)
	}
	m.sig.mu.Unlock()
	cancel()
	for range states {
	}
}
