package upgrade

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/zdt-dev/zdt/journal"
)

// story collects what the journal tells of this transaction, in one go at its
// end: nothing waits for it before. To follow the journal meanwhile would cost
// the handoff a journalctl that starts beside the candidate, and be late all
// the same, because journald wakes those who wait for entries only every
// 250 ms (POST_CHANGE_TIMER_INTERVAL_USEC), while it shows what it has to
// whoever comes to look.
type story struct {
	host     Host
	cursor   string
	txid     string
	helper   int           // pid, 0: none
	readable bool          // the journal, and so cursor is one
	complete chan struct{} // closed when the last event has been seen

	lines  []StoryLine     // owned by read until it returns
	events []journal.Event // of the lines
}

func newStory(h Host, cursor, txid string, helper int, readable bool) *story {
	return &story{host: h, cursor: cursor, txid: txid, helper: helper, readable: readable, complete: make(chan struct{})}
}

// read takes the entries in until the follower is closed.
func (s *story) read(f *journal.Follower) {
	for entry := range f.Entries() {
		e, ok := s.host.Decode(entry, s.helper)
		if !ok || e.TxID != s.txid || e.Kind.Operator() {
			continue
		}
		s.add(e, entry.Realtime)
	}
}

// maxStory bounds the lines of one transaction, which has about five. More
// come only from a service that makes them up.
const maxStory = 100

func (s *story) add(e journal.Event, at time.Time) {
	if len(s.lines) < maxStory {
		s.lines = append(s.lines, StoryLine{At: at, Event: string(e.Kind), PID: e.PID, Text: e.Text()})
		s.events = append(s.events, e)
	}
	if e.Kind == journal.Exit || e.Kind == journal.Abort {
		select {
		case <-s.complete:
		default:
			close(s.complete)
		}
	}
}

// find returns the first event of a kind about a process. The story has been told.
func (s *story) find(kind journal.Kind, pid int) (journal.Event, bool) {
	i := slices.IndexFunc(s.events, func(e journal.Event) bool { return e.Kind == kind && e.PID == pid })
	if i < 0 {
		return journal.Event{}, false
	}
	return s.events[i], true
}

// storyPatience is how long the end of a transaction waits for the journal's
// last word, which is there within milliseconds on a host with time to spare.
// The verdict does not depend on it.
const storyPatience = 2 * time.Second

// finish reads the journal and says how complete the story is: of an upgrade
// it has all four events, of a handoff that was undone its abort.
func (s *story) finish(ctx context.Context, upgraded bool) (lines []StoryLine, how string) {
	if !s.readable {
		return nil, "absent"
	}
	follower := s.host.Follow(ctx, s.cursor)
	var wg sync.WaitGroup
	wg.Go(func() { s.read(follower) })
	timer := time.NewTimer(storyPatience)
	defer timer.Stop()
	select {
	case <-s.complete:
	case <-timer.C:
	}
	follower.Close()
	wg.Wait()
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
