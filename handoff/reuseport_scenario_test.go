package handoff

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/zdt-dev/zdt/handoff/control"
	"github.com/zdt-dev/zdt/internal/load"
)

// groupPlan is what the next generation of the role "group" reads when it starts.
type groupPlan struct {
	Size int
	Deaf bool // says READY and accepts nothing, so that clients stay in the queues
}

func (s *stage) plan(p groupPlan) {
	s.t.Helper()
	text, err := json.Marshal(p)
	if err != nil {
		s.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(s.dir, "group-plan"), text, 0o644); err != nil {
		s.t.Fatal(err)
	}
}

// groupMain serves HTTP over a group of sockets, a Serve for each.
func groupMain() error {
	cfg, err := readConfig()
	if err != nil {
		return err
	}
	var plan groupPlan
	if err := json.Unmarshal([]byte(readFile(filepath.Join(os.Getenv(envRole), "group-plan"))), &plan); err != nil {
		return err
	}
	h, err := Open(cfg.options())
	if err != nil {
		return err
	}
	defer h.Close()
	group, err := h.ListenReusePort("http", "tcp", "127.0.0.1:0", plan.Size)
	if err != nil {
		return err
	}
	if plan.Deaf {
		if err := h.Ready(); err != nil {
			return err
		}
		<-h.Done()
		return nil
	}
	srv := &http.Server{Handler: serviceMux(h, new(atomic.Int64))}
	ended := make(chan error, len(group))
	for _, l := range group {
		go func() { ended <- h.Serve(srv, l) }()
	}
	for range group {
		if err := <-ended; err != nil {
			return err
		}
	}
	return nil
}

// nextGroup hands over to a generation with such a plan and waits until it is alone.
func (s *stage) nextGroup(p groupPlan) control.Status {
	s.t.Helper()
	s.plan(p)
	s.flip("group")
	st := s.mustStatus()
	s.signal(st.PID, syscall.SIGUSR2)
	next := s.awaitGeneration(st.Generation + 1)
	s.awaitExit(st.PID, "exited 0")
	return next
}

// groupOf starts a stage whose second generation has a group.
func groupOf(t *testing.T, cfg serviceConfig, p groupPlan) (*stage, control.Status) {
	t.Helper()
	cfg.DrainTimeout, cfg.Sockets = patience, []socketSpec{{"first", "tcp", "127.0.0.1:0"}}
	s := newStage(t, cfg)
	s.startReady()
	st := s.nextGroup(p)
	s.addr = groupSockets(st)[0].Address
	return s, st
}

func groupSockets(st control.Status) (out []control.Socket) {
	for _, sock := range st.Sockets {
		if sock.Name == "http" {
			out = append(out, sock)
		}
	}
	return out
}

// listeners counts the sockets that listen on an address, in all processes.
func listeners(t *testing.T, address string) int {
	t.Helper()
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		t.Fatal(err)
	}
	const listen = "0A" // TCP_LISTEN in /proc/net/tcp
	n := 0
	// Not /proc/net, which is that of the main thread.
	for line := range strings.SplitSeq(readFile("/proc/thread-self/net/tcp"), "\n") {
		if f := strings.Fields(line); len(f) > 3 && f[3] == listen && f[1] == fmt.Sprintf("0100007F:%04X", atoi(port)) {
			n++
		}
	}
	return n
}

