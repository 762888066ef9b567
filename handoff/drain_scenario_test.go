package handoff

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/zdt-dev/zdt/handoff/control"
)

// What clients see of a drain.

// handOver starts a bare handoff and waits until the successor is the service.
func (s *stage) handOver() (first, second control.Status) {
	s.t.Helper()
	first = s.mustStatus()
	s.flip("service-next")
	s.signal(first.PID, syscall.SIGUSR2)
	second = s.await("next generation", func(st control.Status) bool {
		return st.Generation == first.Generation+1 && st.Phase == control.Idle
	})
	return first, second
}

// exitEvent returns the line that a generation wrote when it ended.
func (s *stage) exitEvent(pid int) string {
	s.t.Helper()
	var line string
	eventually(s.t, "there is an exit event", func() bool {
		text := readFile(s.stderr.Name())
		for l := range strings.SplitSeq(text, "\n") {
			if strings.Contains(l, "event=exit") && strings.Contains(l, fmt.Sprintf(" pid=%d ", pid)) {
				line = l
			}
		}
		return line != ""
	})
	return line
}

func TestSlowRequestFinishes(t *testing.T) {
	t.Parallel()
	s := stand(t, serviceConfig{DrainTimeout: patience})
	c := s.idleConnection()
	defer c.Close()
	fmt.Fprint(c, "GET /until-drain HTTP/1.1\r\nHost: test\r\n\r\n")
	s.await("busy", func(st control.Status) bool { return st.Connections.Active == 1 })
	first, _ := s.handOver()
	if got := s.get("/"); !strings.HasPrefix(got, "2 ") {
		t.Errorf("meanwhile GET / = %q", got)
	}
	if body, _, err := c.answer(); err != nil || body != "1 done" {
		t.Errorf("slow request: %q, %v", body, err)
	}
	s.awaitExit(first.PID, "exited 0")
	if line := s.exitEvent(first.PID); !strings.Contains(line, "ZDT_CONNS_MOVED=1 ZDT_CONNS_DRAINED=0 ZDT_CONNS_CUT=0") {
		t.Error(line)
	}
	if got, closing, err := c.get("/"); !strings.HasPrefix(got, "2 ") || closing || err != nil {
		t.Errorf("the next request: %q, closing %v, %v", got, closing, err)
	}
}

func TestRequestAtTheDeadlineIsCut(t *testing.T) {
	t.Parallel()
	s := stand(t, serviceConfig{DrainTimeout: 300 * time.Millisecond})
	c := s.idleConnection()
	defer c.Close()
	fmt.Fprint(c, "GET /slow?for=1m HTTP/1.1\r\nHost: test\r\n\r\n")
	s.await("busy", func(st control.Status) bool { return st.Connections.Active == 1 })
	first, _ := s.handOver()
	if body, _, err := c.answer(); err == nil {
		t.Errorf("got %q in place of a cut", body)
	}
	s.awaitExit(first.PID, "exited 0")
	if line := s.exitEvent(first.PID); !strings.Contains(line, "ZDT_CONNS_DRAINED=0 ZDT_CONNS_CUT=1") {
		t.Error(line)
	}
}

// Connections that cannot move, because the program has put something around
// them, are closed politely.
func TestIdleConnections(t *testing.T) {
	t.Parallel()
	s := stand(t, serviceConfig{Wrapped: true, IdleGrace: 400 * time.Millisecond, DrainTimeout: patience})
	var conns []*httpConn
	for range 3 {
		c := s.idleConnection()
		defer c.Close()
		conns = append(conns, c)
	}
	fresh, err := net.Dial("tcp", s.addr) // connected, and no request yet
	if err != nil {
		t.Fatal(err)
	}
	defer fresh.Close()
	s.await("connected", func(st control.Status) bool { return st.Connections.Idle == 4 })
	first, _ := s.handOver()
	// A request within the grace is answered, by the generation it reached,
	// and the answer says goodbye.
	body, closing, err := conns[0].get("/")
	if err != nil || body != fmt.Sprintf("1 %d", first.PID) || !closing {
		t.Errorf("request within the grace: %q, closing %v, %v", body, closing, err)
	}
	// A head that comes in pieces is a request on its way.
	for i, piece := range []string{"GE", "T / HTTP/1.1\r\n", "Host: test\r\n", "\r\n"} {
		if i > 0 {
			time.Sleep(150 * time.Millisecond) // longer in all than the grace
		}
		fmt.Fprint(conns[1], piece)
	}
	if body, closing, err := conns[1].answer(); err != nil || body != fmt.Sprintf("1 %d", first.PID) || !closing {
		t.Errorf("request in pieces: %q, closing %v, %v", body, closing, err)
	}
	if err := conns[2].closed(); err != nil {
		t.Errorf("idle connection: %v", err)
	}
	fresh.SetReadDeadline(time.Now().Add(patience))
	if n, err := fresh.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		t.Errorf("fresh connection: %d, %v", n, err)
	}
	s.awaitExit(first.PID, "exited 0")
	if line := s.exitEvent(first.PID); !strings.Contains(line, "ZDT_CONNS_DRAINED=4 ZDT_CONNS_CUT=0") {
		t.Error(line)
	}
}

