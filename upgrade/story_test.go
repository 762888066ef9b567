package upgrade

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/zdt-dev/zdt/handoff/control"
	"github.com/zdt-dev/zdt/journal"
)

// tell makes a journalctl that delivers events of these kinds for whatever
// transaction begins, as the runtime would have written them.
func (w *world) tell(kinds ...journal.Kind) {
	w.t.Helper()
	events := make([]journal.Event, len(kinds))
	for i, kind := range kinds {
		events[i] = journal.Event{Kind: kind, PID: 7}
	}
	w.tellEvents(events...)
}

// tellEvents is tell for events with fields.
func (w *world) tellEvents(events ...journal.Event) {
	w.t.Helper()
	file, script := filepath.Join(w.dir, "journal"), filepath.Join(w.dir, "journalctl")
	if err := os.WriteFile(script, []byte("#!/bin/sh\nexec tail -n +1 -f "+file+"\n"), 0o755); err != nil {
		w.t.Fatal(err)
	}
	w.host.Cursor = func(context.Context) (string, error) { return "c0", nil }
	w.host.Write = func(e journal.Event) {
		if e.Kind != journal.UpgradeBegin {
			return
		}
		var b bytes.Buffer
		entry := func(n int, txid string, e journal.Event) {
			fmt.Fprintf(&b, "__CURSOR=c%d\n__REALTIME_TIMESTAMP=1700000000000000\nZDT_TXID=%s\nZDT_EVENT=%s\nZDT_PID=%d\nMESSAGE=told by %s\n", n, txid, e.Kind, e.PID, e.Kind)
			for _, f := range e.Fields {
				fmt.Fprintf(&b, "%s=%s\n", f.Name, f.Value)
			}
			b.WriteByte('\n')
		}
		entry(1, "another", journal.Event{Kind: journal.Abort, PID: 7})
		for i, told := range events {
			entry(i+2, e.TxID, told)
		}
		if err := os.WriteFile(file, b.Bytes(), 0o644); err != nil {
			w.t.Error(err)
		}
	}
	w.host.Follow = func(ctx context.Context, cursor string) *journal.Follower {
		return journal.Follow(ctx, journal.Query{AfterCursor: cursor, Command: []string{script}})
	}
	w.host.Decode = func(e journal.Entry, _ int) (journal.Event, bool) {
		pid, _ := strconv.Atoi(e.Get("ZDT_PID"))
		ev := journal.Event{Kind: journal.Kind(e.Get("ZDT_EVENT")), TxID: e.Get("ZDT_TXID"), PID: pid, Message: e.Get("MESSAGE")}
		for _, name := range ev.Kind.Fields() {
			if v := e.Get(name); v != "" {
				ev.Fields = append(ev.Fields, journal.Str(name, v))
			}
		}
		return ev, true
	}
}

func TestStory(t *testing.T) {
	for _, tt := range []struct {
		name   string
		role   string
		events []journal.Kind
		how    string
	}{
		{"all of an upgrade", "good", []journal.Kind{journal.Fork, journal.Listen, journal.Drain, journal.Exit}, "complete"},
		{"rate limited", "good", []journal.Kind{journal.Fork, journal.Exit}, "partial"},
		{"an abort is not the end of an upgrade", "good", []journal.Kind{journal.Fork, journal.Abort}, "partial"},
		{"nothing", "good", nil, "absent"},
		{"all of a failure", "crash", []journal.Kind{journal.Fork, journal.Abort}, "complete"},
		{"a failure without its end", "crash", []journal.Kind{journal.Fork}, "partial"},
		{"a success is told of a failure", "crash", []journal.Kind{journal.Fork, journal.Listen, journal.Drain, journal.Exit}, "partial"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t)
			w.tell(tt.events...)
			w.host.Tail = func(_ context.Context, pid int, since string, _ int) ([]string, error) {
				if since != "c0" {
					t.Errorf("the log is read from cursor %q", since)
				}
				return slicesOf(pid, logLines+3), nil
			}
			rep := w.upgrade(program(t, tt.role, "v2"))
			if tt.role == "good" { // whatever the journal says
				w.want(rep, Upgraded, "", "")
			} else {
				w.want(rep, RolledBack, Listen, "crashed")
				if len(rep.CandidateLog) != logLines || rep.LogCut != 3 || rep.CandidateLog[logLines-1] != fmt.Sprintf("line %d of %d", logLines+3, rep.Candidate) {
					t.Errorf("log (%d cut) %q", rep.LogCut, rep.CandidateLog)
				}
			}
			if rep.Journal != tt.how || len(rep.Story) != len(tt.events) {
				t.Errorf("journal %s, story %+v; want %s", rep.Journal, rep.Story, tt.how)
			}
			if len(rep.Warnings) != 0 {
				t.Errorf("warnings %q", rep.Warnings)
			}
		})
	}
}

func slicesOf(pid, n int) (lines []string) {
	for i := range n {
		lines = append(lines, fmt.Sprintf("line %d of %d", i+1, pid))
	}
	return lines
}

// Without a cursor the last lines of a pid may be another process's.
func TestNoLogWithoutACursor(t *testing.T) {
	w := newWorld(t)
	w.host.Tail = func(context.Context, int, string, int) ([]string, error) {
		t.Error("the log was read")
		return nil, nil
	}
	rep := w.upgrade(program(t, "crash", "v2"))
	w.want(rep, RolledBack, Listen, "crashed")
	wantText(t, "warnings", strings.Join(rep.Warnings, "\n"), "the journal cannot be read: no journal here")
}

func TestLogCannotBeRead(t *testing.T) {
	w := newWorld(t)
	w.tell(journal.Fork, journal.Abort)
	w.host.Tail = func(context.Context, int, string, int) ([]string, error) { return nil, errors.New("no permission") }
	rep := w.upgrade(program(t, "crash", "v2"))
	w.want(rep, RolledBack, Listen, "crashed")
	wantText(t, "warnings", strings.Join(rep.Warnings, "\n"), "read the candidate's log: no permission")
}

func TestTellRefused(t *testing.T) {
	r := &run{}
	r.tellRefused(nil)
	r.tellRefused(&control.Moves{Taken: 7, Verified: 7})
	if n := len(r.report.Warnings); n > 0 {
		t.Errorf("%d warnings about moves as they should be: %q", n, r.report.Warnings)
	}
	r.tellRefused(&control.Moves{Taken: 7, Refused: 3, Differing: 1, LastDifference: "10.0.0.1:5: 3 bytes vanished"})
	if got := strings.Join(r.report.Warnings, "\n"); !strings.Contains(got, "could not take 3 connections") || !strings.Contains(got, "3 bytes vanished") {
		t.Errorf("warnings %q", got)
	}
}
