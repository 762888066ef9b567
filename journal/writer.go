package journal

import (
	"errors"
	"fmt"
	"net"
	"os"
	"sync/atomic"
	"time"
)

// DefaultSocket is journald's native socket of the host, or of the container
// if that has one. A service in a LogNamespace= sees its namespace's here.
const DefaultSocket = "/run/systemd/journal/socket"

// writeTimeout bounds Write. Long enough for a busy journald to make room,
// short enough not to be felt in a handoff.
const writeTimeout = 100 * time.Millisecond

// stalledTimeout bounds Write after a timeout, until an event goes through
// again: a hundred events to a stopped journald must not cost ten seconds.
const stalledTimeout = time.Millisecond

var (
	// ErrNoJournal: there is no journald to write to, as in most containers.
	// The event was not written; the caller may say it elsewhere, usually on
	// standard error.
	ErrNoJournal = errors.New("no journal")
	// ErrDropped: journald did not take the event in time. It is counted,
	// and the count is told with the next event that goes through.
	ErrDropped = errors.New("event dropped: journald does not take it")
	// ErrClosed: the Writer was closed.
	ErrClosed = errors.New("journal writer is closed")
)

// Writer writes events to journald. It is safe for concurrent use, has at
// most one descriptor (close-on-exec, owned by the Writer) and no goroutine.
// A nil Writer answers ErrNoJournal.
type Writer struct {
	path    string
	dropped atomic.Uint64

	// turn holds one token; whoever has it owns the members below. It is a
	// channel and not a mutex because waiting for it must end in time.
	turn    chan struct{}
	conn    *net.UnixConn
	stalled bool
	told    uint64 // how much of dropped was reported
	closed  bool
}

// NewWriter returns a Writer for the socket at path, "" for DefaultSocket. It
// connects with the first event.
func NewWriter(path string) *Writer {
	if path == "" {
		path = DefaultSocket
	}
	return &Writer{path: path, turn: make(chan struct{}, 1)}
}

// Dropped returns how many events were lost so far: those for which Write
// returned an error, except ErrNoJournal, which leaves the event with the
// caller.
func (w *Writer) Dropped() uint64 {
	if w == nil {
		return 0
	}
	return w.dropped.Load()
}

// Write writes e. It returns within about 100 ms whatever state journald is
// in: systemd keeps the socket open while journald is stopped, its queue then
// fills up, and a send without a deadline would block the service. The error
// is or wraps ErrNoJournal, ErrDropped or ErrClosed, or tells what is wrong
// with e.
func (w *Writer) Write(e Event) error {
	if w == nil {
		return ErrNoJournal
	}
	if _, err := e.encode(0); err != nil {
		w.dropped.Add(1)
		return err
	}
	start := time.Now()
	select {
	case w.turn <- struct{}{}:
	default:
		timer := time.NewTimer(writeTimeout)
		defer timer.Stop()
		select {
		case w.turn <- struct{}{}:
		case <-timer.C:
			w.dropped.Add(1)
			return ErrDropped
		}
	}
	defer func() { <-w.turn }()
	if w.closed {
		w.dropped.Add(1)
		return ErrClosed
	}
	err := w.send(e, start)
	if err != nil && !errors.Is(err, ErrNoJournal) {
		w.dropped.Add(1)
	}
	return err
}

// send runs with the turn.
func (w *Writer) send(e Event, start time.Time) error {
	lost := w.dropped.Load()
	data, err := e.encode(lost - w.told)
	if err != nil {
		return err
	}
	deadline := start.Add(writeTimeout)
	if w.stalled {
		deadline = time.Now().Add(stalledTimeout)
	}
	// Two rounds: a connected datagram socket stays tied to the socket it
	// was connected to, and a restart of systemd-journald.socket makes a new
	// one (ECONNREFUSED). A mere restart of journald keeps the socket.
	for round := 0; ; round++ {
		fresh := w.conn == nil
		if fresh {
			if err := w.dial(); err != nil {
				return err
			}
		}
		if err = w.conn.SetWriteDeadline(deadline); err == nil {
			_, err = w.conn.Write(data)
		}
		if err == nil {
			w.stalled = false
			w.told = lost
			return nil
		}
		if errors.Is(err, os.ErrDeadlineExceeded) {
			w.stalled = true
			return ErrDropped
		}
		w.hangUp()
		if fresh || round > 0 {
			return fmt.Errorf("%w: %w", ErrDropped, err)
		}
	}
}

// dial connects. Connecting a datagram socket does not wait.
func (w *Writer) dial() error {
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: w.path, Net: "unixgram"})
	if err != nil {
		return fmt.Errorf("%w: %w", ErrNoJournal, err)
	}
	w.conn = conn
	return nil
}

func (w *Writer) hangUp() {
	if w.conn != nil {
		_ = w.conn.Close() // nothing is buffered on a datagram socket
		w.conn = nil
	}
}

// Close releases the descriptor. Later events are answered with ErrClosed.
func (w *Writer) Close() error {
	if w == nil {
		return nil
	}
	w.turn <- struct{}{} // writers hold it for writeTimeout at most
	defer func() { <-w.turn }()
	w.closed = true
	w.hangUp()
	return nil
}