func TestHijackedConnection(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name   string
		cfg    serviceConfig
		hangUp bool
		want   string
	}{
		{"ends by itself", serviceConfig{DrainTimeout: 100 * time.Millisecond, StreamTimeout: patience}, true, "ZDT_CONNS_DRAINED=1 ZDT_CONNS_CUT=0"},
		{"has a deadline of its own", serviceConfig{DrainTimeout: patience, StreamTimeout: 600 * time.Millisecond}, false, "ZDT_CONNS_DRAINED=0 ZDT_CONNS_CUT=1"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := stand(t, tt.cfg)
			c := s.idleConnection()
			defer c.Close()
			fmt.Fprint(c, "GET /hijack HTTP/1.1\r\nHost: test\r\n\r\n")
			talk := func(word string) {
				t.Helper()
				c.SetDeadline(time.Now().Add(patience))
				fmt.Fprintln(c, word)
				if line, err := c.r.ReadString('\n'); err != nil || line != "1 "+word+"\n" {
					t.Errorf("said %q, got %q, %v", word, line, err)
				}
			}
			talk("before")
			s.await("streaming", func(st control.Status) bool { return st.Connections.Streams == 1 })
			first, _ := s.handOver()
			time.Sleep(200 * time.Millisecond) // beyond what a request would get, in the first case
			talk("after")
			if tt.hangUp {
				c.Close()
			} else if err := c.closed(); err != nil {
				t.Error(err)
			}
			s.awaitExit(first.PID, "exited 0")
			if line := s.exitEvent(first.PID); !strings.Contains(line, tt.want) {
				t.Errorf("%s\nwant %s", line, tt.want)
			}
		})
	}
}

// Hooks, tasks and requests end in the order that the program relies on: what
// serves requests is released after the last of them.
func TestOrderOfTheEnd(t *testing.T) {
	t.Parallel()
	s := stand(t, serviceConfig{DrainTimeout: patience})
	c := s.idleConnection()
	defer c.Close()
	fmt.Fprint(c, "GET /until-drain HTTP/1.1\r\nHost: test\r\n\r\n")
	s.await("busy", func(st control.Status) bool { return st.Connections.Active == 1 })
	first, second := s.handOver()
	if body, _, err := c.answer(); err != nil || body != "1 done" {
		t.Errorf("slow request: %q, %v", body, err)
	}
	s.awaitExit(first.PID, "exited 0")
	var got []string
	for line := range strings.SplitSeq(s.readDiary(), "\n") {
		if what, ok := strings.CutPrefix(line, fmt.Sprintf("%d ", first.PID)); ok {
			got = append(got, what)
		}
	}
	want := []string{"drain", "task done", "release", "release first registered", "main returns"}
	if len(got) > 1 {
		slices.Sort(got[:2]) // hooks run and tasks end at the same time
	}
	if !slices.Equal(got, want) {
		t.Errorf("the first generation's end: %q, want %q", got, want)
	}
	if strings.Contains(s.readDiary(), fmt.Sprintf("%d ", second.PID)) {
		t.Errorf("the second generation ends too:\n%s", s.readDiary())
	}
}

func TestServeKeepsTheServersOwnHooks(t *testing.T) {
	t.Parallel()
	s := stand(t, serviceConfig{})
	r := s.report("")
	if !r.ReadsFrom {
		t.Error("io.ReaderFrom is hidden: no sendfile")
	}
	if r.States < 2 { // new, active
		t.Errorf("the server's own ConnState was called %d times", r.States)
	}
}

// One http.Server serves two sockets, each with a Serve of its own.
func TestTwoServersOnOneHandoff(t *testing.T) {
	t.Parallel()
	s := newStage(t, quick(serviceConfig{Sockets: []socketSpec{{"http", "tcp", "127.0.0.1:0"}, {"admin", "tcp", "127.0.0.1:0"}}}))
	st := s.startReady()
	for range 2 {
		s.nextWorks()
		resp, err := http.Get("http://" + st.Sockets[1].Address + "/")
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
	}
}
