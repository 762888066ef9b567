package handoff

import (
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"testing"
	"time"
)

// A second Serve of a server must not write what requests on the first one
// read. The race detector is the judge.
func TestServeWhileServing(t *testing.T) {
	h := bareHandoff(t, Options{DrainTimeout: time.Second, IdleGrace: time.Millisecond})
	first, err := h.Listen("first", "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	second, err := h.Listen("second", "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	h.Ready()
	srv := &http.Server{Handler: http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})}
	served := make(chan error, 2)
	go func() { served <- h.Serve(srv, first) }()
	get := func(addr string) {
		resp, err := fresh().Get("http://" + addr)
		if err != nil {
			t.Error(err)
			return
		}
		resp.Body.Close()
	}
	get(first.Addr().String())
	asked := make(chan struct{})
	go func() {
		defer close(asked)
		for range 20 {
			get(first.Addr().String())
		}
	}()
	go func() { served <- h.Serve(srv, second) }()
	get(second.Addr().String())
	<-asked
	h.do(func(m *machine) { m.stop() })
	for range 2 {
		if err := <-served; err != nil {
			t.Errorf("Serve: %v", err)
		}
	}
}

// However many SIGUSR2 wait, a SIGTERM has its place.
func TestSignalsDoNotDisplaceEachOther(t *testing.T) {
	h := bareHandoff(t, Options{DrainTimeout: time.Second})
	seen := make(chan os.Signal, 100)
	signal.Notify(seen, syscall.SIGUSR2, syscall.SIGUSR1, syscall.SIGTERM)
	defer signal.Stop(seen)
	h.do(func(m *machine) {
		m.watch()
		// The deciding goroutine is busy, as it is when systemd is slow.
		for _, sig := range []syscall.Signal{syscall.SIGUSR2, syscall.SIGUSR2, syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGTERM} {
			if err := syscall.Kill(os.Getpid(), sig); err != nil {
				t.Error(err)
			}
			<-seen
		}
	})
	select {
	case <-h.Done():
	case <-time.After(patience):
		t.Error("the SIGTERM is lost")
		h.Close()
	}
}
