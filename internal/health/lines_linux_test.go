package health

import (
	"strings"
	"testing"
	"time"

	"github.com/zdt-dev/zdt/journal"
)

// What another unit wrote, or claims to have, is not delivered.
func TestJournal(t *testing.T) {
	entry := func(cursor string, fields ...string) string {
		return "__CURSOR=" + cursor + "\n__REALTIME_TIMESTAMP=1\n" + strings.Join(fields, "\n") + "\n\n"
	}
	out := entry("a", "_PID=7", "_SYSTEMD_UNIT=web.service", "MESSAGE=ready") +
		entry("b", "_PID=8", "_SYSTEMD_UNIT=other.service", "MESSAGE=ready") +
		entry("c", "_PID=9", "_SYSTEMD_UNIT=other.service", "UNIT=web.service", "MESSAGE=ready") +
		entry("d", "_SYSTEMD_UNIT=web.service", "MESSAGE=nobody's") +
		entry("e", "_PID=10", "_SYSTEMD_UNIT=web.service", "MESSAGE=last")
	q := journal.Query{Source: journal.Source{Unit: "web.service"}, Command: []string{"/bin/sh", "-c", `case "$*" in *--cursor=start*) printf %s "$0";; esac; exec tail -f /dev/null`, out}}
	lines := Journal(q)(t.Context(), "start")
	defer lines.Close()
	for _, want := range []Line{{7, "ready"}, {10, "last"}} {
		select {
		case got := <-lines.Entries:
			if got != want {
				t.Errorf("%v, want %v", got, want)
			}
		case <-time.After(patience):
			t.Fatal("nothing comes: ", lines.Problem())
		}
	}
	if err := lines.Problem(); err != nil {
		t.Error(err)
	}
	lines.Close()
	if line, ok := <-lines.Entries; ok {
		t.Error(line)
	}
}
