package upgrade

import (
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"github.com/zdt-dev/zdt/handoff/control"
)

// afterSet is t as time.Now would have returned it had somebody set the clock by whole seconds before: only the wall clock
// differs. (A time with a monotonic reading has, in its first word, one bit for that, 33 bits of seconds since 1885 and 30 of
// nanoseconds.)
func afterSet(t time.Time, by time.Duration) time.Time {
	word := (*uint64)(unsafe.Pointer(&t))
	*word += uint64(by/time.Second) << 30
	return t
}

func TestAfterSet(t *testing.T) {
	now := time.Now()
	for _, by := range []time.Duration{24 * time.Hour, -365 * 24 * time.Hour} {
		set := afterSet(now, by)
		if set.Round(0).Sub(now.Round(0)) != by || set.Sub(now) != 0 {
			t.Errorf("%s is %s", now, set)
		}
	}
}

// Somebody sets the clock in the middle of an upgrade. That is neither a reason to undo it nor time that has passed: not in the
// report, and not in what is read back of the history.
func TestClockIsSet(t *testing.T) {
	for _, phase := range []Phase{Preflight, Stage, Trigger, Listen, Bake, Commit, Drain, Record} {
		for _, by := range []time.Duration{24 * time.Hour, -365 * 24 * time.Hour} {
			t.Run(string(phase)+by.String(), func(t *testing.T) {
				t.Parallel()
				w := newWorld(t)
				var set atomic.Int64
				w.host.Now = func() time.Time { return afterSet(time.Now(), time.Duration(set.Load())) }
				w.at(phase, func() { set.Store(int64(by)) })
				e := w.engine(program(t, "good", "v2"))
				e.Options.Bake = 100 * time.Millisecond
				began := time.Now()
				rep := e.Run(t.Context())
				took := time.Since(began)
				w.want(rep, Upgraded, "", "")
				if d := rep.EndedAt.Round(0).Sub(rep.StartedAt.Round(0)); d <= 0 || d > took {
					t.Errorf("the report says that it took %s, it was %s", d, took)
				}
				for _, tm := range rep.Timings {
					if tm.Took < 0 || tm.Took > took || tm.Phase == Bake && tm.Took < e.Options.Bake {
						t.Errorf("%s took %s", tm.Phase, tm.Took)
					}
				}
				for i, u := range w.observed {
					if i > 0 && u.At.Round(0).Before(w.observed[i-1].At.Round(0)) {
						t.Errorf("%s was told at %s, before %s", u.Phase, u.At, w.observed[i-1].At)
					}
				}
				entry := w.wantHistory(Upgraded)[0]
				if d := entry.Ended.Sub(entry.Started); d <= 0 || d > took {
					t.Errorf("the history says that it took %s, it was %s", d, took)
				}
			})
		}
	}
}

// What a runtime sends of the times of a handoff is true to each other.
func TestSteady(t *testing.T) {
	for _, by := range []time.Duration{24 * time.Hour, -365 * 24 * time.Hour} {
		started := time.Now()
		now := afterSet(started.Add(3*time.Second), by)
		h := control.Handoff{StartedAt: started, ReadyAt: afterSet(started.Add(2*time.Second), by), Deadline: started.Add(10 * time.Second)}.Steady(now)
		if d := h.ReadyAt.Round(0).Sub(h.StartedAt.Round(0)); d != 2*time.Second {
			t.Errorf("READY after %s", d)
		}
		if d := h.Deadline.Round(0).Sub(now.Round(0)); d != 7*time.Second {
			t.Errorf("%s left", d)
		}
	}
}
