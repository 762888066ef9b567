package helper

import (
	"testing"
	"time"
)

func TestLosses(t *testing.T) {
	start := time.Unix(1000, 0)
	const never = -1
	for name, c := range map[string]struct {
		every  time.Duration // between two losses
		lived  time.Duration // after READY
		n      int           // of the loss that is too many; 0: none of twenty
		pauses []time.Duration
	}{
		"at once":         {every: time.Second, lived: 0, n: 5, pauses: []time.Duration{lossPause, 2 * lossPause, 4 * lossPause, 8 * lossPause}},
		"within a minute": {every: 14 * time.Second, lived: 13 * time.Second, n: 5},
		"now and then":    {every: 16 * time.Second, lived: 15 * time.Second, pauses: []time.Duration{lossPause, 2 * lossPause, 4 * lossPause, 8 * lossPause, 8 * lossPause}},
		"never ready":     {every: time.Hour, lived: never, n: 5, pauses: []time.Duration{lossPause, 2 * lossPause}},
		"accidents":       {every: time.Millisecond, lived: time.Hour, pauses: []time.Duration{0, 0, 0, 0, 0, 0}},
	} {
		t.Run(name, func(t *testing.T) {
			var l losses
			if l.pause() != 0 {
				t.Errorf("pause %s before the first", l.pause())
			}
			now := start
			for i := 1; i <= 20; i++ {
				now = now.Add(c.every)
				var ready time.Time
				if c.lived != never {
					ready = now.Add(-c.lived)
				}
				if tooMany := l.add(ready, now); tooMany != (i == c.n) {
					t.Fatalf("loss %d: too many: %v", i, tooMany)
				}
				if i == c.n {
					return
				}
				if i <= len(c.pauses) && l.pause() != c.pauses[i-1] {
					t.Errorf("pause %s after loss %d, want %s", l.pause(), i, c.pauses[i-1])
				}
				if l.pause() > lossPauseMax {
					t.Errorf("pause %s", l.pause())
				}
			}
		})
	}
}
