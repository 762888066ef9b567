package handoff

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/zdt-dev/zdt/handoff/control"
)

// answeredBy expects the next answer from a generation, with the connection kept.
func (h *httpConn) answeredBy(t *testing.T, generation int) {
	t.Helper()
	body, closing, err := h.answer()
	if !strings.HasPrefix(body, fmt.Sprintf("%d ", generation)) || closing || err != nil {
		t.Errorf("answer %q, closing %v, %v; want generation %d and an open connection", body, closing, err, generation)
	}
}

func (s *stage) dial(network, addr string) *httpConn {
	s.t.Helper()
	c, err := net.Dial(network, addr)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { c.Close() })
	return &httpConn{c, bufio.NewReader(c)}
}

// Connections in every state see three handoffs and notice none.
func TestConnectionsMove(t *testing.T) {
	t.Parallel()
	s := newStage(t, quick(serviceConfig{IdleGrace: patience, DrainTimeout: patience, Sockets: []socketSpec{
		{"http", "tcp", "127.0.0.1:0"}, {"local", "unix", "@" + t.Name() + fmt.Sprint(time.Now().UnixNano())},
	}}))
	st := s.startReady()
	var local string
	for _, sock := range st.Sockets {
		if sock.Name == "local" {
			local = sock.Address
		}
	}
	idle, fresh, half, slow, pipelined := s.dial("tcp", s.addr), s.dial("tcp", s.addr), s.dial("tcp", s.addr), s.dial("tcp", s.addr), s.dial("tcp", s.addr)
	upload, expecting, unix := s.dial("tcp", s.addr), s.dial("tcp", s.addr), s.dial("unix", local)
	for _, c := range []*httpConn{idle, half, slow, pipelined, upload, expecting, unix} {
		c.get("/")
	}
	for g := 1; g <= 3; g++ {
		s.await("connected", func(st control.Status) bool { return st.Connections.Open() == 8 })
		fmt.Fprint(half, "GET / HTTP/1.1\r\nHost: te")
		fmt.Fprint(slow, "GET /until-drain HTTP/1.1\r\nHost: test\r\n\r\n")
		fmt.Fprint(upload, "POST / HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")
		finish, err := expecting.begin()
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprint(pipelined, "GET /until-drain HTTP/1.1\r\nHost: test\r\n\r\nGET / HTTP/1.1\r\nHost: test\r\n\r\nGET / HT")
		s.await("busy", func(st control.Status) bool { return st.Connections.Active == 4 })
		first, second := s.handOver()

		slow.answeredBy(t, g)
		pipelined.answeredBy(t, g)
		if body, closing, err := pipelined.answer(); err != nil || closing || !strings.HasPrefix(body, fmt.Sprint(g)) {
			t.Errorf("second of the pipeline: %q, %v, %v", body, closing, err)
		}
		fmt.Fprint(pipelined, "TP/1.1\r\nHost: test\r\n\r\n")
		if _, closing, err := pipelined.answer(); err != nil || closing {
			t.Errorf("third of the pipeline: closing %v, %v", closing, err)
		}
		fmt.Fprint(upload, "5\r\nworld\r\n0\r\n\r\n")
		if body, closing, err := upload.answer(); body != "helloworld" || closing || err != nil {
			t.Errorf("upload: %q, %v, %v", body, closing, err)
		}
		if closing, err := finish(); closing || err != nil {
			t.Errorf("after 100 Continue: closing %v, %v", closing, err)
		}
		fmt.Fprint(half, "st\r\n\r\n")
		half.answeredBy(t, g+1)
		for _, c := range []*httpConn{idle, fresh, slow, unix} {
			fmt.Fprint(c, "GET / HTTP/1.1\r\nHost: test\r\n\r\n")
			c.answeredBy(t, g+1)
		}
		s.awaitExit(first.PID, "exited 0")
		if line := s.exitEvent(first.PID); !strings.Contains(line, "ZDT_CONNS_MOVED=8 ZDT_CONNS_DRAINED=0 ZDT_CONNS_CUT=0") {
			t.Error(line)
		}
		st := s.await("alone", func(st control.Status) bool { return st.Predecessor == nil })
		if m := st.Moves; m == nil || m.Taken != 8 || m.Verified != 8 || m.Refused+m.Differing+m.Unverified > 0 {
			t.Errorf("generation %d: %+v", second.Generation, m)
		}
	}
}

