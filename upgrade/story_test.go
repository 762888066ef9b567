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
		b := entryOf(1, "another", journal.Event{Kind: journal.Abort, PID: 7})
		for i, told := range events {
			b = append(b, entryOf(i+2, e.TxID, told)...)
		}
		if err := os.WriteFile(file, b, 0o644); err != nil {
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

// entryOf is an entry of the journal in journalctl's export format.
func entryOf(n int, txid string, e journal.Event) []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "__CURSOR=c%d\n__REALTIME_TIMESTAMP=1700000000000000\nZDT_TXID=%s\nZDT_EVENT=%s\nZDT_PID=%d\nMESSAGE=told by %s\n", n, txid, e.Kind, e.PID, e.Kind)
	for _, f := range e.Fields {
		fmt.Fprintf(&b, "%s=%s\n", f.Name, f.Value)
	}
	b.WriteByte('\n')
	return b.Bytes()
}

// tellMore is what transaction tx has told since.
func (w *world) tellMore(events ...journal.Event) {
	f, err := os.OpenFile(filepath.Join(w.dir, "journal"), os.O_WRONLY|os.O_APPEND, 0)
	if err == nil {
		for i, e := range events {
			_, err = f.Write(entryOf(100+i, "tx", e))
		}
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		w.t.Error(err)
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

// With several workers the first that has ended is not the last, and what is undone behind the commit goes on after its abort:
// the story goes on, and what they cut adds up.
func TestStoryOfWorkers(t *testing.T) {
	event := func(kind journal.Kind, pid int, fields ...journal.Field) journal.Event {
		return journal.Event{Kind: kind, PID: pid, Fields: fields}
	}
	cut := func(n int64) journal.Field { return journal.Int(journal.FieldConnsCut, n) }
	for _, tt := range []struct {
		name  string
		end   ending
		first []journal.Event // and after the last of these was read, the others are written
		then  []journal.Event
		how   string
	}{
		{"upgraded", ending{upgraded: true, committed: true},
			[]journal.Event{event(journal.Fork, 1), event(journal.Listen, 11), event(journal.Drain, 1), event(journal.Exit, 1, cut(2))},
			[]journal.Event{event(journal.Listen, 12), event(journal.Drain, 2), event(journal.Listen, 13), event(journal.Exit, 2, cut(3)), event(journal.Drain, 3), event(journal.Exit, 3)}, "complete"},
		{"one is never heard of", ending{upgraded: true, committed: true},
			[]journal.Event{event(journal.Fork, 1), event(journal.Listen, 11), event(journal.Drain, 1), event(journal.Exit, 1, cut(2))},
			[]journal.Event{event(journal.Listen, 12), event(journal.Drain, 2), event(journal.Exit, 2, cut(3))}, "partial"},
		{"undone behind the commit", ending{committed: true},
			[]journal.Event{event(journal.Fork, 1), event(journal.Listen, 11), event(journal.Drain, 1), event(journal.Exit, 1, cut(5)), event(journal.Abort, 1)},
			[]journal.Event{event(journal.Listen, 21), event(journal.Drain, 11), event(journal.Exit, 11), event(journal.UpgradeRollback, 99)}, "complete"},
		{"undone", ending{}, []journal.Event{event(journal.Fork, 1), event(journal.Exit, 11), event(journal.Abort, 1)}, nil, "complete"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			w := &world{t: t, dir: t.TempDir()}
			w.tellEvents(tt.first...)
			begin := w.host.Write
			begin(journal.Event{Kind: journal.UpgradeBegin, TxID: "tx"})
			decode, read := w.host.Decode, 0
			w.host.Decode = func(e journal.Entry, helper int) (journal.Event, bool) {
				if read++; read == len(tt.first)+1 { // and one of another transaction
					w.tellMore(tt.then...)
				}
				return decode(e, helper)
			}
			s := newStory(w.host, "c0", "tx", control.Status{Workers: &control.Workers{Want: 3}}, true)
			lines, how := s.finish(t.Context(), tt.end)
			want := 0
			for _, e := range append(tt.first, tt.then...) {
				if !e.Kind.Operator() {
					want++
				}
			}
			if how != tt.how || len(lines) != want {
				t.Errorf("%s, %d lines of %d: %+v", how, len(lines), want, lines)
			}
			r := &run{story: s, ev: &evidence{candidate: &process{pid: 11}}, Engine: Engine{Options: Options{Service: "web"}}}
			if r.settleProgram(); tt.name != "undone" && (r.report.Connections == nil || r.report.Connections.Cut != 5) {
				t.Errorf("connections %+v", r.report.Connections)
			}
		})
	}
}
