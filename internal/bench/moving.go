package main

import (
	"context"
	"encoding/json"
	"log/slog"
	"net"
	"net/http"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/zdt-dev/zdt/handoff"
)

// report is what a generation of the moving service says: where it listens when it starts, and when it has ended what
// became of its connections.
type report struct {
	HTTP, Line string `json:",omitempty"`
	// The last moment before the commit, the one in which net/http let go of the last connection, and how many there were.
	Began, Ended int64 `json:",omitempty"`
	Moved        int   `json:",omitempty"`
}

// lineProtocol is the tracked protocol of the moving service. Nothing is ever said in it.
const lineProtocol = "bench-line/1"

// lineSession travels with each of its connections.
type lineSession struct {
	Parked int64 // Session is asked for in the very moment the connection is taken from its reader
}

// serveMoving is a service whose connections move. It takes the time itself: from the last moment before the commit until
// net/http has let go of the last connection.
func serveMoving() error {
	go exitWithInput()
	var began, ended, moved, open atomic.Int64
	h, err := handoff.Open(handoff.Options{
		Service:   "bench",
		IdleGrace: time.Minute, // what does not move shall be missed
		Logger:    slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn})),
		Health:    func(context.Context) error { began.Store(now()); return nil },
	})
	if err != nil {
		return err
	}
	defer h.Close()
	l := &lineServer{h: h}
	h.OnConn(lineProtocol, l.arrived)
	ln, err := h.Listen("http", "tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	line, err := h.Listen("line", "tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	tell(report{HTTP: ln.Addr().String(), Line: line.Addr().String()})
	go l.accept(line)
	mux := http.NewServeMux()
	mux.HandleFunc("/", answers())
	mux.HandleFunc("/pauses", l.answer)
	srv := &http.Server{Handler: mux, ConnState: func(c net.Conn, s http.ConnState) {
		switch {
		case s == http.StateNew:
			open.Add(1)
		case s == http.StateClosed && began.Load() > 0:
			ended.Store(now())
			moved.Add(1)
			fallthrough
		case s == http.StateClosed:
			open.Add(-1)
		}
	}}
	err = h.Serve(srv, ln)
	for patience := 1000; open.Load() > 0 && patience > 0; patience-- {
		time.Sleep(time.Millisecond) // they have moved, and net/http is about to notice
	}
	tell(report{Began: began.Load(), Ended: ended.Load(), Moved: int(moved.Load())})
	return err
}

// lineServer keeps connections of the tracked protocol.
type lineServer struct {
	h      *handoff.Handoff
	mu     sync.Mutex
	pauses []time.Duration
}

func (l *lineServer) accept(ln net.Listener) {
	for {
		c, err := ln.Accept()
		if err != nil {
			return
		}
		go l.keep(c)
	}
}

func (l *lineServer) keep(c net.Conn) {
	t, err := l.h.Track(c, handoff.Codec{Protocol: lineProtocol, Session: func() (any, error) { return lineSession{now()}, nil }})
	if err != nil {
		c.Close()
		return
	}
	defer t.Close()
	var b [1]byte
	for {
		if _, err := t.Read(b[:]); err != nil {
			return
		}
		t.Boundary(0)
	}
}

func (l *lineServer) arrived(c net.Conn, session json.RawMessage) {
	at := now()
	var s lineSession
	if json.Unmarshal(session, &s) == nil {
		l.mu.Lock()
		l.pauses = append(l.pauses, time.Duration(at-s.Parked))
		l.mu.Unlock()
	}
	l.keep(c)
}

// answer tells the pauses of the connections that came here.
func (l *lineServer) answer(w http.ResponseWriter, r *http.Request) {
	l.mu.Lock()
	pauses := slices.Clone(l.pauses)
	l.mu.Unlock()
	json.NewEncoder(w).Encode(pauses)
}
