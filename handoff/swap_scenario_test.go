package handoff

import (
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/zdt-dev/zdt/handoff/control"
)

// swapsMain is a service that moves to another port when it is asked to.
func swapsMain() error {
	cfg, err := readConfig()
	if err != nil {
		return err
	}
	h, err := Open(cfg.options())
	if err != nil {
		return err
	}
	defer h.Close()
	ln, err := h.Listen("http", "tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	mux := serviceMux(h, new(atomic.Int64))
	mux.HandleFunc("GET /swap", func(w http.ResponseWriter, r *http.Request) {
		next, err := net.Listen("tcp", "127.0.0.1:0")
		if err == nil {
			if err = ln.Swap(next); err != nil {
				next.Close()
			}
		}
		if err != nil {
			fmt.Fprint(w, err)
			return
		}
		fmt.Fprint(w, ln.Addr())
	})
	return h.Serve(&http.Server{Handler: mux}, ln)
}

// What a successor gets is the socket that is there, and while it has one nobody swaps.
func TestSuccessorGetsTheSwappedSocket(t *testing.T) {
	t.Parallel()
	s := stand(t, serviceConfig{DrainTimeout: patience})
	s.flip("swaps")
	s.signal(s.mustStatus().PID, syscall.SIGUSR2)
	st := s.awaitGeneration(2)
	fds := len(s.report("").FDs)
	old := s.addr
	for range 3 {
		s.addr = s.get("/swap")
	}
	if now := s.mustStatus().Sockets; len(now) != 1 || now[0].Address != s.addr || now[0].Name != "http" || s.addr == old {
		t.Errorf("sockets %+v, want http on %s; before %s", now, s.addr, old)
	}
	if c, err := net.Dial("tcp", old); err == nil {
		c.Close()
		t.Errorf("%s still takes connections", old)
	}
	eventually(t, "no more descriptors are open than before the swaps", func() bool { return len(s.report("").FDs) <= fds })
	c := s.idleConnection()
	defer c.Close()
	s.hold("t1")
	if body, _, err := c.get("/swap"); err != nil || !strings.Contains(body, ErrHandingOver.Error()) {
		t.Errorf("swap while a successor is held: %q, %v", body, err)
	}
	s.signal(st.PID, syscall.SIGUSR1)
	s.await("serving again", func(st control.Status) bool { return st.Phase == control.Idle })
	s.addr = s.get("/swap")
	s.nextWorks()
	s.nextWorks()
}