// The user's hooks run, and sendfile stays visible, on a connection that moved.
func TestMovedConnectionIsAsNew(t *testing.T) {
	t.Parallel()
	s := stand(t, serviceConfig{})
	c := s.idleConnection()
	defer c.Close()
	first, _ := s.handOver()
	s.awaitExit(first.PID, "exited 0")
	fmt.Fprint(c, "GET /report HTTP/1.1\r\nHost: test\r\n\r\n")
	body, _, err := c.answer()
	if err != nil || !strings.Contains(body, `"ReadsFrom":true`) || strings.Contains(body, `"States":0`) || !strings.Contains(body, `"Blocking":null`) {
		t.Errorf("%s, %v", body, err)
	}
}

// A program that says READY before it serves says what it takes when the drain has begun.
func TestConnectionsMoveToALateServer(t *testing.T) {
	t.Parallel()
	s := stand(t, serviceConfig{IdleGrace: patience, DrainTimeout: patience})
	idle, half, busy := s.dial("tcp", s.addr), s.dial("tcp", s.addr), s.dial("tcp", s.addr)
	for _, c := range []*httpConn{idle, half, busy} {
		c.get("/")
	}
	fmt.Fprint(half, "GET / HT")
	finish, err := busy.begin()
	if err != nil {
		t.Fatal(err)
	}
	first := s.mustStatus()
	s.flip("service-early")
	s.signal(first.PID, syscall.SIGUSR2)
	s.await("the others there", func(st control.Status) bool { return st.Moves != nil && st.Moves.Taken == 2 })
	if closing, err := finish(); closing || err != nil {
		t.Errorf("a request within the handoff: closing %v, %v", closing, err)
	}
	fmt.Fprint(half, "TP/1.1\r\nHost: test\r\n\r\n")
	half.answeredBy(t, 2)
	s.awaitExit(first.PID, "exited 0")
	for _, c := range []*httpConn{idle, busy} {
		fmt.Fprint(c, "GET / HTTP/1.1\r\nHost: test\r\n\r\n")
		c.answeredBy(t, 2)
	}
	if line := s.exitEvent(first.PID); !strings.Contains(line, "ZDT_CONNS_MOVED=3 ZDT_CONNS_DRAINED=0 ZDT_CONNS_CUT=0") {
		t.Error(line)
	}
}

// An undone candidate gives the connections it has accepted back.
func TestAbortGivesBack(t *testing.T) {
	t.Parallel()
	s := stand(t, serviceConfig{IdleGrace: patience})
	first := s.mustStatus()
	held := s.hold("tx")
	idle, half, busy := s.dial("tcp", s.addr), s.dial("tcp", s.addr), s.dial("tcp", s.addr)
	for _, c := range []*httpConn{idle, half, busy} {
		fmt.Fprint(c, "GET / HTTP/1.1\r\nHost: test\r\n\r\n")
		c.answeredBy(t, 2)
	}
	fmt.Fprint(half, "GET / HT")
	finish, err := busy.begin()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.ask(func(ctx context.Context, c *control.Client) (control.Status, error) {
		return c.Abort(ctx, "tx", "test")
	}); err != nil {
		t.Fatal(err)
	}
	s.await("back", func(st control.Status) bool { return st.Moves != nil && st.Moves.Taken == 2 })
	if closing, err := finish(); closing || err != nil {
		t.Errorf("a request within the abort: closing %v, %v", closing, err)
	}
	fmt.Fprint(half, "TP/1.1\r\nHost: test\r\n\r\n")
	half.answeredBy(t, 1)
	s.await("all back", func(st control.Status) bool { return st.Moves.Taken == 3 })
	for _, c := range []*httpConn{idle, busy} {
		fmt.Fprint(c, "GET / HTTP/1.1\r\nHost: test\r\n\r\n")
		c.answeredBy(t, 1)
	}
	if line := s.exitEvent(held.Handoff.Candidate); !strings.Contains(line, "ZDT_CONNS_MOVED=3 ZDT_CONNS_DRAINED=0 ZDT_CONNS_CUT=0") {
		t.Error(line)
	}
	s.await("idle again", func(st control.Status) bool { return st.Phase == control.Idle && st.PID == first.PID })
}

