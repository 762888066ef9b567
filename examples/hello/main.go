// Command hello is the smallest service that zdt upgrades: an HTTP server with
// three lines of handoff. Its faults can be turned on, to see what an upgrade
// does with a bad release.
package main

import (
	"crypto/sha256"
	"flag"
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/zdt-dev/zdt/handoff"
)

// version and fault are set at build time (-ldflags "-X main.version=v2 -X main.fault=crash").
var (
	version = "v1"
	fault   = ""
)

// waitFor is the file that lets a program with the fault "wait" go on.
const waitFor = "/srv/hello.go-on"

func main() {
	if err := run(); err != nil {
		log.Print(err)
		os.Exit(1)
	}
}

func run() error {
	addr := flag.String("listen", ":8080", "address to bind when no socket is inherited; a path is that of a unix socket")
	flag.Parse()
	log.SetFlags(0)
	log.SetPrefix("hello " + version + ": ")
	switch fault {
	case "crash":
		return fmt.Errorf("read configuration: %w", os.ErrNotExist)
	case "hang":
		log.Print("waiting for a database that never answers")
		time.Sleep(time.Hour) // select {} alone would be a deadlock to Go, and a crash
	case "exit0":
		log.Print("nothing to do")
		return nil
	case "wait":
		log.Print("waiting for " + waitFor)
		for _, err := os.Stat(waitFor); err != nil; _, err = os.Stat(waitFor) {
			time.Sleep(5 * time.Millisecond)
		}
	}

	h, err := handoff.Open(handoff.Options{})
	if err != nil {
		return err
	}
	network := "tcp"
	if strings.HasPrefix(*addr, "/") {
		network = "unix"
	}
	ln, err := h.Listen("http", network, *addr)
	if err != nil {
		return err
	}
	if fault == "crash-after-ready" {
		if err := h.Ready(); err != nil {
			return err
		}
		panic("the first request was one too many")
	}
	if fault == "complain" { // serves, and logs an error again and again
		go func() {
			for n := 1; ; n++ {
				fmt.Fprintf(os.Stderr, "<3>hello %s: no database (%d)\n", version, n) // the priority, see sd-daemon(3)
				time.Sleep(50 * time.Millisecond)
			}
		}()
	}
	log.Printf("generation %d on %s", h.Generation(), ln.Addr())
	return h.Serve(&http.Server{Handler: mux(h.Draining())}, ln)
}

// mux serves until draining is closed, and what is under way then to its end.
func mux(draining <-chan struct{}) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Version", version)
		fmt.Fprintf(w, "hello from %s, pid %d\n", version, os.Getpid())
	})
	// echo answers with what it was sent, so that a client can tell a lost or
	// doubled byte.
	mux.HandleFunc("POST /", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Version", version)
		io.Copy(w, r.Body)
	})
	mux.HandleFunc("GET /slow", func(w http.ResponseWriter, r *http.Request) {
		d, err := time.ParseDuration(r.URL.Query().Get("for"))
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		w.Header().Set("X-Version", version)
		select {
		case <-time.After(d):
			fmt.Fprintln(w, "done")
		case <-r.Context().Done():
		}
	})
	// upload tells the digest of what it was sent.
	mux.HandleFunc("POST /upload", func(w http.ResponseWriter, r *http.Request) {
		sum := sha256.New()
		n, err := io.Copy(sum, r.Body)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		w.Header().Set("X-Version", version)
		fmt.Fprintf(w, "%x %d\n", sum.Sum(nil), n)
	})
	mux.HandleFunc("GET /events", func(w http.ResponseWriter, r *http.Request) { events(w, r, draining) })
	return mux
}

// events streams events that are numbered from the one after Last-Event-ID on.
// A stream like this has no end of its own, and a drain would wait for it until
// it is cut: so it ends with the drain, and the client opens the next one and
// says where it was. (A stream that moves to the next process as it is needs
// handoff.Track: see examples/chat.)
func events(w http.ResponseWriter, r *http.Request, draining <-chan struct{}) {
	every, err := time.ParseDuration(r.URL.Query().Get("every"))
	if err != nil || every <= 0 {
		every = 50 * time.Millisecond
	}
	n, _ := strconv.ParseUint(r.Header.Get("Last-Event-ID"), 10, 64)
	w.Header().Set("X-Version", version)
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("Cache-Control", "no-store")
	out := http.NewResponseController(w)
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		n++
		if _, err := fmt.Fprintf(w, "id: %d\ndata: hello from %s\n\n", n, version); err != nil {
			return
		}
		if err := out.Flush(); err != nil {
			return
		}
		select {
		case <-tick.C:
		case <-draining:
			return
		case <-r.Context().Done():
			return
		}
	}
}
