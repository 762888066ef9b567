package upgrade

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/zdt-dev/zdt/journal"
	"github.com/zdt-dev/zdt/release"
)

// begin, progress and end tell the observer and keep the timings.

func (r *run) begin(p Phase, text string) {
	r.phase, r.phaseStart = p, r.Host.Now()
	r.Observe(Update{Phase: p, State: Running, Text: text, At: r.phaseStart})
}

func (r *run) progress(text string) {
	now := r.Host.Now()
	r.Observe(Update{Phase: r.phase, State: Running, Text: text, At: now, Elapsed: now.Sub(r.phaseStart)})
}

func (r *run) end(s State, text string) {
	now := r.Host.Now()
	took := now.Sub(r.phaseStart)
	r.report.Timings = append(r.report.Timings, Timing{r.phase, s, took})
	r.Observe(Update{Phase: r.phase, State: s, Text: text, At: now, Elapsed: took})
}

func (r *run) warn(format string, args ...any) {
	r.report.Warnings = append(r.report.Warnings, fmt.Sprintf(format, args...))
}

// event is an operator's event with what all of them carry.
func (r *run) event(kind journal.Kind, fields ...journal.Field) journal.Event {
	e := journal.Event{Kind: kind, TxID: r.report.TxID, Service: r.Options.Service, PID: os.Getpid(),
		Generation: uint64(r.report.Generation), Fields: fields}
	if r.report.From != nil {
		e.Fields = append(e.Fields, journal.Str(journal.FieldFrom, r.report.From.ID))
	}
	e.Fields = append(e.Fields, journal.Str(journal.FieldTo, r.to.ID))
	if r.Who.LoginUID != nil {
		e.Fields = append(e.Fields, journal.Str(journal.FieldLoginUID, strconv.FormatUint(uint64(*r.Who.LoginUID), 10)))
	}
	if r.Who.SudoUser != "" {
		e.Fields = append(e.Fields, journal.Str(journal.FieldSudoUser, r.Who.SudoUser))
	}
	return e
}

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
// last word. The verdict does not depend on it.
const storyPatience = 100 * time.Millisecond

func (s *story) finish() (lines []StoryLine, how string) {
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
	case has(journal.Fork) && (has(journal.Abort) || has(journal.Listen) && has(journal.Drain) && has(journal.Exit)):
		return s.lines, "complete"
	}
	return s.lines, "partial"
}

func describe(rel release.Release) *Release {
	d := &Release{ID: rel.ID, SHA256: rel.SHA256, Path: rel.Path}
	if rel.Build != nil {
		d.Version = rel.Build.Version
	}
	return d
}

func round(d time.Duration) string {
	switch {
	case d < 10*time.Millisecond:
		return d.Round(100 * time.Microsecond).String()
	case d < 10*time.Second:
		return d.Round(time.Millisecond).String()
	}
	return d.Round(time.Second).String()
}

// pause waits, but not beyond ctx.
func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}
