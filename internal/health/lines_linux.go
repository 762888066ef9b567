package health

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/zdt-dev/zdt/internal/sockowner"
	"github.com/zdt-dev/zdt/journal"
)

// Line is an entry of the journal.
type Line struct {
	PID  int // who wrote it, as journald knows from the kernel
	Text string
	// Priority is that of syslog(3); one that has none is a notice. At is when it was written, on a clock that nobody sets.
	Priority journal.Priority
	At       time.Duration
	// Loss is why others may be missing: then this is none of the service's, but journald's.
	Loss string
}

// Lines follows the journal.
type Lines struct {
	Entries <-chan Line  // closed at its end
	Problem func() error // why nothing comes, nil when something does
	Close   func()       // ends it, and returns when it has ended
	// Rest ends it, and returns what has been written until now and not been delivered. Its error is why there may be more.
	Rest func(ctx context.Context) ([]Line, error)
}

// Journal follows what the unit of the query writes.
func Journal(q journal.Query) func(ctx context.Context, since string) Lines {
	return func(ctx context.Context, since string) Lines {
		q.AfterCursor = since
		f := journal.Follow(ctx, q)
		lines := make(chan Line)
		ended := make(chan struct{})
		ctx, cancel := context.WithCancel(ctx)
		last := since // owned by the goroutine until it has ended
		go func() {
			defer close(ended)
			defer close(lines)
			for e := range f.Entries() {
				line, ok := lineOf(e, q.Source)
				if !ok {
					last = e.Cursor
					continue
				}
				select {
				case lines <- line:
					last = e.Cursor
				case <-ctx.Done():
					return
				}
			}
		}()
		end := func() {
			cancel()
			f.Close()
			<-ended
		}
		return Lines{Entries: lines, Problem: f.Problem, Close: end, Rest: func(ctx context.Context) ([]Line, error) {
			end()
			q.AfterCursor = last
			entries, err := journal.Rest(ctx, q)
			var rest []Line
			for _, e := range entries {
				if line, ok := lineOf(e, q.Source); ok {
					rest = append(rest, line)
				}
			}
			return rest, err
		}}
	}
}

// lineOf is an entry as a line, if it is one of the service's, or about them.
func lineOf(e journal.Entry, s journal.Source) (Line, bool) {
	if why, ok := journal.Loss(e, s); ok {
		return Line{Loss: why}, true
	}
	pid, err := strconv.Atoi(e.Get("_PID"))
	if err != nil || !journal.Trusted(e, s) {
		return Line{}, false
	}
	priority, err := strconv.Atoi(e.Get("PRIORITY"))
	if err != nil {
		priority = int(journal.PriNotice)
	}
	return Line{PID: pid, Text: e.Get("MESSAGE"), Priority: journal.Priority(priority), At: e.Monotonic}, true
}

var (
	errNoJournal = errors.New("the journal cannot be read, and so the gate not be asked (root may read it, and the group systemd-journal)")
	errSilent    = errors.New("nothing comes from the journal, not even what zdt itself writes")
	errStopped   = errors.New("the journal is not followed any more")
)

// journalPatience is how long journal! waits, beyond its time, for a first sign of the journal: that nothing is read is no
// silence. What the service's runtime writes about the candidate is one.
const journalPatience = 5 * time.Second

// matchLimit bounds the text of one entry that is looked at, in bytes.
const matchLimit = 64 << 10

// listen asks a journal gate.
func (p Prober) listen(ctx context.Context, g Gate, c Candidate, r *Result, tell func()) {
	fail := func(why error) {
		r.fail(why.Error())
		tell()
	}
	if p.Lines == nil || c.Since == "" {
		fail(errNoJournal)
		return
	}
	belongs := p.Belongs
	if belongs == nil {
		belongs = sockowner.Belongs
	}
	began := time.Now()
	lines := p.Lines(ctx, c.Since)
	defer lines.Close()
	timer := time.NewTimer(g.within)
	defer timer.Stop()
	silent, late := true, false // of the journal
	for {
		select {
		case <-ctx.Done():
			return
		case line, ok := <-lines.Entries:
			if !ok {
				if ctx.Err() == nil {
					fail(errStopped)
				}
				return
			}
			silent = false
			if line.Loss != "" {
				continue
			}
			text, found := g.matches(line.Text)
			if found && belongs(line.PID, c.PID) {
				r.Last = fmt.Sprintf("process %d wrote %q", line.PID, shown(text))
				if g.kind == kindSilence {
					r.fail("it found a line")
				} else {
					r.add(g, answer{ok: true, text: r.Last}, time.Since(began))
				}
				tell()
				if r.State != Asking {
					return
				}
			}
			if late && g.kind == kindSilence && r.State == Asking {
				r.State, r.PassedAfter = Passed, time.Since(began)
				tell()
			}
		case <-timer.C:
			problem := lines.Problem()
			switch {
			case g.kind == kindJournal:
				r.overdue(g)
				if r.Last = "no such line of the candidate's"; problem != nil {
					r.Last = problem.Error()
				}
				tell()
				return
			case !silent && problem == nil:
				r.State, r.PassedAfter = Passed, time.Since(began)
				tell()
			case late && problem != nil:
				fail(problem)
				return
			case late:
				fail(errSilent)
				return
			default:
				late = true
				timer.Reset(journalPatience)
			}
		}
	}
}

// matches returns the first line of an entry that the gate looks for.
func (g Gate) matches(text string) (string, bool) {
	text = text[:min(len(text), matchLimit)]
	for line := range strings.SplitSeq(text, "\n") {
		if g.line.MatchString(line) {
			return line, true
		}
	}
	return "", false
}
