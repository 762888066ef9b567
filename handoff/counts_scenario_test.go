package handoff

import (
	"fmt"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"github.com/zdt-dev/zdt/handoff/control"
)

// What an operator sees of the connections of a handoff.

// hold begins a request that ends when finish is called, which returns its answer.
func (h *httpConn) hold() (finish func() (string, error)) {
	fmt.Fprint(h, "POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 4\r\n\r\nou")
	return func() (string, error) {
		fmt.Fprint(h, "ch")
		body, _, err := h.answer()
		return body, err
	}
}

// event returns the line of the last event of a kind.
func (s *stage) event(kind string) string {
	s.t.Helper()
	var line string
	eventually(s.t, "there is an event "+kind, func() bool {
		for l := range strings.SplitSeq(readFile(s.stderr.Name()), "\n") {
			if strings.Contains(l, "event="+kind+" ") {
				line = l
			}
		}
		return line != ""
	})
	return line
}

func wantMatch(t *testing.T, what, got, want string) {
	t.Helper()
	if !regexp.MustCompile(want).MatchString(got) {
		t.Errorf("%s: %q, want %s", what, got, want)
	}
}

// The counts of a drain are in the events and the statuses, and in the text that
// systemctl status shows, which after the commit can only come from the successor.
func TestCountsOfADrain(t *testing.T) {
	t.Parallel()
	s := stand(t, serviceConfig{DrainTimeout: patience, StreamTimeout: 10 * patience})
	for range 3 {
		defer s.idleConnection().Close()
	}
	stream, busy := s.idleConnection(), s.idleConnection()
	defer busy.Close()
	fmt.Fprint(stream, "GET /hijack HTTP/1.1\r\nHost: test\r\n\r\n")
	finish := busy.hold()
	s.await("busy", func(st control.Status) bool {
		return st.Connections.Idle == 3 && st.Connections.Active == 1 && st.Connections.Streams == 1
	})
	first, second := s.handOver()
	s.await("three have moved", func(st control.Status) bool {
		return st.Predecessor != nil && st.Predecessor.Connections == control.Counts{Active: 1, Streams: 1, Moved: 3}
	})
	says := func(pid int, want string) func() bool {
		return func() bool {
			for _, n := range s.systemd.all() {
				if n.pid == pid && n.accepted && n.text == want {
					return true
				}
			}
			return false
		}
	}
	eventually(t, "systemd is told how the drain gets on",
		says(second.PID, "STATUS=generation 2: serving; generation 1 drains: 1 active, 1 stream, 3 moved"))
	stream.Close()
	eventually(t, "systemd is told once more", says(second.PID, "STATUS=generation 2: serving; generation 1 drains: 1 active, 3 moved, 1 drained"))
	if body, err := finish(); body != "ouch" || err != nil {
		t.Errorf("the request ends with %q, %v", body, err)
	}
	s.awaitExit(first.PID, "exited 0")
	eventually(t, "systemd is told that the drain is over", says(second.PID, "NOTIFYACCESS=main\nSTATUS=generation 2: serving"))
	for _, n := range s.systemd.all() {
		if strings.Contains(n.text, "STATUS=") && !n.accepted {
			t.Errorf("process %d says %q, and nobody listens", n.pid, n.text)
		}
	}
	wantMatch(t, "drain event", s.event("drain"), `msg="web: pid \d+ drains: 3 idle, 1 active, 1 stream" .*ZDT_CONNS_IDLE=3 ZDT_CONNS_ACTIVE=2 ZDT_CONNS_STREAMS=1 `)
	wantMatch(t, "exit event", s.event("exit"), `msg="web: generation 1 \(pid \d+\) ended after [\d.]+ m?s: 4 connections moved, 1 drained, 0 cut" .*`+
		`ZDT_CONNS_MOVED=4 ZDT_CONNS_DRAINED=1 ZDT_CONNS_CUT=0 ZDT_CONNS_CLOSED=0 ZDT_TASKS_LEFT=0 `)
}

