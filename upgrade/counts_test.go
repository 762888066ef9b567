package upgrade

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"net/http"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/zdt-dev/zdt/handoff/control"
	"github.com/zdt-dev/zdt/journal"
)

// keptAlive opens n connections and leaves each idle after one request.
func (w *world) keptAlive(n int) {
	w.t.Helper()
	addr := strings.TrimPrefix(w.url(""), "http://")
	for range n {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			w.t.Fatal(err)
		}
		w.t.Cleanup(func() { c.Close() })
		fmt.Fprint(c, "GET /version HTTP/1.1\r\nHost: web\r\n\r\n")
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil || resp.StatusCode != http.StatusOK {
			w.t.Fatalf("first request: %v", err)
		}
	}
	until(w.t, "they are idle", func() bool { return w.status().Connections.Idle == n })
}

// The verdict has the numbers whether the journal tells them or not.
func TestConnectionsAreCounted(t *testing.T) {
	w := newWorld(t, "ZDT_DRAIN_TIMEOUT=300ms")
	w.keptAlive(3)
	w.block()
	rep := w.upgrade(program(t, "good", "v2"))
	w.want(rep, Upgraded, "", "")
	if c := rep.Connections; c == nil || *c != (control.Counts{Moved: 3, Cut: 1}) {
		t.Errorf("connections %+v", c)
	}
	if told := w.told(Drain, Done); told != "3 connections moved, 1 cut" {
		t.Errorf("the drain ends with %q", told)
	}
	if c := w.wantHistory(Upgraded)[0].Conns; c == nil || c.Moved != 3 || c.Cut != 1 {
		t.Errorf("history tells of %+v", c)
	}
}

// told is the text of a phase in a state.
func (w *world) told(p Phase, s State) string {
	text := ""
	for _, u := range w.observed {
		if u.Phase == p && u.State == s {
			text = u.Text
		}
	}
	return text
}

// Without the incumbent's last status its exit event has the numbers.
func TestCountsFromTheJournal(t *testing.T) {
	for _, tt := range []struct {
		name    string
		fields  []journal.Field
		other   bool // the event is about another process
		want    *control.Counts
		warning string
	}{
		{"all of them", []journal.Field{
			journal.Int(journal.FieldConnsMoved, 312), journal.Int(journal.FieldConnsDrained, 6), journal.Int(journal.FieldConnsClosed, 2),
			journal.Int(journal.FieldConnsCut, 7), journal.Int(journal.FieldTasksLeft, 1), journal.Str(journal.FieldExitCode, "exited"),
		}, false, &control.Counts{Moved: 312, Drained: 4, Closed: 2, Cut: 7, TasksLeft: 1}, "7 connections were cut"},
		{"of a release before there was ZDT_CONNS_CLOSED", []journal.Field{
			journal.Int(journal.FieldConnsMoved, 312), journal.Int(journal.FieldConnsDrained, 6), journal.Int(journal.FieldConnsCut, 0),
		}, false, &control.Counts{Moved: 312, Drained: 6}, ""},
		{"nonsense", []journal.Field{
			journal.Int(journal.FieldConnsMoved, -3), journal.Int(journal.FieldConnsDrained, 1), journal.Int(journal.FieldConnsClosed, 5),
			journal.Str(journal.FieldConnsCut, "many"),
		}, false, &control.Counts{Closed: 5}, ""},
		{"told by the successor", []journal.Field{
			journal.Int(journal.FieldConnsMoved, 2), journal.Int(journal.FieldConnsCut, 1), journal.Str(journal.FieldExitCode, "unknown"),
		}, false, &control.Counts{Moved: 2, Cut: 1}, "without its last word: the connections that it still had are lost (last known: 2 connections moved, 1 cut)"},
		{"of another process", []journal.Field{journal.Int(journal.FieldConnsCut, 7)}, true, nil, "what became of its last connections is not known"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t)
			exit := journal.Event{Kind: journal.Exit, PID: w.systemd.mainPID(), Fields: tt.fields}
			if tt.other {
				exit.PID++
			}
			w.tellEvents(exit)
			p := newProxy(w)
			p.answer = func(op string, r *control.Response) bool { // the control connection breaks at the commit
				return op != control.OpWatch || r.Status.Phase != control.Draining && r.Status.Phase != control.Exited
			}
			rep := w.upgrade(program(t, "good", "v2"))
			w.want(rep, Upgraded, "", "")
			if c := rep.Connections; tt.want != nil && (c == nil || *c != *tt.want) || tt.want == nil && c != nil {
				t.Errorf("connections %+v, want %+v", rep.Connections, tt.want)
			}
			if tt.warning == "" && len(rep.Warnings) > 0 {
				t.Errorf("warnings %q", rep.Warnings)
			}
			wantText(t, "warnings", strings.Join(rep.Warnings, "\n"), tt.warning)
		})
	}
}

// Who moved to a process that dies is lost with it. That is part of the
// verdict, whoever tells it.
func TestMovedAndLost(t *testing.T) {
	for _, source := range []string{"control", "journal"} {
		t.Run(source, func(t *testing.T) {
			w := newWorld(t)
			w.keptAlive(3)
			end := w.block()
			if source == "journal" {
				w.tellEvents(journal.Event{Kind: journal.Abort, PID: w.systemd.mainPID(), Fields: []journal.Field{journal.Int(journal.FieldConnsLost, 3)}})
				w.host.Tail = func(context.Context, int, string, int) ([]string, error) { return nil, nil }
				p := newProxy(w)
				p.answer = func(_ string, r *control.Response) bool {
					if l := r.Status.Last; l != nil {
						l.Lost = 0 // a runtime that does not know the field
					}
					return true
				}
			}
			w.at(Drain, func() {
				until(t, "three have moved", func() bool {
					p := w.status().Predecessor
					return p != nil && p.Connections.Moved == 3
				})
				unix.Kill(w.systemd.mainPID(), unix.SIGKILL)
			})
			rep := w.upgrade(program(t, "good", "v2"))
			w.want(rep, RolledBack, Drain, "crashed")
			if rep.Lost != 3 || rep.Connections != nil {
				t.Errorf("lost %d, connections %+v", rep.Lost, rep.Connections)
			}
			wantText(t, "cause", rep.Cause, "the 3 connections that had moved to it are lost")
			wantText(t, "warnings", strings.Join(rep.Warnings, "\n"), "3 connections had moved to the new process and ended with it")
			end()
			w.wantOld()
		})
	}
}