// A successor that dies with connections on their way to it: whoever had not
// been told that it has them goes on with them.
func TestSuccessorDiesInTheMiddle(t *testing.T) {
	t.Parallel()
	s := stand(t, serviceConfig{IdleGrace: patience})
	var conns []*httpConn
	for range 20 {
		c := s.idleConnection()
		defer c.Close()
		conns = append(conns, c)
	}
	held := s.hold("tx")
	candidate := held.Handoff.Candidate
	s.signal(candidate, unix.SIGSTOP)
	eventually(t, "the candidate stands still", func() bool {
		return strings.Contains(readFile(fmt.Sprintf("/proc/%d/status", candidate)), "State:\tT")
	})
	if _, err := s.ask(func(ctx context.Context, c *control.Client) (control.Status, error) { return c.Commit(ctx, "tx") }); err != nil {
		t.Fatal(err)
	}
	// Requests reach connections that are on their way, and wait.
	for _, c := range conns {
		fmt.Fprint(c, "GET / HTTP/1.1\r\nHost: test\r\n\r\n")
	}
	s.signal(candidate, unix.SIGKILL)
	for _, c := range conns {
		c.answeredBy(t, 1)
	}
	s.await("took over", func(st control.Status) bool { return st.TookOver && st.PID == held.PID })
	// And the next handoff moves them all.
	fmt.Fprint(conns[0], "GET / HTTP/1.1\r\nHost: test\r\n\r\n")
	conns[0].answeredBy(t, 1)
}

// A receiver that runs out of descriptors takes what it can; the rest is served on and closed politely.
func TestReceiverShortOfDescriptors(t *testing.T) {
	t.Parallel()
	s := stand(t, serviceConfig{IdleGrace: patience, DrainTimeout: patience})
	var conns []*httpConn
	for range 300 {
		c := s.idleConnection()
		defer c.Close()
		conns = append(conns, c)
	}
	first := s.mustStatus()
	s.flip("service-short")
	s.signal(first.PID, unix.SIGUSR2)
	moved := s.await("moved some", func(st control.Status) bool {
		return st.Moves != nil && st.Moves.Refused > 0 && st.Moves.Taken+st.Moves.Refused >= len(conns)
	})
	if moved.Moves.Taken < 1 || moved.Moves.Taken > 100 {
		t.Errorf("%+v", *moved.Moves)
	}
	old, young := 0, 0
	for i, c := range conns {
		body, closing, err := c.get("/")
		switch {
		case err != nil:
			t.Fatalf("connection %d: %v", i, err)
		case strings.HasPrefix(body, "1 ") && closing:
			old++
			if err := c.closed(); err != nil {
				t.Error(err)
			}
		case strings.HasPrefix(body, "2 ") && !closing:
			young++
		default:
			t.Errorf("connection %d: %q, closing %v", i, body, closing)
		}
	}
	if old+young != 300 || young == 0 || old == 0 {
		t.Errorf("%d answered by the old generation, %d by the new one", old, young)
	}
	s.awaitExit(first.PID, "exited 0")
	if line := s.exitEvent(first.PID); !strings.Contains(line, "ZDT_CONNS_CUT=0") {
		t.Error(line)
	}
}

// The server's timeouts hold on connections that moved: those for idle ones go
// on, those for requests start with the request.
func TestServerTimeoutsAfterMove(t *testing.T) {
	t.Parallel()
	s := stand(t, serviceConfig{HeaderTimeout: 150 * time.Millisecond, IdleTimeout: time.Second})
	patient, half := s.idleConnection(), s.idleConnection()
	defer patient.Close()
	defer half.Close()
	began := time.Now()
	first, _ := s.handOver()
	s.awaitExit(first.PID, "exited 0")
	// Idle for longer than a head may take.
	for time.Since(began) < 400*time.Millisecond {
		time.Sleep(10 * time.Millisecond)
	}
	fmt.Fprint(patient, "GET / HTTP/1.1\r\nHost: test\r\n\r\n")
	patient.answeredBy(t, 2)
	fmt.Fprint(half, "GET / HT")
	half.SetReadDeadline(time.Now().Add(patience))
	if _, err := io.ReadAll(half); err != nil {
		t.Errorf("half a head: %v", err)
	}
	if took := time.Since(began); took > patience/2 {
		t.Errorf("half a head was waited for %v", took)
	}
	if err := patient.closed(); err != nil {
		t.Errorf("an idle connection: %v", err)
	}
}
