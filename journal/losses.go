package journal

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
)

// What journald says of itself; see sd-messages.h.
const (
	idStarted = "f77379a8490b408bbe5f6940505a777b" // SD_MESSAGE_JOURNAL_START
	idDropped = "a596d6fe7bfa4994828e72309e95d61e" // SD_MESSAGE_JOURNAL_DROPPED
)

// lossMatches selects the entries that [Loss] is about. journald calls the unit OBJECT_SYSTEMD_UNIT there: it is itself the
// one who writes.
func (q Query) lossMatches() []string {
	object := "OBJECT_SYSTEMD_UNIT="
	if q.User {
		object = "OBJECT_SYSTEMD_USER_UNIT="
	}
	return []string{"+", "_TRANSPORT=driver", "MESSAGE_ID=" + idDropped, object + q.Unit, "+", "_TRANSPORT=driver", "MESSAGE_ID=" + idStarted}
}

// Loss reports whether journald says in e that messages of the unit of s are missing, or may be, and in words why: there
// were more than its rate limit allows (it says so only when the next message gets through), or it was started anew. Both
// come from journald alone: _TRANSPORT=driver is what it writes by itself, and no client can set it.
func Loss(e Entry, s Source) (why string, ok bool) {
	if !is(e, "_TRANSPORT", "driver") || s.Unit == "" {
		return "", false
	}
	switch id, _ := e.one("MESSAGE_ID"); id {
	case idStarted:
		return "journald was started anew", true
	case idDropped:
		if !is(e, "OBJECT_SYSTEMD_UNIT", s.Unit) && (!s.User || !is(e, "OBJECT_SYSTEMD_USER_UNIT", s.Unit)) {
			return "", false
		}
		n, err := strconv.Atoi(e.Get("N_DROPPED"))
		if err != nil {
			return "journald left out messages of " + s.Unit + " (rate limit)", true
		}
		return fmt.Sprintf("journald left out %d messages of %s (rate limit)", n, s.Unit), true
	}
	return "", false
}

// Rest returns what [Follow] of the same query would deliver, as far as it exists by now, and ends there. It first has
// journald write down what it has received. The error says why something may be missing: journald does not answer, or
// its files cannot be read; what could be read is returned all the same. Only root may have journald do that: for
// others it is no error, and the last quarter of a second may be missing.
func Rest(ctx context.Context, q Query) ([]Entry, error) {
	problem := flush(ctx, q)
	if errors.Is(problem, ErrNoAccess) {
		problem = nil
	}
	p, err := start(ctx, q.rest())
	if err != nil {
		return nil, errors.Join(problem, err)
	}
	var entries []Entry
	for e, err := range NewReader(p.out).Entries() {
		if err == io.ErrUnexpectedEOF || err != nil && ctx.Err() != nil {
			break // and how it ended says why
		}
		if err != nil {
			p.end()
			return entries, errors.Join(problem, fmt.Errorf("read from journalctl: %w", err))
		}
		if e.Cursor != "" && e.Cursor != q.AfterCursor {
			entries = append(entries, e)
		}
	}
	return entries, errors.Join(problem, p.wait())
}

// flush has journald write down what it has received.
func flush(ctx context.Context, q Query) error {
	p, err := start(ctx, q.argv("--sync"))
	if err != nil {
		return err
	}
	if err := p.wait(); err != nil {
		return fmt.Errorf("have journald write down what it has: %w", err)
	}
	return nil
}
