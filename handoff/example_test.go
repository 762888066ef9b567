package handoff_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"time"

	"github.com/zdt-dev/zdt/handoff"
	"github.com/zdt-dev/zdt/handoff/control"
)

// A whole service with one HTTP server. Under systemd the socket unit's
// FileDescriptorName= is "http".
func ExampleListenAndServe() {
	http.HandleFunc("GET /", func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "hello\n") })
	if err := handoff.ListenAndServe(&http.Server{Addr: ":8080"}); err != nil {
		log.Fatal(err)
	}
}

// Three lines in place of http.ListenAndServe, with something to release
// after the last request.
func Example() {
	h, err := handoff.Open(handoff.Options{})
	if err != nil {
		log.Fatal(err)
	}
	ln, err := h.Listen("http", "tcp", ":8080")
	if err != nil {
		log.Fatal(err)
	}
	h.OnRelease(func(ctx context.Context) { log.Print("close the database") })
	if err := h.Serve(&http.Server{}, ln); err != nil {
		log.Fatal(err)
	}
}

// Two sockets: READY is said when both are served.
func ExampleHandoff_Serve() {
	h, err := handoff.Open(handoff.Options{})
	if err != nil {
		log.Fatal(err)
	}
	public, err := h.Listen("http", "tcp", ":8080")
	if err != nil {
		log.Fatal(err)
	}
	admin, err := h.Listen("admin", "unix", "/run/web/admin.sock")
	if err != nil {
		log.Fatal(err)
	}
	ended := make(chan error, 2)
	go func() { ended <- h.Serve(&http.Server{}, public) }()
	go func() { ended <- h.Serve(&http.Server{}, admin) }()
	for range 2 {
		if err := <-ended; err != nil {
			log.Fatal(err)
		}
	}
}

// A protocol of its own over TCP. The connections that Accept returns are
// waited for in a drain, for Options.StreamTimeout.
func ExampleHandoff_Listen() {
	h, err := handoff.Open(handoff.Options{StreamTimeout: time.Minute})
	if err != nil {
		log.Fatal(err)
	}
	ln, err := h.Listen("echo", "tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	if err := h.Ready(); err != nil {
		log.Fatal(err)
	}
	go func() {
		c, err := net.Dial("tcp", ln.Addr().String())
		if err != nil {
			log.Fatal(err)
		}
		defer c.Close()
		io.WriteString(c, "hello")
		c.(*net.TCPConn).CloseWrite()
		answer, _ := io.ReadAll(c)
		fmt.Println(string(answer))
		h.Close() // what SIGTERM does with more patience
	}()
	for {
		c, err := ln.Accept()
		if errors.Is(err, net.ErrClosed) {
			break // this generation is done
		}
		if err != nil {
			log.Fatal(err)
		}
		h.Go(func(context.Context) {
			defer c.Close()
			io.Copy(c, c)
		})
	}
	<-h.Done()
	// Output: hello
}

// A UDP service says READY itself.
func ExampleHandoff_ListenPacket() {
	h, err := handoff.Open(handoff.Options{})
	if err != nil {
		log.Fatal(err)
	}
	pc, err := h.ListenPacket("dns", "udp", ":53")
	if err != nil {
		log.Fatal(err)
	}
	if err := h.Ready(); err != nil {
		log.Fatal(err)
	}
	buf := make([]byte, 1500)
	for {
		n, from, err := pc.ReadFrom(buf)
		if errors.Is(err, net.ErrClosed) {
			break // this generation is done
		}
		if err != nil {
			log.Fatal(err)
		}
		pc.WriteTo(buf[:n], from)
	}
	<-h.Done()
}

// A worker that finishes the job at hand when the drain begins.
func ExampleHandoff_Go() {
	h, err := handoff.Open(handoff.Options{})
	if err != nil {
		log.Fatal(err)
	}
	h.Go(func(ctx context.Context) {
		jobs := time.NewTicker(time.Second)
		defer jobs.Stop()
		for {
			select {
			case <-ctx.Done():
				return // a successor serves, or the service stops
			case <-jobs.C:
				log.Print("one more job done")
			}
		}
	})
	if err := h.Ready(); err != nil {
		log.Fatal(err)
	}
	<-h.Done()
}

// An operator's tool: start a candidate, look at it, decide.
func Example_probation() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	c, err := control.Dial(ctx, "/run/zdt/web/control.sock")
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Arm(ctx, control.Arm{TxID: "t1", Exe: "/srv/web-2", Hold: true}); err != nil {
		log.Fatal(err)
	}
	// SIGUSR2 to the main process, and once the status says "held":
	if _, err := c.Commit(ctx, "t1"); err != nil {
		log.Fatal(err)
	}
}
