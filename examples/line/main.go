// Command line is a server of a protocol of its own, over bare TCP, whose
// clients stay connected while its program is replaced. A client sends lines; each
// comes back behind its number on this connection:
//
//	hello
//	1 hello
//	again
//	2 again
//
// What it takes is in three places: Session says what the next process has to
// know of a connection, Boundary which bytes this one has used, and OnConn is
// where a connection goes on.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"log"
	"net"
	"os"
	"time"

	"github.com/zdt-dev/zdt/handoff"
)

const (
	// speaks names the protocol and the format of its session. A release that
	// changes what session means calls it line/2, and registers an OnConn for
	// line/1 too if it understands that: what nobody takes stays in the old process
	// until it ends.
	speaks = "line/1"

	maxLine      = 4096            // bytes, with the newline
	writeTimeout = 5 * time.Second // how long a client may take no byte of an answer
	stopTimeout  = 5 * time.Second // how long clients may stay when the service stops
)

// session is all there is to a connection besides its socket. It travels as JSON.
type session struct {
	Lines int `json:"lines"` // answered so far
}

func main() {
	if err := run(); err != nil {
		log.Print(err)
		os.Exit(1)
	}
}

func run() error {
	addr := flag.String("listen", ":7000", "address to bind when no socket is inherited")
	flag.Parse()
	log.SetFlags(0)
	log.SetPrefix("line: ")

	h, err := handoff.Open(handoff.Options{StreamTimeout: stopTimeout})
	if err != nil {
		return err
	}
	defer h.Close()
	ln, err := h.Listen("line", "tcp", *addr)
	if err != nil {
		return err
	}
	// Connections come in two ways: from clients, below, and from the other
	// generation, with their session. Before Ready, since that tells the other
	// generation what is taken here.
	h.OnConn(speaks, func(conn net.Conn, text json.RawMessage) {
		var s session
		if err := json.Unmarshal(text, &s); err != nil {
			log.Print("take a connection over: ", err)
			conn.Close()
			return
		}
		serve(h, conn, s)
	})
	if err := h.Ready(); err != nil {
		return err
	}
	log.Printf("generation %d on %s", h.Generation(), ln.Addr())
	for {
		conn, err := ln.Accept()
		if errors.Is(err, net.ErrClosed) {
			break // this generation is done
		}
		if err != nil {
			log.Print(err)
			time.Sleep(50 * time.Millisecond) // out of descriptors, most likely: some will be free again
			continue
		}
		h.Go(func(context.Context) { serve(h, conn, session{}) })
	}
	<-h.Done()
	return nil
}

// serve answers lines until the client goes, or the connection does.
func serve(h *handoff.Handoff, conn net.Conn, s session) {
	t, err := h.Track(conn, handoff.Codec{
		Protocol: speaks,
		// Called within t.Read below, so never while s changes.
		Session: func() (any, error) { return s, nil },
	})
	if err != nil {
		log.Print(err)
		conn.Close()
		return
	}
	defer t.Close()
	r := bufio.NewReaderSize(t, maxLine)
	for {
		// ErrMoved ends this goroutine as the end of the connection does: another
		// process serves it. Should half a line have come, that goes along.
		line, err := r.ReadSlice('\n')
		if errors.Is(err, bufio.ErrBufferFull) {
			fmt.Fprintf(t, "! a line has %d bytes at most\n", maxLine)
			return
		}
		if err != nil {
			return
		}
		s.Lines++
		// One Write is one message: it comes before the move as a whole, or not
		// at all. The deadline is there because a connection cannot move while a
		// Write waits.
		t.SetWriteDeadline(time.Now().Add(writeTimeout))
		if _, err := fmt.Fprintf(t, "%d %s", s.Lines, line); err != nil {
			return
		}
		// The line is counted and answered, so s is true for all bytes but those
		// that r holds already. Without this call, the next process would get the
		// line again, and count and answer it twice.
		t.Boundary(r.Buffered())
	}
}
