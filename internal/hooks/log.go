package hooks

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/zdt-dev/zdt/journal"
)

const (
	// linesLimit is how many lines of one hook go to the journal: more than that is no message to anybody.
	linesLimit = 1000
	// writeTimeout bounds the wait for a busy journald, stalledTimeout likewise once it has passed.
	writeTimeout   = 100 * time.Millisecond
	stalledTimeout = time.Millisecond
)

// Log writes what hooks say to the journal, with the transaction's ID and zdt-hook/NAME as identifier. The zero value, and
// nil, write nowhere. It may be used by several goroutines.
type Log struct {
	service, txid string

	mu      sync.Mutex
	conn    net.Conn // nil: there is no journal
	stalled bool
	lines   map[string]int // of each hook
	lost    int
}

// OpenLog connects to the journal's native socket, "" for that of the host. Where there is no journal, as in most
// containers, what is written goes nowhere. The caller closes it.
func OpenLog(socket, service, txid string) *Log {
	if socket == "" {
		socket = journal.DefaultSocket
	}
	l := &Log{service: journal.Printable(service), txid: journal.Printable(txid), lines: map[string]int{}}
	if conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: socket, Net: "unixgram"}); err == nil {
		l.conn = conn
	}
	return l
}

// Line writes one line of a hook. It does not block for longer than 100 ms, nor again when it once had to.
func (l *Log) Line(h Hook, text string) {
	if l == nil || l.conn == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	n := l.lines[h.Path] + 1
	l.lines[h.Path] = n
	switch {
	case n > linesLimit+1:
		return
	case n == linesLimit+1:
		text = fmt.Sprintf("what it writes from here on, after %d lines, is not in the journal", linesLimit)
	}
	if text != "" { // journald drops an empty one anyhow
		l.write(h, text)
	}
}

// write sends one datagram of the native protocol; no value has a newline in it.
func (l *Log) write(h Hook, text string) {
	var b strings.Builder
	for _, f := range [][2]string{
		{"MESSAGE", text}, {"PRIORITY", "6"}, {"SYSLOG_IDENTIFIER", "zdt-hook/" + h.Name()},
		{journal.FieldService, l.service}, {journal.FieldTxID, l.txid}, {"ZDT_HOOK_POINT", string(h.Point)}, {"ZDT_HOOK", h.Path},
	} {
		if f[1] != "" {
			fmt.Fprintf(&b, "%s=%s\n", f[0], journal.Printable(f[1]))
		}
	}
	patience := writeTimeout
	if l.stalled {
		patience = stalledTimeout
	}
	l.conn.SetWriteDeadline(time.Now().Add(patience))
	if _, err := l.conn.Write([]byte(b.String())); err != nil {
		l.lost++
		l.stalled = l.stalled || errors.Is(err, os.ErrDeadlineExceeded)
		return
	}
	l.stalled = false
}

// Close ends it and returns how many lines the journal did not take.
func (l *Log) Close() (lost int) {
	if l == nil || l.conn == nil {
		return 0
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.conn.Close()
	return l.lost
}
