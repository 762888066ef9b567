// Command chat is a chat whose members stay connected while its program is
// replaced: WebSocket at /ws, server-sent events at /events, a page at /.
//
// A connection that moves takes its seat along (server.go, client.go). The room
// itself is a log that both processes share for the time of an upgrade (room.go,
// log.go). WebSocket is as much of RFC 6455 as a chat needs (handshake.go, frame.go).
package main

import (
	"context"
	"flag"
	"log"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/zdt-dev/zdt/handoff"
)

const (
	maxMessage = 16 << 10 // bytes
	maxName    = 32       // bytes
	keepLog    = 1 << 20  // bytes of the room; a client may fall behind by as much
)

func main() {
	if err := run(); err != nil {
		log.Print(err)
		os.Exit(1)
	}
}

func run() error {
	addr := flag.String("listen", ":8080", "address to bind when no socket is inherited")
	path := flag.String("room", defaultPath(), "`file` of the room, the same for every release")
	flag.Parse()
	log.SetFlags(0)
	log.SetPrefix("chat: ")

	h, err := handoff.Open(handoff.Options{})
	if err != nil {
		return err
	}
	defer h.Close()
	ln, err := h.Listen("http", "tcp", *addr)
	if err != nil {
		return err
	}
	room, err := openRoom(*path, keepLog)
	if err != nil {
		return err
	}
	defer room.close()

	// Not a task of h.Go, which the drain ends at its beginning: members sit here
	// until the last of them has moved.
	ctx, cancel := context.WithCancel(context.Background())
	var others sync.WaitGroup
	defer others.Wait()
	defer cancel()
	others.Go(func() { room.follow(ctx) })
	// An upgrade is nothing to the members. Only when the whole service stops
	// they are told goodbye.
	stop, cancel := signal.NotifyContext(ctx, syscall.SIGTERM, syscall.SIGINT)
	defer cancel()
	defer context.AfterFunc(stop, room.end)()

	s := &server{h: h, room: room}
	h.OnConn(speaksWebSocket, s.resume(speaksWebSocket, (*client).speak))
	h.OnConn(speaksEvents, s.resume(speaksEvents, (*client).listen))
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", s.page)
	mux.HandleFunc("GET /ws", s.webSocket)
	mux.HandleFunc("GET /events", s.events)
	log.Printf("generation %d on %s", h.Generation(), ln.Addr())
	return h.Serve(&http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}, ln)
}

// defaultPath keeps the room where systemd lets the service keep things, else in
// the working directory. Either may name several directories.
func defaultPath() string {
	for _, name := range []string{"STATE_DIRECTORY", "RUNTIME_DIRECTORY"} {
		if dir, _, _ := strings.Cut(os.Getenv(name), ":"); dir != "" {
			return filepath.Join(dir, "room.log")
		}
	}
	return "room.log"
}
