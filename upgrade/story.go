package upgrade

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/zdt-dev/zdt/handoff/control"
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
	workers  int           // how many processes are replaced, one after the other; at least 1
	complete chan struct{} // closed when the last event has been seen

	lines  []StoryLine     // owned by read until it returns
	events []journal.Event // of the lines
}

func newStory(h Host, cursor, txid string, before control.Status, readable bool) *story {
	workers := 1
	if w := before.Workers; w != nil {
		workers = max(workers, w.Want)
		for _, one := range w.List {
			if one.PID == 0 { // it crashed and waits for its next start: it has nothing to say
				workers = max(workers-1, 1)
			}
		}
	}
	return &story{host: h, cursor: cursor, txid: txid, helper: helperOf(before), readable: readable, workers: workers, complete: make(chan struct{})}
}

// ending is how a transaction ended, which tells what its last event is.
type ending struct {
	upgraded  bool
	committed bool // before it was undone
}

// read takes the entries in until the follower is closed.
func (s *story) read(f *journal.Follower, end ending) {
	last := s.lastWord(end)
	for entry := range f.Entries() {
		e, ok := s.host.Decode(entry, s.helper)
		if !ok || e.TxID != s.txid {
			continue
		}
		if !e.Kind.Operator() {
			s.add(e, entry.Realtime)
		}
		if last(e) {
			close(s.complete)
			last = func(journal.Event) bool { return false }
		}
	}
}

// lastWord returns a function that is given all events in their order, and says of which one nothing comes behind. After an
// upgrade that is the end of the last of the old processes. One that was undone ends with the abort; behind the commit
// workers that were replaced are still started again after it, and zdt, which waits for that, says when it is done.
func (s *story) lastWord(end ending) func(journal.Event) bool {
	exits, aborted := 0, false
	return func(e journal.Event) bool {
		switch e.Kind {
		case journal.Exit:
			exits++
			return end.upgraded && exits == s.workers
		case journal.Abort:
			if e.Get(journal.FieldReason) == string(journal.ReasonRefused) {
				return false // another one, that never began
			}
			aborted = true
			return !end.upgraded && !end.committed
		case journal.UpgradeRollback:
			return !end.upgraded && end.committed && aborted
		}
		return false
	}
}

// maxStory bounds the lines of one transaction: there are about four for each process. More
// come only from a service that makes them up.
const maxStory = 100

func (s *story) add(e journal.Event, at time.Time) {
	if len(s.lines) < maxStory+4*s.workers {
		s.lines = append(s.lines, StoryLine{At: at, Event: string(e.Kind), PID: e.PID, Text: e.Text()})
		s.events = append(s.events, e)
	}
}

// all returns the events of a kind, none of a nil story. The story has been told.
func (s *story) all(kind journal.Kind) (events []journal.Event) {
	if s == nil {
		return nil
	}
	for _, e := range s.events {
		if e.Kind == kind {
			events = append(events, e)
		}
	}
	return events
}

// find returns the first event of a kind about a process, as all does.
func (s *story) find(kind journal.Kind, pid int) (journal.Event, bool) {
	events := s.all(kind)
	i := slices.IndexFunc(events, func(e journal.Event) bool { return e.PID == pid })
	if i < 0 {
		return journal.Event{}, false
	}
	return events[i], true
}

// storyPatience is how long the end of a transaction waits for the journal's
// last word, which is there within milliseconds on a host with time to spare.
// The verdict does not depend on it.
const storyPatience = 2 * time.Second

// finish reads the journal and says how complete the story is: of an upgrade
// it has all four events, and the end of each process, of a handoff that was undone its abort.
func (s *story) finish(ctx context.Context, end ending) (lines []StoryLine, how string) {
	if !s.readable {
		return nil, "absent"
	}
	follower := s.host.Follow(ctx, s.cursor)
	var wg sync.WaitGroup
	wg.Go(func() { s.read(follower, end) })
	timer := time.NewTimer(storyPatience)
	defer timer.Stop()
	select {
	case <-s.complete:
	case <-timer.C:
	}
	follower.Close()
	wg.Wait()
	number := map[journal.Kind]int{}
	for _, e := range s.events {
		number[e.Kind]++
	}
	switch {
	case len(s.lines) == 0:
		return nil, "absent"
	case end.upgraded && number[journal.Fork] > 0 && number[journal.Listen] > 0 && number[journal.Drain] > 0 && number[journal.Exit] >= s.workers,
		!end.upgraded && number[journal.Abort] > 0:
		return s.lines, "complete"
	}
	return s.lines, "partial"
}
