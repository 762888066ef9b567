package journal

import (
	"context"
	"errors"
	"log/slog"
	"os"
)

// Log tells events to journald, and in words to a logger: to a logger of the
// program's own always, to standard error only where there is no journald, as in
// most containers. It is safe for concurrent use.
type Log struct {
	service  string
	writer   *Writer
	logger   *slog.Logger
	fallback bool
	muted    bool
}

// NewLog returns a Log for a service, which owns w. w may be nil where there is no
// journald, and logger for standard error.
func NewLog(service string, w *Writer, logger *slog.Logger) *Log {
	l := &Log{service: service, writer: w, logger: logger}
	if logger == nil {
		l.logger, l.fallback = slog.New(slog.NewTextHandler(os.Stderr, nil)), true
	}
	return l
}

// Mute makes Write write no events from now on, because another process tells the same
// ones. A logger of the program's own still gets them in words. It is to be called
// before l is used.
func (l *Log) Mute() { l.muted = true }

// Logger is for what is no event.
func (l *Log) Logger() *slog.Logger { return l.logger }

// Write never fails: a full or absent journal must not decide about a handoff.
// What was lost is counted and told with the next event.
func (l *Log) Write(e Event) {
	e.Service = l.service
	err := ErrNoJournal
	if l.muted && l.fallback {
		return
	}
	if !l.muted {
		err = l.writer.Write(e)
	}
	if l.fallback && !errors.Is(err, ErrNoJournal) {
		return // journald has it; stderr would say it twice
	}
	attrs := []any{"event", string(e.Kind), "generation", e.Generation, "pid", e.PID}
	for _, f := range e.Fields {
		attrs = append(attrs, f.Name, f.Value)
	}
	level := slog.LevelInfo
	if e.Kind == Abort {
		level = slog.LevelWarn
	}
	l.logger.Log(context.Background(), level, e.Text(), attrs...)
}

// Lost returns how many events were lost so far.
func (l *Log) Lost() uint64 { return l.writer.Dropped() }

// Close releases the connection to journald.
func (l *Log) Close() { l.writer.Close() }
