package main

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/zdt-dev/zdt/examples/internal/staging"
)

// member is a client that has one connection and never gets another. A goroutine hears for it.
type member struct {
	t    *testing.T
	conn net.Conn
	r    *bufio.Reader
	news chan struct{} // one token: there is something new below

	mu    sync.Mutex
	heard []message
	pongs []string
	bye   []byte // payload of the close frame
	ended error
}

// join connects to the chat, over WebSocket at /ws or to the events. more follows the request at once.
func join(t *testing.T, s *staging.Service, target, header string, more ...byte) *member {
	t.Helper()
	conn, err := net.Dial("tcp", s.Addr)
	if err != nil {
		t.Fatal(err)
	}
	m := &member{t: t, conn: conn, r: bufio.NewReader(conn), news: make(chan struct{}, 1)}
	m.send(append(fmt.Appendf(nil, "GET %s HTTP/1.1\r\nHost: chat\r\n%s\r\n", target, header), more...))
	resp, err := http.ReadResponse(m.r, nil)
	if err != nil {
		t.Fatal(err)
	}
	hear, status := m.hearFrame, http.StatusSwitchingProtocols
	if target == "/events" {
		hear, status = m.hearEvent, http.StatusOK
	}
	if resp.StatusCode != status {
		t.Fatalf("GET %s: %s", target, resp.Status)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		var err error
		for err == nil {
			err = hear()
			m.mu.Lock()
			m.ended = err
			m.mu.Unlock()
			select {
			case m.news <- struct{}{}:
			default:
			}
		}
	}()
	t.Cleanup(func() { conn.Close(); <-done })
	return m
}

const upgradeHeader = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"

func joinWebSocket(t *testing.T, s *staging.Service) *member {
	t.Helper()
	return join(t, s, "/ws", upgradeHeader)
}

func joinEvents(t *testing.T, s *staging.Service) *member {
	t.Helper()
	return join(t, s, "/events", "")
}

// hearFrame reads one frame of the server, each a whole message.
func (m *member) hearFrame() error {
	var head [2]byte
	if _, err := io.ReadFull(m.r, head[:]); err != nil {
		return err
	}
	size := int(head[1])
	if size == 126 {
		var long [2]byte
		if _, err := io.ReadFull(m.r, long[:]); err != nil {
			return err
		}
		size = int(binary.BigEndian.Uint16(long[:]))
	}
	payload := make([]byte, size)
	if _, err := io.ReadFull(m.r, payload); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	switch opcode(head[0]) {
	case 0x80 | opText:
		return m.note(string(payload))
	case 0x80 | opPong:
		m.pongs = append(m.pongs, string(payload))
		return nil
	case 0x80 | opClose:
		m.bye = payload
		if b, err := io.ReadAll(m.r); len(b) > 0 || err != nil {
			return fmt.Errorf("after the close frame: %q, %v", b, err)
		}
		return io.EOF
	}
	return fmt.Errorf("frame %x", head)
}

