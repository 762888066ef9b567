package handoff_test

import (
	"context"
	"errors"
	"log"
	"net"
	"net/http"
	"runtime"
	"time"

	"github.com/zdt-dev/zdt/handoff"
)

// A service reads its configuration anew and listens on another address, with
// the same server and no request lost.
func ExampleListener_Swap() {
	h, err := handoff.Open(handoff.Options{})
	if err != nil {
		log.Fatal(err)
	}
	ln, err := h.Listen("http", "tcp", ":8080")
	if err != nil {
		log.Fatal(err)
	}
	reload := func(address string) error {
		next, err := net.Listen("tcp", address)
		if err != nil {
			return err
		}
		err = ln.Swap(next)
		if err != nil {
			next.Close() // ours still
		}
		if errors.Is(err, handoff.ErrHandingOver) {
			log.Print("try again when the upgrade is over")
		}
		return err
	}
	http.HandleFunc("POST /reload", func(w http.ResponseWriter, r *http.Request) {
		if err := reload(r.FormValue("address")); err != nil {
			http.Error(w, err.Error(), http.StatusConflict)
		}
	})
	if err := h.Serve(&http.Server{}, ln); err != nil {
		log.Fatal(err)
	}
}

// A worker for each processor, with an accept queue of its own.
func ExampleHandoff_ListenReusePort() {
	h, err := handoff.Open(handoff.Options{})
	if err != nil {
		log.Fatal(err)
	}
	group, err := h.ListenReusePort("http", "tcp", ":8080", runtime.GOMAXPROCS(0))
	if err != nil {
		log.Fatal(err)
	}
	srv := &http.Server{}
	ended := make(chan error, len(group)) // more than asked for, when the predecessor had more
	for _, ln := range group {
		go func() { ended <- h.Serve(srv, ln) }()
	}
	for range group {
		if err := <-ended; err != nil {
			log.Fatal(err)
		}
	}
}

// A worker beside the server: it ends with its generation, and comes back
// should the successor die.
func ExampleHandoff_OnResume() {
	h, err := handoff.Open(handoff.Options{})
	if err != nil {
		log.Fatal(err)
	}
	sweep := func(ctx context.Context) {
		tick := time.NewTicker(time.Minute)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				log.Print("remove what has expired")
			case <-ctx.Done():
				return
			}
		}
	}
	h.Go(sweep)
	h.OnResume(sweep)
	ln, err := h.Listen("http", "tcp", ":8080")
	if err != nil {
		log.Fatal(err)
	}
	if err := h.Serve(&http.Server{}, ln); err != nil {
		log.Fatal(err)
	}
}
