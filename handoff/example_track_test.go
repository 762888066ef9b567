package handoff_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"time"

	"github.com/zdt-dev/zdt/handoff"
)

// A protocol of the program's own whose connections move to the successor: it
// counts the lines of each connection, which is all the successor has to know.
// See examples/line for this as a program.
func ExampleHandoff_Track() {
	h, err := handoff.Open(handoff.Options{})
	if err != nil {
		log.Fatal(err)
	}
	ln, err := h.Listen("count", "tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	type session struct {
		Lines int `json:"lines"`
	}
	serve := func(conn net.Conn, s session) {
		t, err := h.Track(conn, handoff.Codec{
			Protocol: "count/1",
			Session:  func() (any, error) { return s, nil },
		})
		if err != nil {
			conn.Close()
			return
		}
		defer t.Close()
		r := bufio.NewReader(t)
		for {
			line, err := r.ReadString('\n')
			if err != nil {
				return // ErrMoved among others: the successor serves it
			}
			s.Lines++
			if _, err := fmt.Fprintf(t, "%d %s", s.Lines, line); err != nil {
				return
			}
			t.Boundary(r.Buffered())
		}
	}
	// From another generation, in the middle of the connection's life.
	h.OnConn("count/1", func(conn net.Conn, text json.RawMessage) {
		var s session
		if err := json.Unmarshal(text, &s); err != nil {
			conn.Close()
			return
		}
		serve(conn, s)
	})
	if err := h.Ready(); err != nil {
		log.Fatal(err)
	}
	go func() {
		c, err := net.Dial("tcp", ln.Addr().String())
		if err != nil {
			log.Fatal(err)
		}
		defer c.Close()
		io.WriteString(c, "hello\nagain\n")
		c.(*net.TCPConn).CloseWrite()
		answer, _ := io.ReadAll(c)
		fmt.Print(string(answer))
		h.Close() // what SIGTERM does with more patience
	}()
	for {
		conn, err := ln.Accept()
		if errors.Is(err, net.ErrClosed) {
			break // this generation is done
		}
		if err != nil {
			log.Fatal(err)
		}
		h.Go(func(context.Context) { serve(conn, session{}) })
	}
	<-h.Done()
	// Output:
	// 1 hello
	// 2 again
}

// Who writes without being asked — a chat, a ticker — leaves the writing to the
// goroutine that reads, and ends its Read when there is something to write. A
// connection moves in Read alone, so what was written and what the session says of
// it can never come apart. See examples/chat for this as a program.
func ExampleTracked_writer() {
	var h *handoff.Handoff          // of Open
	var conn net.Conn               // of Accept or OnConn
	var next int                    // of the session, or 0
	var due func(n int) []string    // the messages from n on, none when there is none yet
	var subscribe func(wake func()) // wake is called whenever there are more
	t, err := h.Track(conn, handoff.Codec{
		Protocol: "news/1",
		Session:  func() (any, error) { return next, nil },
	})
	if err != nil {
		log.Fatal(err)
	}
	defer t.Close()
	subscribe(func() { t.SetReadDeadline(time.Now().Add(time.Millisecond)) })
	in := make([]byte, 512)
	for {
		t.SetReadDeadline(time.Time{}) // before looking: what comes after the look ends the Read
		for _, message := range due(next) {
			if _, err := io.WriteString(t, message); err != nil {
				return
			}
			next++
		}
		_, err := t.Read(in)
		t.Boundary(0) // nothing that clients say matters here
		if timeout, ok := err.(net.Error); err != nil && !(ok && timeout.Timeout()) {
			return // gone, or moved
		}
	}
}
