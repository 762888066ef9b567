package handoff

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"time"

	"github.com/zdt-dev/zdt/handoff/control"
	"github.com/zdt-dev/zdt/journal"
)

// eventLog tells the story of the handoff: to journald as events, to the
// program's logger as lines.
type eventLog struct {
	service  string
	writer   *journal.Writer
	logger   *slog.Logger
	fallback bool
}

func newEventLog(o Options) *eventLog {
	e := &eventLog{service: o.Service, writer: journal.NewWriter(journal.DefaultSocket), logger: o.Logger}
	if e.logger == nil {
		e.logger, e.fallback = slog.New(slog.NewTextHandler(os.Stderr, nil)), true
	}
	return e
}

// write never fails: a full or absent journal must not decide about a handoff.
// What was lost is counted and told with the next event.
func (e *eventLog) write(ev journal.Event) {
	ev.Service = e.service
	err := e.writer.Write(ev)
	if e.fallback && !errors.Is(err, journal.ErrNoJournal) {
		return // journald has it; stderr would say it twice
	}
	attrs := []any{"event", string(ev.Kind), "generation", ev.Generation, "pid", ev.PID}
	for _, f := range ev.Fields {
		attrs = append(attrs, f.Name, f.Value)
	}
	level := slog.LevelInfo
	if ev.Kind == journal.Abort {
		level = slog.LevelWarn
	}
	e.logger.Log(context.Background(), level, ev.Text(), attrs...)
}

func (e *eventLog) lost() uint64 { return e.writer.Dropped() }

func (e *eventLog) close() { e.writer.Close() }

// drainFields are the counts of a drain event.
func drainFields(c control.Counts) []journal.Field {
	return []journal.Field{
		journal.Int(journal.FieldConnsIdle, int64(c.Idle)), journal.Int(journal.FieldConnsActive, int64(c.Active+c.Streams)),
		journal.Int(journal.FieldConnsStreams, int64(c.Streams)), journal.Str(journal.FieldStatus, c.Progress()),
	}
}

// endFields are the counts of an exit event.
func endFields(c control.Counts) []journal.Field {
	return []journal.Field{
		journal.Int(journal.FieldConnsMoved, int64(c.Moved)), journal.Int(journal.FieldConnsDrained, int64(c.Drained+c.Closed)),
		journal.Int(journal.FieldConnsCut, int64(c.Cut)), journal.Int(journal.FieldConnsClosed, int64(c.Closed)),
		journal.Int(journal.FieldTasksLeft, int64(c.TasksLeft)),
	}
}

// inWords is a duration for people.
func inWords(d time.Duration) string {
	if d < time.Second {
		return fmt.Sprintf("%d ms", d.Milliseconds())
	}
	return fmt.Sprintf("%.1f s", d.Seconds())
}

// exitFields are EXIT_CODE and EXIT_STATUS.
func exitFields(x *control.Exit) []journal.Field {
	if x == nil {
		return nil
	}
	return []journal.Field{journal.Str(journal.FieldExitCode, x.Code), journal.Str(journal.FieldExitStatus, x.Status)}
}
