package journal

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"
)

// Excerpt is a part of the journal of which the middle may be missing.
type Excerpt struct {
	Head, Tail []Entry
	Left       int  // entries between Head and Tail that were read over
	More       bool // there were more than anybody reads; what came last is not among Tail
}

// Bounds of an excerpt: a service may log as much as it likes.
const (
	mostRead  = 100_000 // entries that it is looked for in
	mostValue = 8 << 10 // bytes of a field
)

// Between returns the entries of a unit and about it, as [Rest] does, that journald received between two moments: the
// first head and the last tail of them. With no moments it is the last ones there are.
func Between(ctx context.Context, q Query, from, to time.Time, head, tail int) (x Excerpt, err error) {
	settle(ctx, q)
	argv := q.argv("--lines=" + strconv.Itoa(head+tail))
	if !from.IsZero() {
		argv = q.argv("--since="+stamp(from), "--until="+stamp(to))
	}
	p, err := start(ctx, append(argv, q.matches()...))
	if err != nil {
		return x, err
	}
	n := 0
	for e, err := range NewReader(p.out).Entries() {
		if err != nil {
			ended := p.end()
			if errors.Is(err, io.ErrUnexpectedEOF) && ended != nil {
				return x, ended
			}
			return x, fmt.Errorf("read from journalctl: %w", err)
		}
		if n++; n > mostRead {
			x.More = true
			p.end()
			return x, nil
		}
		e.shorten(mostValue)
		if len(x.Head) < head {
			x.Head = append(x.Head, e)
			continue
		}
		x.Tail = append(x.Tail, e)
		if len(x.Tail) >= 2*tail+1 {
			x.Left += len(x.Tail) - tail
			x.Tail = append(x.Tail[:0:0], x.Tail[len(x.Tail)-tail:]...)
		}
	}
	if n := len(x.Tail) - tail; n > 0 {
		x.Left += n
		x.Tail = x.Tail[n:]
	}
	return x, p.wait()
}

// stamp is a moment as journalctl reads it.
func stamp(t time.Time) string {
	us := t.UnixMicro()
	return fmt.Sprintf("@%d.%06d", us/1e6, us%1e6)
}

// shorten cuts long values, and lets go of the memory of what is cut.
func (e *Entry) shorten(most int) {
	for i, f := range e.Fields {
		if len(f.Value) > most {
			e.Fields[i].Value, e.Cut = strings.Clone(cutText(f.Value, most)), true
		}
	}
}