// Clients that wait in the queues of a generation that accepts nothing are
// served by the next one, which wants fewer sockets, and so are those that come
// while one after the other has more or fewer.
func TestGroupKeepsItsQueues(t *testing.T) {
	t.Parallel()
	s, st := groupOf(t, quick(serviceConfig{}), groupPlan{Size: 4, Deaf: true})
	if n := listeners(t, s.addr); n != 4 || len(groupSockets(st)) != 4 {
		t.Errorf("%d sockets listen, the status has %+v", n, st.Sockets)
	}
	const clients = 200
	var conns []*httpConn
	for range clients {
		c, err := net.Dial("tcp", s.addr)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		fmt.Fprint(c, "GET / HTTP/1.1\r\nHost: test\r\n\r\n")
		conns = append(conns, &httpConn{c, bufio.NewReader(c)})
	}
	st = s.nextGroup(groupPlan{Size: 2})
	want := fmt.Sprintf("3 %d", st.PID)
	for i, c := range conns {
		if body, _, err := c.answer(); err != nil || body != want {
			t.Fatalf("client %d of %d: %q, %v; want %q", i, clients, body, err, want)
		}
	}
	for i, size := range []int{1, 6, 3} {
		st = s.nextGroup(groupPlan{Size: size})
		has := []int{4, 6, 6}[i]
		sockets := groupSockets(st)
		if n := listeners(t, s.addr); n != has || len(sockets) != has {
			t.Errorf("generation %d wants %d: %d sockets listen, the status has %d; want %d", st.Generation, size, n, len(sockets), has)
		}
		for _, sock := range sockets {
			if sock.Address != s.addr || !sock.ReusePort || !sock.InUse {
				t.Errorf("generation %d: %+v", st.Generation, sock)
			}
		}
		if value, known := readMigrateReq(); known && (st.MigrateReq == nil || *st.MigrateReq != value) {
			t.Errorf("generation %d: tcp_migrate_req %v, want %d", st.Generation, st.MigrateReq, value)
		}
		for range 20 {
			if got, want := s.get("/"), fmt.Sprintf("%d %d", st.Generation, st.PID); got != want {
				t.Errorf("GET / = %q, want %q", got, want)
			}
		}
	}
}

// A candidate that wants more sockets takes no client with them before it is
// the service: undone, it leaves nobody in a queue.
func TestGroupOfAnUndoneCandidate(t *testing.T) {
	t.Parallel()
	s, st := groupOf(t, quick(serviceConfig{}), groupPlan{Size: 2})
	s.plan(groupPlan{Size: 8})
	for _, undo := range []func(candidate int){
		func(int) { s.signal(st.PID, syscall.SIGUSR1) },
		func(candidate int) { s.signal(candidate, syscall.SIGKILL) },
	} {
		s.armAndSignal(st.PID, control.Arm{TxID: "t1", Exe: "group", Hold: true, HoldFor: patience})
		held := s.await("held", func(st control.Status) bool { return st.Phase == control.Held })
		if n := listeners(t, s.addr); n != 2 {
			t.Errorf("%d sockets listen while the candidate is held, want 2", n)
		}
		for range 20 {
			if got, want := s.get("/"), fmt.Sprintf("3 %d", held.Handoff.Candidate); got != want {
				t.Errorf("GET / while held: %q, want %q", got, want)
			}
		}
		undo(held.Handoff.Candidate)
		s.await("serving again", func(st control.Status) bool { return st.Phase == control.Idle })
		for range 20 {
			if got, want := s.get("/"), fmt.Sprintf("2 %d", st.PID); got != want {
				t.Errorf("GET / after the handoff was undone: %q, want %q", got, want)
			}
		}
	}
	if next := s.nextGroup(groupPlan{Size: 3}); len(groupSockets(next)) != 3 || listeners(t, s.addr) != 3 {
		t.Errorf("the next one: %+v", next.Sockets)
	}
}

// The group grows and is handed over under load.
func TestGroupUnderLoad(t *testing.T) {
	if testing.Short() {
		t.Skip("takes seconds of full load")
	}
	s, _ := groupOf(t, serviceConfig{}, groupPlan{Size: 2})
	l := load.Start(load.Config{
		KeepAlive: 16, Fresh: 8,
		Dial: func(ctx context.Context) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "tcp", s.addr)
		},
	})
	began := time.Now()
	for i := range 8 {
		s.nextGroup(groupPlan{Size: 1 + i})
	}
	r := l.Stop()
	t.Log(time.Since(began), r)
	if r.Failed != 0 || r.Refused != 0 || r.Requests < 500 {
		t.Errorf("clients noticed: %s", r)
	}
	if n := listeners(t, s.addr); n != 8 {
		t.Errorf("%d sockets listen, want 8", n)
	}
}
