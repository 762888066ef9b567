package load_test

import (
	"bufio"
	"crypto/sha1"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/zdt-dev/zdt/internal/load"
)

// fault is what a server of streams does to the messages it sends on: it gets each one's number, from 1, and returns what
// to send in its place.
type fault func(n int, message string) []string

func none(n int, m string) []string { return []string{m} }

// at applies a fault to message 5 alone.
func at5(f func(m string) []string) func() fault {
	return func() fault {
		return func(n int, m string) []string {
			if n != 5 {
				return []string{m}
			}
			return f(m)
		}
	}
}

// swapped exchanges messages 5 and 6.
func swapped() fault {
	var held string
	return func(n int, m string) []string {
		switch n {
		case 5:
			held = m
			return nil
		case 6:
			return []string{m, held}
		}
		return []string{m}
	}
}

// garbled changes a byte in the middle of the message's payload.
func garbled(m string) []string {
	b := []byte(m)
	b[len(b)-1] ^= 1
	return []string{string(b)}
}

// talk is a server of streams for one connection: it calls send with what a client would be sent.
type talk func(conn net.Conn, r *bufio.Reader, f fault)

func serveEvents(conn net.Conn, r *bufio.Reader, f fault) {
	if !request(r) {
		return
	}
	io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
	for n := 1; ; n++ {
		for _, m := range f(n, fmt.Sprint(n, " tick")) {
			id, data, _ := strings.Cut(m, " ")
			e := fmt.Sprintf(": comment\n\nid: %s\nevent: tick\ndata: %s\n\n", id, data)
			if _, err := fmt.Fprintf(conn, "%x\r\n%s\r\n", len(e), e); err != nil {
				return
			}
		}
		time.Sleep(100 * time.Microsecond)
	}
}

func serveLines(conn net.Conn, r *bufio.Reader, f fault) {
	for n := 1; ; n++ {
		line, err := r.ReadString('\n')
		if err != nil {
			return
		}
		for _, m := range f(n, fmt.Sprintf("%d %s", n, strings.TrimSuffix(line, "\n"))) {
			io.WriteString(conn, m+"\n")
		}
	}
}

// room is a chat of all its connections.
type room struct {
	mu      sync.Mutex
	seq     int
	members map[net.Conn]fault
}

