package systest

import (
	"fmt"
	"syscall"
	"testing"
	"time"

	"github.com/zdt-dev/zdt/internal/guest"
	"github.com/zdt-dev/zdt/internal/load"
)

// longestWait is what a request may take that comes while thousands of connections move.
const longestWait = 250 * time.Millisecond

// Thousands of connections that are idle most of the time move at once: not one ends, and none of the requests that come
// meanwhile, on them or on busy ones, waits for long. How long is measured here and judged in "make soak" alone, which
// has the machine to itself.
func TestThousandsMoveAtOnce(t *testing.T) {
	t.Parallel()
	connections, moves, judged := 2000, 1, soak(t) > 0
	if judged {
		connections, moves = 10_000, 3
	}
	// Each needs a descriptor of its client and one in either generation, where the moves leave an eighth free.
	limit := func() int { return connections*5/4 + 500 }
	var own syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &own); err != nil || own.Cur < uint64(limit()) {
		if judged {
			t.Fatalf("%d connections need %d descriptors, and the limit is %d (%v)", connections, limit(), own.Cur, err)
		}
		connections = 200
	}
	guest.Each(t, func(t *testing.T, g *guest.Guest) {
		s := startService(t, g, "http", good(1).file(t), fmt.Sprintf("LimitNOFILE=%d", limit()))
		files := []string{s.putFile(good(1).file(t), 1), s.putFile(good(2).file(t), 2)}
		s.mustMove(files[1])
		before := s.footprint()

		crowd := s.load(load.Config{
			KeepAlive: -1, Fresh: -1, Idle: connections, IdleThink: time.Duration(connections) * time.Millisecond, // a request each millisecond
		})
		asked := func() int { return crowd.Report().Requests }
		s.await("all are connected", func() bool { return asked() >= connections })
		const busy = 16
		l := s.load(load.Config{KeepAlive: busy, Fresh: -1, Think: 10 * time.Millisecond})
		s.busy(l, 1000)
		for n := range moves {
			ends := []func(){crowd.Window(), l.Window()}
			r := s.mustMove(files[n%2])
			for _, end := range ends {
				end()
			}
			if c := r.Connections; c != nil && c.Moved < connections+busy {
				t.Errorf("%d connections moved, want all of %d", c.Moved, connections+busy)
			}
			s.mustTake(false)
			// The pauses of a client differ by the factor 3 at most: by then each has asked on the connection that moved.
			at := asked()
			s.await("each has asked again", func() bool { return asked() >= at+2*connections })
		}
		idle, active := crowd.Stop(), l.Stop()
		mustLoseNothing(t, idle)
		mustLoseNothing(t, active)
		t.Logf("%d connections moved, %d times; meanwhile on idle ones %s; on busy ones %s, at other times %s", connections+busy, moves,
			waits(idle.Inside), waits(active.Inside), waits(active.Outside))
		if longest := max(idle.Inside.Max, active.Inside.Max); judged && longest > longestWait {
			t.Errorf("a request waited %s, want %s at most", longest, longestWait)
		}
		s.settled()
		s.mustLeaveNothing(before)
	})
}

// waits says how long requests waited.
func waits(p load.Part) string {
	return fmt.Sprintf("%d requests, p50 %s, p99 %s, max %s", p.Requests, p.P50, p.P99, p.Max)
}
