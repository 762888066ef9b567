package journal

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// maxLine bounds one line that Tail returns, in bytes.
const maxLine = 512

// syncTimeout bounds the wait for journald to write down what it has
// received. Without journald there is nothing to wait for.
const syncTimeout = 500 * time.Millisecond

// Line is one line of a log.
type Line struct {
	Time     time.Time // when journald received it
	Priority Priority  // 0 if it has none
	PID      int       // who wrote it
	Text     string    // went through Printable, at most 512 bytes before
}

// Tail returns the last q.Lines lines (10 if 0, 1000 at most) of the process
// q.PID of q.Unit, or with PID 0 of the whole unit, oldest first. Pids come
// again: give q.Since or q.AfterCursor, from before the process was started.
//
// It first has journald write down what it has received, which only root may
// ask for and which is bounded in time: a process that has just died may have
// its last words still on the way.
func Tail(ctx context.Context, q Query) ([]Line, error) {
	settle(ctx, q)
	p, err := start(ctx, q.tail())
	if err != nil {
		return nil, err
	}
	lines := make([]Line, 0, q.lines())
	for e, err := range NewReader(p.out).Entries() {
		if err != nil {
			if ended := p.end(); ended != nil {
				return lines, ended
			}
			return lines, fmt.Errorf("read from journalctl: %w", err)
		}
		if e.Cursor == q.AfterCursor || !q.mayBelong(e) {
			continue
		}
		lines = append(lines, linesOf(e)...)
		if n := len(lines) - q.lines(); n > 0 {
			lines = append(lines[:0], lines[n:]...)
		}
	}
	return lines, p.wait()
}

// mayBelong is fromUnit, except that an entry of q.PID may lack the unit.
func (q Query) mayBelong(e Entry) bool {
	if fromUnit(e, q.Source) {
		return true
	}
	if q.PID == 0 || !is(e, "_PID", strconv.Itoa(q.PID)) {
		return false
	}
	return len(e.All("_SYSTEMD_UNIT")) == 0 && (!q.User || is(e, "_UID", strconv.Itoa(q.UID)))
}

func linesOf(e Entry) []Line {
	var lines []Line
	pri, _ := strconv.Atoi(e.Get("PRIORITY"))
	pid, _ := strconv.Atoi(e.Get("_PID"))
	for text := range strings.SplitSeq(strings.TrimRight(e.Get("MESSAGE"), "\n"), "\n") {
		text = strings.TrimSuffix(text, "\r")
		if cut := cutText(text, maxLine); cut != text {
			text = cut + "..."
		}
		lines = append(lines, Line{Time: e.Realtime, Priority: Priority(pri), PID: pid, Text: Printable(text)})
	}
	return lines
}

// settle is best effort: what it could not do shows as a line less.
func settle(ctx context.Context, q Query) {
	ctx, cancel := context.WithTimeout(ctx, syncTimeout)
	defer cancel()
	_ = flush(ctx, q)
}