func (rm *room) serve(conn net.Conn, r *bufio.Reader, f fault) {
	req, err := http.ReadRequest(r)
	if err != nil {
		return
	}
	sum := sha1.Sum([]byte(req.Header.Get("Sec-WebSocket-Key") + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"))
	fmt.Fprintf(conn, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: %s\r\n\r\n", base64.StdEncoding.EncodeToString(sum[:]))
	rm.mu.Lock()
	rm.members[conn] = f
	conn.Write([]byte{0x89, 2, 'h', 'i'}) // a ping, whose answer is awaited
	rm.mu.Unlock()
	defer func() {
		rm.mu.Lock()
		delete(rm.members, conn)
		rm.mu.Unlock()
	}()
	for said, ponged := 0, false; ; said++ {
		op, text, err := clientFrame(r)
		switch {
		case err != nil:
			return
		case op == 0xa:
			ponged = string(text) == "hi"
			continue
		case said > 3 && !ponged: // the ping came before the answer to the first message
			return
		}
		rm.mu.Lock()
		rm.seq++
		for c, f := range rm.members {
			for _, m := range f(rm.seq, fmt.Sprintf("%d %s", rm.seq, text)) {
				// In two fragments, as it may come.
				half := len(m) / 2
				c.Write(serverFrame(0x01, m[:half]))
				c.Write(serverFrame(0x80, m[half:]))
			}
		}
		rm.mu.Unlock()
	}
}

func serverFrame(first byte, text string) []byte {
	if len(text) < 126 {
		return append([]byte{first, byte(len(text))}, text...)
	}
	return append(binary.BigEndian.AppendUint16([]byte{first, 126}, uint16(len(text))), text...)
}

func clientFrame(r *bufio.Reader) (op byte, payload []byte, err error) {
	var head [2]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return 0, nil, err
	}
	n := int(head[1] & 0x7f)
	if n == 126 {
		var long [2]byte
		if _, err := io.ReadFull(r, long[:]); err != nil {
			return 0, nil, err
		}
		n = int(binary.BigEndian.Uint16(long[:]))
	}
	masked := make([]byte, 4+n)
	_, err = io.ReadFull(r, masked)
	for i := range masked[4:] {
		masked[4+i] ^= masked[i%4]
	}
	return head[0] & 0xf, masked[4:], err
}

func TestStreams(t *testing.T) {
	rooms := func() talk { return (&room{members: make(map[net.Conn]fault)}).serve }
	protocols := []struct {
		name  string
		cfg   load.Config
		serve func() talk
	}{
		{"events", load.Config{Events: 2}, func() talk { return serveEvents }},
		{"lines", load.Config{Lines: 2}, func() talk { return serveLines }},
		{"websocket", load.Config{WebSockets: 3}, rooms},
	}
	type want struct{ lost, doubled, reordered, wrong, cut bool }
	for _, f := range []struct {
		name string
		make func() fault
		want want
	}{
		{"good", func() fault { return none }, want{}},
		{"lost", at5(func(string) []string { return nil }), want{lost: true}},
		{"doubled", at5(func(m string) []string { return []string{m, m} }), want{doubled: true}},
		{"reordered", swapped, want{reordered: true}},
		{"garbled", at5(garbled), want{wrong: true}},
		{"numbered anew", at5(func(m string) []string { return []string{"x" + m} }), want{wrong: true}},
	} {
		for _, p := range protocols {
			t.Run(p.name+"/"+f.name, func(t *testing.T) {
				if p.name == "events" && f.name == "garbled" {
					t.Skip("these events say nothing that could be garbled")
				}
				t.Parallel()
				serve := p.serve()
				addr := serveRaw(t, func(conn *net.TCPConn, r *bufio.Reader) { serve(conn, r, f.make()) })
				cfg := alone(addr, p.cfg)
				cfg.Timeout = 200 * time.Millisecond // for an own message that is never heard
				r := run(t, cfg, func(r load.Report) bool { return r.Messages >= 100 })
				got := want{r.Lost > 0, r.Doubled > 0, r.Reordered > 0, r.Wrong > 0, r.Cut > 0}
				if f.name != "good" {
					// What cannot be told whose it is, is missing as well; and a client that waits for it opens another
					// connection in the end.
					got.lost = got.lost && f.want.lost
				}
				if got != f.want {
					t.Errorf("want %+v: %s", f.want, r)
				}
				if f.name == "good" && (r.Losses() > 0 || r.Reconnects > 0) {
					t.Error(r)
				}
			})
		}
	}
}

// The end of a stream is a cut, in whatever way it comes, and what was not answered is lost.
func TestStreamsCut(t *testing.T) {
	for _, tc := range []struct {
		name   string
		cfg    load.Config
		handle func(conn *net.TCPConn, r *bufio.Reader)
		lost   bool
	}{
		{"events, in order", load.Config{Events: 1}, func(conn *net.TCPConn, r *bufio.Reader) {
			request(r)
			io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n")
		}, false},
		{"events, half way", load.Config{Events: 1}, func(conn *net.TCPConn, r *bufio.Reader) {
			request(r)
			io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\nid: 1\ndata: x\n\nid: 2\n")
		}, false},
		{"events, before they begin", load.Config{Events: 1}, func(conn *net.TCPConn, r *bufio.Reader) { request(r) }, false},
		{"lines", load.Config{Lines: 1}, func(conn *net.TCPConn, r *bufio.Reader) { r.ReadString('\n') }, true},
		{"lines, by reset", load.Config{Lines: 1}, func(conn *net.TCPConn, r *bufio.Reader) { r.Peek(1); conn.SetLinger(0) }, true},
		{"websocket, by a close frame", load.Config{WebSockets: 1}, func(conn *net.TCPConn, r *bufio.Reader) {
			handshake(conn, r)
			clientFrame(r)
			conn.Write([]byte{0x88, 2, 3, 0xe9})
		}, true},
		{"websocket, at the handshake", load.Config{WebSockets: 1}, func(conn *net.TCPConn, r *bufio.Reader) { request(r) }, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			r := run(t, alone(serveRaw(t, tc.handle), tc.cfg), func(r load.Report) bool { return r.Cut >= 3 })
			if r.Reconnects < 2 || r.Failed > 0 || tc.lost != (r.Lost > 0) || r.Kinds[load.Cut] != r.Cut {
				t.Error(r)
			}
		})
	}
}

func handshake(conn net.Conn, r *bufio.Reader) {
	req, err := http.ReadRequest(r)
	if err != nil {
		return
	}
	sum := sha1.Sum([]byte(req.Header.Get("Sec-WebSocket-Key") + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"))
	fmt.Fprintf(conn, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: %s\r\n\r\n", base64.StdEncoding.EncodeToString(sum[:]))
}

// A server of lines that loses or doubles a line on the way in sends back what is numbered as if nothing had been.
func TestLinesMiscounted(t *testing.T) {
	for _, tc := range []struct {
		name  string
		count func(n int) int
		ok    func(r load.Report) bool
	}{
		{"one more", func(n int) int { return n + n/5 - n/6 + max(0, n/6) }, func(r load.Report) bool { return r.Doubled > 0 && r.Lost == 0 }},
		{"one less", func(n int) int { return n - n/7 }, func(r load.Report) bool { return r.Lost > 0 && r.Doubled == 0 }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			addr := serveRaw(t, func(conn *net.TCPConn, r *bufio.Reader) {
				for n := 1; ; n++ {
					line, err := r.ReadString('\n')
					if err != nil {
						return
					}
					fmt.Fprintf(conn, "%d %s", tc.count(n), line)
				}
			})
			r := run(t, alone(addr, load.Config{Lines: 1}), func(r load.Report) bool { return r.Messages > 50 })
			if !tc.ok(r) || r.Reconnects > 0 || r.Failed > 0 {
				t.Error(r)
			}
		})
	}
}

// Clients of several loads share a room without taking each other's messages for their own.
func TestTwoLoadsInARoom(t *testing.T) {
	rm := &room{members: make(map[net.Conn]fault)}
	addr := serveRaw(t, func(conn *net.TCPConn, r *bufio.Reader) { rm.serve(conn, r, none) })
	other := load.Start(alone(addr, load.Config{WebSockets: 2}))
	defer other.Stop()
	r := run(t, alone(addr, load.Config{WebSockets: 2}), func(r load.Report) bool { return r.Requests > 50 })
	if r2 := other.Stop(); r.Losses()+r2.Losses() > 0 || r.Messages < r.Requests {
		t.Errorf("%s\n%s", r, r2)
	}
}
