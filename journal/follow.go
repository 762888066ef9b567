package journal

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync/atomic"
	"time"
)

// Cursor returns the place of the journal's last entry, whoever wrote it, to
// follow from there what something triggered later writes. It is "" for an
// empty journal. Of q only Command matters.
func Cursor(ctx context.Context, q Query) (string, error) {
	p, err := start(ctx, q.argv("--lines=1", "--output-fields=MESSAGE_ID"))
	if err != nil {
		return "", err
	}
	e, err := NewReader(p.out).Next()
	if err != nil && err != io.EOF {
		p.end()
		return "", fmt.Errorf("read the journal's last entry: %w", err)
	}
	if err == nil {
		_, _ = io.Copy(io.Discard, p.out) // one entry was asked for
	}
	if err := p.wait(); err != nil {
		return "", err
	}
	if err == nil && e.Cursor == "" {
		return "", fmt.Errorf("read the journal's last entry: %w: no cursor", ErrFormat)
	}
	return e.Cursor, nil
}

// A journalctl that has delivered nothing for so long is run again, because
// it may have become deaf: when the directory of the journal's files is
// removed, or did not exist when journalctl was started, it never notices the
// new one (seen with 252 and 257). That is likely only before the first entry
// of a journal.
const (
	quietTimeout = 10 * time.Second
	blindTimeout = 500 * time.Millisecond // nothing is known to exist
)

var errQuiet = errors.New("quiet for long")

// Follower delivers a unit's entries as they are written.
type Follower struct {
	query   Query
	entries chan Entry
	cancel  context.CancelFunc
	done    chan struct{}
	problem atomic.Pointer[error]
	retry   func(failures int) time.Duration // how long to wait before journalctl is run again

	// Owned by run.
	last string
	seen recent
}

// Follow starts to deliver the entries of q.Unit after q.AfterCursor, those
// that exist already and those to come, together with systemd's messages
// about the unit and zdt's own events. What is delivered is selected, not
// proved: see [Trusted] and [Decode].
//
// It runs journalctl, and runs it again from the last entry on when it ends
// or its output makes no sense, so that every entry is delivered once. It
// ends with ctx or Close.
func Follow(ctx context.Context, q Query) *Follower {
	return follow(ctx, q, func(failures int) time.Duration {
		return min(20*time.Millisecond<<min(failures, 10), 2*time.Second)
	})
}

func follow(ctx context.Context, q Query, retry func(int) time.Duration) *Follower {
	ctx, cancel := context.WithCancel(ctx)
	f := &Follower{
		query:   q,
		entries: make(chan Entry),
		cancel:  cancel,
		done:    make(chan struct{}),
		retry:   retry,
		last:    q.AfterCursor,
	}
	f.seen.add(q.AfterCursor)
	go f.run(ctx)
	return f
}

// Entries returns the channel of entries. It is closed when the Follower has
// ended and its child is reaped.
func (f *Follower) Entries() <-chan Entry { return f.entries }

// Close ends the Follower and waits until its journalctl and goroutine are
// gone. It may be called more than once.
func (f *Follower) Close() {
	f.cancel()
	<-f.done
}

// Problem returns why journalctl ended last time, nil if it did not or has
// delivered since. The Follower goes on trying; this is for telling why
// nothing is seen. It may wrap [ErrNoAccess].
func (f *Follower) Problem() error {
	if p := f.problem.Load(); p != nil {
		return *p
	}
	return nil
}

func (f *Follower) run(ctx context.Context) {
	defer close(f.done)
	defer close(f.entries)
	failures := 0
	for {
		delivered, err := f.once(ctx)
		if ctx.Err() != nil {
			return
		}
		if delivered {
			failures = 0
		}
		if errors.Is(err, errQuiet) {
			continue
		}
		f.problem.Store(&err)
		timer := time.NewTimer(f.retry(failures))
		failures++
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
		}
	}
}

// once runs journalctl until it ends. The error is never nil.
func (f *Follower) once(ctx context.Context) (delivered bool, err error) {
	p, err := start(ctx, f.query.follow(f.last))
	if err != nil {
		return false, err
	}
	patience := quietTimeout
	if f.last == "" {
		patience = blindTimeout
	}
	quiet := newAlarm(patience, p.cancel)
	defer quiet.stop()
	for e, err := range NewReader(p.out).Entries() {
		if err == io.ErrUnexpectedEOF {
			return delivered, errors.Join(p.wait(), fmt.Errorf("read from journalctl: %w", err))
		}
		if err != nil {
			p.end()
			if quiet.rang() {
				err = errQuiet
			}
			return delivered, fmt.Errorf("read from journalctl: %w", err)
		}
		if e.Cursor == "" || !f.seen.add(e.Cursor) {
			continue // without a cursor there is no telling whether it is a repetition
		}
		quiet.stop()         // a consumer that takes its time is no silence
		f.problem.Store(nil) // before: who has got the entry may ask at once
		select {
		case f.entries <- e:
		case <-ctx.Done():
			p.end()
			return delivered, ctx.Err()
		}
		f.last, delivered = e.Cursor, true
		quiet.start(quietTimeout)
	}
	if err := p.wait(); err != nil {
		return delivered, err
	}
	return delivered, fmt.Errorf("run journalctl: %w", io.EOF)
}

// recent remembers the last cursors. journalctl repeats entries of its own
// accord, when journal files are rotated under it.
type recent struct {
	ring [256]string
	next int
	set  map[string]struct{}
}

// add reports whether cursor was new.
func (r *recent) add(cursor string) bool {
	if r.set == nil {
		r.set = make(map[string]struct{}, len(r.ring))
	}
	if _, ok := r.set[cursor]; ok {
		return false
	}
	delete(r.set, r.ring[r.next])
	r.ring[r.next] = cursor
	r.set[cursor] = struct{}{}
	r.next = (r.next + 1) % len(r.ring)
	return true
}

// alarm calls a function when it was not stopped in time.
type alarm struct {
	timer *time.Timer
	rung  atomic.Bool
}

func newAlarm(d time.Duration, ring func()) *alarm {
	a := &alarm{}
	a.timer = time.AfterFunc(d, func() {
		a.rung.Store(true)
		ring()
	})
	return a
}

func (a *alarm) start(d time.Duration) { a.timer.Reset(d) }
func (a *alarm) stop()                 { a.timer.Stop() }
func (a *alarm) rang() bool            { return a.rung.Load() }
