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
	out := entry("a", "_PID=7", "_SYSTEMD_UNIT=web.service", "PRIORITY=3", "MESSAGE=ready") +
		entry("b", "_PID=8", "_SYSTEMD_UNIT=other.service", "MESSAGE=ready") +
		entry("c", "_PID=9", "_SYSTEMD_UNIT=other.service", "UNIT=web.service", "MESSAGE=ready") +
		entry("d", "_SYSTEMD_UNIT=web.service", "MESSAGE=nobody's") +
		entry("e", "_PID=10", "_SYSTEMD_UNIT=web.service", "MESSAGE=last", "__MONOTONIC_TIMESTAMP=5") +
		entry("f", "_TRANSPORT=driver", "_PID=1", "MESSAGE_ID=a596d6fe7bfa4994828e72309e95d61e", "OBJECT_SYSTEMD_UNIT=other.service", "N_DROPPED=12") +
		entry("g", "_TRANSPORT=journal", "_PID=9", "_SYSTEMD_UNIT=other.service", "MESSAGE_ID=a596d6fe7bfa4994828e72309e95d61e", "OBJECT_SYSTEMD_UNIT=web.service", "N_DROPPED=99") +
		entry("h", "_TRANSPORT=driver", "_PID=1", "MESSAGE_ID=a596d6fe7bfa4994828e72309e95d61e", "OBJECT_SYSTEMD_UNIT=web.service", "N_DROPPED=12")
	q := journal.Query{Source: journal.Source{Unit: "web.service"}, Command: []string{"/bin/sh", "-c", `case "$*" in
	*--sync*) exit 0;; *--follow*) printf %s "$0"; exec tail -f /dev/null;; *--cursor=h*) printf %s "$1";; esac`, out,
		entry("h", "_TRANSPORT=driver", "_PID=1", "MESSAGE_ID=a596d6fe7bfa4994828e72309e95d61e", "OBJECT_SYSTEMD_UNIT=web.service") +
			entry("i", "_PID=7", "_SYSTEMD_UNIT=web.service", "MESSAGE=more")}}
	lines := Journal(q)(t.Context(), "start")
	defer lines.Close()
	for _, want := range []Line{{PID: 7, Text: "ready", Priority: journal.PriErr}, {PID: 10, Text: "last", Priority: journal.PriNotice, At: 5 * time.Microsecond}, {Loss: "journald left out 12 messages of web.service (rate limit)"}} {
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
	// What comes then is the rest, once.
	rest, err := lines.Rest(t.Context())
	if err != nil || len(rest) != 1 || rest[0].Text != "more" {
		t.Errorf("the rest: %v, %v", rest, err)
	}
	if line, ok := <-lines.Entries; ok {
		t.Error(line)
	}
}
