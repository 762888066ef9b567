package handoff

import (
	"fmt"
	"time"

	"github.com/zdt-dev/zdt/handoff/control"
	"github.com/zdt-dev/zdt/journal"
)

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
