package journal

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
)

// Query says what to read of the journal.
type Query struct {
	Source

	// AfterCursor: only entries after this one. "" means from the first
	// entry on, as [Cursor] returns it for an empty journal.
	AfterCursor string
	// EventsOnly leaves out what the service itself logs and what systemd
	// says about it; a talkative service costs then nothing.
	EventsOnly bool
	// Command runs journalctl; nil means {"journalctl"}. Options are added
	// to it.
	Command []string

	// PID, Since and Lines are for [Tail].
	PID   int
	Since time.Time
	Lines int
}

// ErrNoAccess: journalctl may not read the journal. The user has to be in the
// group systemd-journal; root always may.
var ErrNoAccess = errors.New("no permission to read the journal")

// options are the same for each use: the export format is the only one that
// is lossless and the only one without limits on a field's size.
func (q Query) argv(more ...string) []string {
	argv := q.Command
	if len(argv) == 0 {
		argv = []string{"journalctl"}
	}
	argv = append(argv[:len(argv):len(argv)], "--no-pager", "--quiet", "--output=export")
	return append(argv, more...)
}

// follow returns the command line that follows from cursor on.
//
// It is --cursor= and not --after-cursor=, and the entry itself is dropped by
// the reader: journalctl 252 takes the entry it finds at the cursor for the
// one to leave out, and with a match the first entry found is already the
// next one. That one, say the fork event, would be lost.
//
// --no-tail, because --follow alone would begin with the last ten lines.
func (q Query) follow(cursor string) []string {
	argv := q.argv("--follow", "--no-tail")
	if cursor != "" {
		argv = append(argv, "--cursor="+cursor)
	}
	return append(argv, q.matches()...)
}

// matches selects for speed; what counts is decided by Trusted.
func (q Query) matches() []string {
	uid := q.operatorUID()
	var m []string
	if q.User {
		m = append(m, "_SYSTEMD_USER_UNIT="+q.Unit, "_UID="+uid)
	} else {
		m = append(m, "_SYSTEMD_UNIT="+q.Unit)
	}
	if q.EventsOnly {
		m = append(m, "SYSLOG_IDENTIFIER=zdt")
	}
	m = append(m, "+", "SYSLOG_IDENTIFIER=zdt", FieldService+"="+q.Service(), "_UID="+uid)
	if q.EventsOnly {
		return m
	}
	if q.User {
		m = append(m, "+", "_SYSTEMD_USER_UNIT=init.scope", "USER_UNIT="+q.Unit, "_UID="+uid)
	} else {
		m = append(m, "+", "_PID=1", "UNIT="+q.Unit)
	}
	return append(m, q.lossMatches()...)
}

// rest returns the command line that lists what follow would deliver.
func (q Query) rest() []string {
	var more []string
	if q.AfterCursor != "" {
		more = []string{"--cursor=" + q.AfterCursor}
	}
	return append(q.argv(more...), q.matches()...)
}

// tail returns the command line that lists what Tail looks through. Without a
// lower bound journalctl picks the last lines itself. With one it would pick
// the first, so that Tail has to.
func (q Query) tail() []string {
	argv := q.argv()
	if q.AfterCursor != "" {
		argv = append(argv, "--cursor="+q.AfterCursor)
	} else if !q.Since.IsZero() {
		us := q.Since.UnixMicro()
		argv = append(argv, fmt.Sprintf("--since=@%d.%06d", us/1e6, us%1e6))
	} else {
		argv = append(argv, "--lines="+strconv.Itoa(q.lines()))
	}
	if q.PID != 0 {
		// Not the unit: of a process that is gone journald may not know it.
		return append(argv, "_PID="+strconv.Itoa(q.PID))
	}
	if q.User {
		return append(argv, "_SYSTEMD_USER_UNIT="+q.Unit, "_UID="+q.operatorUID())
	}
	return append(argv, "_SYSTEMD_UNIT="+q.Unit)
}

func (q Query) lines() int {
	if q.Lines <= 0 {
		return 10
	}
	return min(q.Lines, 1000)
}

// environ is what journalctl gets of our environment. NOTIFY_SOCKET above all
// must not be in it: journalctl 258 and later says READY=1 there.
func environ() []string {
	var env []string
	for _, name := range []string{"PATH", "HOME", "XDG_RUNTIME_DIR"} {
		if v, ok := os.LookupEnv(name); ok {
			env = append(env, name+"="+v)
		}
	}
	return append(env, "LC_ALL=C.UTF-8", "SYSTEMD_COLORS=0")
}

// explain makes an error of how journalctl ended and what it said.
func explain(err error, stderr string) error {
	said := strings.TrimSpace(stderr)
	if strings.Contains(said, "insufficient permissions") || strings.Contains(said, "Permission denied") {
		err = ErrNoAccess
	}
	if line, _, _ := strings.Cut(said, "\n"); line != "" {
		return fmt.Errorf("run journalctl: %w (%s)", err, Printable(cutText(line, 200)))
	}
	return fmt.Errorf("run journalctl: %w", err)
}