// hearEvent reads one server-sent event, each of one line here.
func (m *member) hearEvent() error {
	var lines [3]string
	for i := range lines {
		var err error
		if lines[i], err = m.r.ReadString('\n'); err != nil {
			return err
		}
	}
	id, ok1 := strings.CutPrefix(lines[0], "id: ")
	data, ok2 := strings.CutPrefix(lines[1], "data: ")
	if !ok1 || !ok2 || lines[2] != "\n" || !strings.HasPrefix(data, strings.TrimSpace(id)+" ") {
		return fmt.Errorf("event %q", lines)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.note(strings.TrimSuffix(data, "\n"))
}

// note takes "<seq> <text>"; each seq has to follow the one before. The caller holds mu.
func (m *member) note(line string) error {
	number, text, _ := strings.Cut(line, " ")
	seq, err := strconv.ParseInt(number, 10, 64)
	if err != nil {
		return fmt.Errorf("message %q", line)
	}
	if n := len(m.heard); n > 0 && seq != m.heard[n-1].Seq+1 {
		return fmt.Errorf("message %.80q after number %d", line, m.heard[n-1].Seq)
	}
	m.heard = append(m.heard, message{seq, text})
	return nil
}

// send writes bytes as they are.
func (m *member) send(b []byte) {
	m.t.Helper()
	if _, err := m.conn.Write(b); err != nil {
		m.t.Fatal(err)
	}
}

// say says text and waits until it is heard.
func (m *member) say(text string) {
	m.t.Helper()
	m.mu.Lock()
	before := len(m.heard)
	m.mu.Unlock()
	m.send(masked(0x80|byte(opText), []byte(text)))
	m.until(fmt.Sprintf("%.80q is heard", text), func() bool { return m.has(before, text) })
}

// has reports whether text was heard, as message from of this member or later. The caller holds mu.
func (m *member) has(from int, text string) bool {
	return slices.ContainsFunc(m.heard[from:], func(got message) bool { return got.Text == text })
}

// await waits until the member has heard text.
func (m *member) await(text string) {
	m.t.Helper()
	m.until(fmt.Sprintf("%.80q is heard", text), func() bool { return m.has(0, text) })
}

// until waits until cond holds of what the member has heard.
func (m *member) until(what string, cond func() bool) {
	m.t.Helper()
	if err := m.wait(what, cond); err != nil {
		m.t.Fatal(err)
	}
}

func (m *member) wait(what string, cond func() bool) error {
	late := time.NewTimer(20 * time.Second)
	defer late.Stop()
	for {
		m.mu.Lock()
		holds, ended := cond(), m.ended
		m.mu.Unlock()
		switch {
		case holds:
			return nil
		case ended != nil:
			return fmt.Errorf("before %s: %w", what, ended)
		}
		select {
		case <-m.news:
		case <-late.C:
			return fmt.Errorf("waited in vain until %s", what)
		}
	}
}

// talk says one thing after the other until stop is closed, with up to ahead of them not heard yet. It returns when all
// are heard, and how many they are.
func (m *member) talk(name string, ahead int, stop <-chan struct{}) (said int, err error) {
	at, heard := 0, 0
	for stopped := false; ; {
		select {
		case <-stop:
			stopped, ahead = true, 0
		default:
			text := fmt.Sprintf("%s %d %s", name, said, strings.Repeat("x", said%300))
			if _, err := m.conn.Write(masked(0x80|byte(opText), []byte(text))); err != nil {
				return said, fmt.Errorf("%s: %w", name, err)
			}
			said++
		}
		err := m.wait("what was said is heard", func() bool {
			for ; at < len(m.heard); at++ {
				if strings.HasPrefix(m.heard[at].Text, name+" ") {
					heard++
				}
			}
			return heard >= said-ahead
		})
		if err != nil || stopped {
			return said, err
		}
	}
}

// all is what the member has heard. It must be connected still.
func (m *member) all() []message {
	m.t.Helper()
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.ended != nil {
		m.t.Errorf("the connection has ended: %v", m.ended)
	}
	return m.heard
}

// awaitEnd waits until the connection has ended.
func (m *member) awaitEnd() (bye []byte, err error) {
	m.t.Helper()
	staging.Eventually(m.t, "the connection ends", func() bool {
		m.mu.Lock()
		defer m.mu.Unlock()
		bye, err = m.bye, m.ended
		return err != nil
	})
	return bye, err
}

// compare holds what members have heard against each other: whatever two of them have heard under one number is the
// same. It returns the room as it was.
func compare(t *testing.T, members []*member) map[int64]string {
	t.Helper()
	room := map[int64]string{}
	for i, m := range members {
		for _, got := range m.all() {
			if text, ok := room[got.Seq]; ok && text != got.Text {
				t.Fatalf("member %d has heard %.80q as %d, another one %.80q", i, got.Text, got.Seq, text)
			}
			room[got.Seq] = got.Text
		}
	}
	return room
}

// dialSlow joins, with a small buffer, and reads nothing after the handshake.
func dialSlow(t *testing.T, s *staging.Service) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", s.Addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if err := conn.(*net.TCPConn).SetReadBuffer(4096); err != nil {
		t.Fatal(err)
	}
	if _, err := fmt.Fprintf(conn, "GET /ws HTTP/1.1\r\nHost: chat\r\n%s\r\n", upgradeHeader); err != nil {
		t.Fatal(err)
	}
	return conn
}