// A polite close is no failure, and still what its client has to connect anew for.
func TestPoliteClosesAreCounted(t *testing.T) {
	t.Parallel()
	s := stand(t, serviceConfig{Wrapped: true, DrainTimeout: patience})
	for range 2 {
		defer s.idleConnection().Close()
	}
	first, _ := s.handOver()
	s.awaitExit(first.PID, "exited 0")
	wantMatch(t, "exit event", s.event("exit"), `: 2 connections closed politely, 0 cut" .*ZDT_CONNS_MOVED=0 ZDT_CONNS_DRAINED=2 ZDT_CONNS_CUT=0 ZDT_CONNS_CLOSED=2 `)
}

// Who moved to a process that dies is lost with it, and that is said.
func TestMovedAndLost(t *testing.T) {
	t.Parallel()
	s := stand(t, serviceConfig{DrainTimeout: patience})
	var moved []*httpConn
	for range 3 {
		moved = append(moved, s.idleConnection())
		defer moved[len(moved)-1].Close()
	}
	busy := s.idleConnection()
	defer busy.Close()
	finish := busy.hold()
	s.await("busy", func(st control.Status) bool { return st.Connections.Active == 1 })
	first, second := s.handOver()
	s.await("three have moved", func(st control.Status) bool {
		return st.Predecessor != nil && st.Predecessor.Connections.Moved == 3
	})
	s.signal(second.PID, syscall.SIGKILL)
	st := s.await("taken over", func(st control.Status) bool { return st.TookOver && st.Phase == control.Idle })
	if st.PID != first.PID || st.Last == nil || st.Last.Committed || st.Last.Lost != 3 {
		t.Errorf("after the takeover: %+v, last %+v", st, st.Last)
	}
	wantMatch(t, "detail", st.Last.Detail, `serves again; the 3 connections that had moved to it are lost$`)
	wantMatch(t, "abort event", s.event("abort"), `the 3 connections that had moved to it are lost" .*ZDT_CONNS_LOST=3`)
	for _, c := range moved {
		if got, _, err := c.get("/"); err == nil {
			t.Errorf("a connection of the dead process answers %q", got)
		}
	}
	if body, err := finish(); body != "ouch" || err != nil {
		t.Errorf("the request that had not moved ends with %q, %v", body, err)
	}
	s.nextWorks()
}

// A predecessor that is killed in its drain has no last word: its successor
// tells what it had left when it was last heard of.
func TestPredecessorIsKilled(t *testing.T) {
	t.Parallel()
	s := stand(t, serviceConfig{DrainTimeout: patience})
	for range 2 {
		defer s.idleConnection().Close()
	}
	busy := s.idleConnection()
	defer busy.Close()
	busy.hold()
	s.await("busy", func(st control.Status) bool { return st.Connections.Active == 1 })
	first, _ := s.handOver()
	s.await("two have moved", func(st control.Status) bool {
		return st.Predecessor != nil && st.Predecessor.Connections == control.Counts{Active: 1, Moved: 2}
	})
	s.signal(first.PID, syscall.SIGKILL)
	s.awaitExit(first.PID, "killed KILL")
	wantMatch(t, "exit event", s.exitEvent(first.PID), `ended without a word; the connections that it still had are lost \(last known: 2 connections moved, 1 cut\)" .*`+
		`ZDT_CONNS_MOVED=2 ZDT_CONNS_DRAINED=0 ZDT_CONNS_CUT=1 .*EXIT_CODE=unknown`)
	s.nextWorks()
}

// The service that stops tells what it still waits for.
func TestStatusTextOfAStop(t *testing.T) {
	t.Parallel()
	s := stand(t, serviceConfig{DrainTimeout: patience})
	busy := s.idleConnection()
	defer busy.Close()
	finish := busy.hold()
	first := s.await("busy", func(st control.Status) bool { return st.Connections.Active == 1 })
	s.signal(first.PID, syscall.SIGTERM)
	eventually(t, "systemd is told what the stop waits for", func() bool {
		all := s.systemd.all()
		return all[len(all)-1].text == "STATUS=generation 1: stopping: 1 active"
	})
	if body, err := finish(); body != "ouch" || err != nil {
		t.Errorf("the request ends with %q, %v", body, err)
	}
	s.awaitExit(first.PID, "exited 0")
}
