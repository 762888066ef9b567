package upgrade

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/zdt-dev/zdt/journal"
)

// story collects what the journal tells of this transaction. One goroutine
// reads; finish stops and joins it.
type story struct {
	follower *journal.Follower
	complete chan struct{} // closed when the last event has been seen
	wg       sync.WaitGroup

	mu    sync.Mutex
	lines []StoryLine
}

func follow(ctx context.Context, h Host, cursor, txid string, readable bool) *story {
	s := &story{complete: make(chan struct{})}
	if !readable {
		return s
	}
	s.follower = h.Follow(context.WithoutCancel(ctx), cursor)
	s.wg.Add(1)
	go func() {
		defer s.wg.Done()
		for entry := range s.follower.Entries() {
			e, ok := h.Decode(entry)
			if !ok || e.TxID != txid || e.Kind.Operator() {
				continue
			}
			s.add(StoryLine{At: entry.Realtime, Event: string(e.Kind), PID: e.PID, Text: e.Text()})
		}
	}()
	return s
}

func (s *story) add(line StoryLine) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lines = append(s.lines, line)
	if line.Event == string(journal.Exit) || line.Event == string(journal.Abort) {
		select {
		case <-s.complete:
		default:
			close(s.complete)
		}
	}
}

// storyPatience is how long the end of a transaction waits for the journal's
// last word, which is there within milliseconds on a host with time to spare. On
// a busy one journalctl needs as long as the whole handoff only to start. The
// verdict does not depend on it.
const storyPatience = 2 * time.Second

// finish says how complete the story is: of an upgrade it has all four events,
// of a handoff that was undone its abort.
func (s *story) finish(upgraded bool) (lines []StoryLine, how string) {
	if s.follower == nil {
		return nil, "absent"
	}
	timer := time.NewTimer(storyPatience)
	defer timer.Stop()
	select {
	case <-s.complete:
	case <-timer.C:
	}
	s.follower.Close()
	s.wg.Wait()
	has := func(kind journal.Kind) bool {
		return slices.ContainsFunc(s.lines, func(l StoryLine) bool { return l.Event == string(kind) })
	}
	switch {
	case len(s.lines) == 0:
		return nil, "absent"
	case upgraded && has(journal.Fork) && has(journal.Listen) && has(journal.Drain) && has(journal.Exit), !upgraded && has(journal.Abort):
		return s.lines, "complete"
	}
	return s.lines, "partial"
}
