package main

import (
	"bufio"
	_ "embed"
	"encoding/json"
	"io"
	"log"
	"net"
	"net/http"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/zdt-dev/zdt/handoff"
)

// server has the two ways in which a client comes to its seat: by a request,
// and from another generation.
type server struct {
	h    *handoff.Handoff
	room *room
}

//go:embed page.html
var page []byte

func (s *server) page(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.Write(page)
}

// webSocket makes the connection of a request a WebSocket. ?name= is put before
// what its client says.
func (s *server) webSocket(w http.ResponseWriter, r *http.Request) {
	name := r.FormValue("name")
	if len(name) > maxName || !utf8.ValidString(name) || strings.ContainsFunc(name, unicode.IsControl) {
		http.Error(w, "a name has "+strconv.Itoa(maxName)+" bytes at most, all of them printable", http.StatusBadRequest)
		return
	}
	accept, status, why := upgradeKey(r)
	if why != "" {
		if status == http.StatusUpgradeRequired {
			w.Header().Set("Upgrade", "websocket")
			w.Header().Set("Connection", "Upgrade")
			w.Header().Set("Sec-WebSocket-Version", "13")
		}
		http.Error(w, why, status)
		return
	}
	s.hijack(w, r, seat{Name: name, Next: s.room.now()}, speaksWebSocket, "HTTP/1.1 101 Switching Protocols\r\n"+
		"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: "+accept+"\r\n\r\n", (*client).speak)
}

// events makes the connection of a request a stream of server-sent events. A
// browser that was disconnected asks for what it missed, and gets it if the room
// still has it.
//
// The stream is hijacked and not a long response: net/http would not let a
// connection go in the middle of one. It has no length, so its end is that of
// the connection.
func (s *server) events(w http.ResponseWriter, r *http.Request) {
	next := s.room.now()
	if last, err := strconv.ParseInt(r.Header.Get("Last-Event-ID"), 10, 64); err == nil && last > 0 && last < next {
		if _, err := s.room.from(last + 1); err == nil {
			next = last + 1
		}
	}
	s.hijack(w, r, seat{Next: next}, speaksEvents, "HTTP/1.1 200 OK\r\n"+
		"Content-Type: text/event-stream\r\nCache-Control: no-store\r\nConnection: close\r\n\r\n", (*client).listen)
}

// hijack takes the connection from net/http, makes it movable and serves it.
func (s *server) hijack(w http.ResponseWriter, r *http.Request, seat seat, speaks, head string, serve func(*client)) {
	if r.Method != http.MethodGet { // a pattern with GET lets HEAD in as well
		http.Error(w, "only GET", http.StatusMethodNotAllowed)
		return
	}
	conn, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		http.Error(w, "only over HTTP/1.1", http.StatusHTTPVersionNotSupported)
		return
	}
	c := &client{room: s.room, seat: seat, ahead: ahead(buffered.Reader)}
	if err := c.track(s.h, conn, speaks); err != nil {
		log.Print(err)
		return
	}
	// The answer goes out before the first Read, so before any move.
	if c.write([]byte(head)) != nil {
		c.conn.Close()
		return
	}
	serve(c)
}

// ahead returns what r has read and not given out.
func ahead(r *bufio.Reader) []byte {
	b := make([]byte, r.Buffered())
	io.ReadFull(r, b) // from the buffer alone: it cannot fail
	return b
}

// resume returns what goes on with a connection that another generation served.
func (s *server) resume(speaks string, serve func(*client)) func(net.Conn, json.RawMessage) {
	return func(conn net.Conn, session json.RawMessage) {
		c := &client{room: s.room}
		err := json.Unmarshal(session, &c.seat)
		if err == nil {
			err = c.track(s.h, conn, speaks)
		}
		if err != nil {
			log.Print("take a connection over: ", err)
			conn.Close()
			return
		}
		serve(c)
	}
}
