package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/zdt-dev/zdt/examples/internal/staging"
	"github.com/zdt-dev/zdt/handoff/control"
)

func TestMain(m *testing.M) { staging.Main(m, main) }

// Ten upgrades in a row, and no member notices: each has one connection, and hears every message once and in the room's order.
func TestUpgrades(t *testing.T) {
	const talkers, upgrades = 4, 10
	s := staging.Start(t)
	stop := make(chan struct{})
	var busy sync.WaitGroup
	said := make([]int, talkers)
	errs := make([]error, talkers)
	members := []*member{joinEvents(t, s), joinWebSocket(t, s), joinWebSocket(t, s), joinEvents(t, s)}
	half, fragments := members[1], members[2]
	for i := range talkers {
		m := joinWebSocket(t, s)
		members = append(members, m)
		busy.Go(func() { said[i], errs[i] = m.talk(fmt.Sprint("talker", i), 4*i, stop) })
	}
	idle := joinWebSocket(t, s) // hears all, says nothing
	members = append(members, idle)
	for i := range upgrades {
		// A frame cut anywhere; a message of which the first fragment has come, and a part of a ping after it.
		text := fmt.Sprintf("in the middle of upgrade %d", i)
		frame := masked(0x80|byte(opText), []byte(text))
		cut := 1 + rand.IntN(len(frame)-1)
		half.send(frame[:cut])
		ping := masked(0x80|byte(opPing), fmt.Append(nil, i))
		fragments.send(append(masked(byte(opText), []byte("first ")), ping[:3]...))
		staging.AwaitRead(t, half.conn.LocalAddr().String())
		staging.AwaitRead(t, fragments.conn.LocalAddr().String())

		counts := s.Upgrade()
		if want := (control.Counts{Moved: len(members)}); counts != want {
			t.Errorf("upgrade %d: %+v, want %+v", i, counts, want)
		}

		half.send(frame[cut:])
		half.await(text)
		fragments.send(append(ping[3:], masked(0x80|byte(opContinuation), fmt.Append(nil, "second ", i))...))
		fragments.await(fmt.Sprint("first second ", i))
		fragments.until("the ping is answered", func() bool { return len(fragments.pongs) == i+1 && fragments.pongs[i] == fmt.Sprint(i) })
	}
	close(stop)
	busy.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
	idle.say("the end")
	for _, m := range members {
		m.await("the end")
	}

	room := compare(t, members)
	count := map[string]int{}
	for _, text := range room {
		count[text]++
	}
	total := 1 + 2*upgrades
	for i, n := range said {
		total += n
		for j := range n {
			if text := fmt.Sprintf("talker%d %d %s", i, j, strings.Repeat("x", j%300)); count[text] != 1 {
				t.Errorf("%.80q was heard %d times", text, count[text])
			}
		}
	}
	if len(room) != total {
		t.Errorf("the room has %d messages, %d were said", len(room), total)
	}
}

// While an upgrade is undecided the members sit in two processes, and are in one room all the same.
func TestTwoProcesses(t *testing.T) {
	for _, test := range []struct {
		name string
		end  func(*staging.Service)
	}{
		{"committed", func(s *staging.Service) { s.Commit(); s.AwaitIdle(2) }},
		{"undone", (*staging.Service).Abort},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := staging.Start(t)
			old := []*member{joinWebSocket(t, s), joinEvents(t, s)}
			old[0].say("before")
			s.Hold()
			young := []*member{joinWebSocket(t, s), joinEvents(t, s)}
			stop := make(chan struct{})
			var busy sync.WaitGroup
			var errs [2]error
			busy.Go(func() { _, errs[0] = old[0].talk("old", 2, stop) })
			busy.Go(func() { _, errs[1] = young[0].talk("young", 2, stop) })
			for _, m := range append(old, young...) {
				m.await("old 20 " + strings.Repeat("x", 20))
				m.await("young 20 " + strings.Repeat("x", 20))
			}
			test.end(s)
			close(stop)
			busy.Wait()
			if err := errors.Join(errs[:]...); err != nil {
				t.Fatal(err)
			}
			young[0].say("after")
			members := append(old, young...)
			for _, m := range members {
				m.await("after")
			}
			compare(t, members)
			s.Await("all four are here", func(st control.Status) bool { return st.Connections.Streams == 4 })
		})
	}
}

// In a room where always something is said, the members move all the same.
func TestBusyRoom(t *testing.T) {
	s := staging.Start(t)
	stop := make(chan struct{})
	var busy sync.WaitGroup
	var errs [4]error
	for i := range errs {
		m := joinWebSocket(t, s)
		m.say("hello")
		busy.Go(func() { _, errs[i] = m.talk(fmt.Sprint("talker", i), 1000, stop) })
	}
	for range 3 {
		if counts := s.Upgrade(); counts.Moved != len(errs) {
			t.Errorf("%+v", counts)
		}
	}
	close(stop)
	busy.Wait()
	if err := errors.Join(errs[:]...); err != nil {
		t.Error(err)
	}
}

// A member that does not read costs the others nothing, and is given up.
func TestSlowReader(t *testing.T) {
	if testing.Short() {
		t.Skip("waits for a deadline of the server")
	}
	s := staging.Start(t)
	m := joinWebSocket(t, s)
	dialSlow(t, s)
	s.Await("both are here", func(st control.Status) bool { return st.Connections.Streams == 2 })
	big := strings.Repeat("x", maxMessage-10)
	for i := 0; ; i++ {
		m.say(fmt.Sprint(i, big))
		st, err := s.Status()
		if err != nil {
			t.Fatal(err)
		}
		if st.Connections.Streams == 1 {
			break
		}
	}
	m.all()
}

// When the service stops the members are told, and it does not wait for more.
func TestStop(t *testing.T) {
	s := staging.Start(t)
	m, events := joinWebSocket(t, s), joinEvents(t, s)
	m.say("hello")
	st, err := s.Status()
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Kill(st.PID, unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	bye, err := m.awaitEnd()
	if err != io.EOF || len(bye) < 2 || binary.BigEndian.Uint16(bye) != closeGoingAway {
		t.Errorf("the WebSocket ended with %q, %v", bye, err)
	}
	if _, err := events.awaitEnd(); err != io.EOF {
		t.Errorf("the events ended with %v", err)
	}
	s.AwaitExit(st.PID)
}

func TestClose(t *testing.T) {
	s := staging.Start(t)
	for _, test := range []struct {
		name string
		sent []byte
		want string
	}{
		{"normal", masked(0x88, closePayload(1000, "bye")), string(closePayload(1000, ""))},
		{"without a code", masked(0x88, nil), ""},
		{"not masked", []byte{0x81, 0x00}, string(closePayload(closeProtocol, "a client's frame has to be masked"))},
		{"binary", masked(0x82, nil), string(closePayload(closeUnsupported, "only text here"))},
	} {
		t.Run(test.name, func(t *testing.T) {
			m := joinWebSocket(t, s)
			m.say("hello")
			m.send(test.sent)
			if bye, err := m.awaitEnd(); err != io.EOF || string(bye) != test.want {
				t.Errorf("close frame %q, %v, want %q", bye, err, test.want)
			}
		})
	}
}

// Names come before what is said, also after a move.
func TestName(t *testing.T) {
	s := staging.Start(t)
	ann := join(t, s, "/ws?name=ann", upgradeHeader)
	ann.send(masked(0x81, []byte("hello")))
	ann.await("ann: hello")
	s.Upgrade()
	ann.send(masked(0x81, []byte("again")))
	ann.await("ann: again")
}

// A listener that was away gets what it missed, as far as the room has it.
func TestLastEventID(t *testing.T) {
	s := staging.Start(t)
	m := joinWebSocket(t, s)
	for i := range 5 {
		m.say(fmt.Sprint("message ", i))
	}
	for _, test := range []struct {
		header string
		first  int64
	}{
		{"Last-Event-ID: 2\r\n", 3},
		{"Last-Event-ID: 5\r\n", 6},
		{"Last-Event-ID: 99\r\n", 6},
		{"Last-Event-ID: x\r\n", 6},
		{"", 6},
	} {
		back := join(t, s, "/events", test.header)
		t.Cleanup(func() {
			back.await("done")
			if got := back.all()[0].Seq; got != test.first {
				t.Errorf("%q: the first message is %d, want %d", test.header, got, test.first)
			}
		})
	}
	m.say("done")
}

func TestRequests(t *testing.T) {
	s := staging.Start(t)
	for _, test := range []struct {
		method, target string
		status         int
		text           string
	}{
		{"GET", "/", http.StatusOK, "new WebSocket"},
		{"GET", "/other", http.StatusNotFound, ""},
		{"GET", "/ws", http.StatusUpgradeRequired, "this is a WebSocket"},
		{"POST", "/ws", http.StatusMethodNotAllowed, ""},
		{"HEAD", "/events", http.StatusMethodNotAllowed, ""},
		{"GET", "/ws?name=" + strings.Repeat("x", maxName+1), http.StatusBadRequest, "32 bytes at most"},
		{"GET", "/ws?name=%0a", http.StatusBadRequest, "printable"},
	} {
		req, err := http.NewRequest(test.method, "http://"+s.Addr+test.target, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := http.DefaultTransport.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || resp.StatusCode != test.status || !strings.Contains(string(body), test.text) {
			t.Errorf("%s %s: %s %.200q, %v", test.method, test.target, resp.Status, body, err)
		}
	}
}

// Bytes that a client sends right behind its request belong to the WebSocket, although net/http has read them.
func TestAhead(t *testing.T) {
	s := staging.Start(t)
	m := join(t, s, "/ws", upgradeHeader, masked(0x81, []byte("early"))...)
	m.await("early")
}

func TestDefaultPath(t *testing.T) {
	for _, test := range []struct{ state, runtime, want string }{
		{"/var/lib/chat", "/run/chat", "/var/lib/chat/room.log"},
		{"", "/run/chat:/run/zdt/chat", "/run/chat/room.log"},
		{"", "", "room.log"},
	} {
		t.Setenv("STATE_DIRECTORY", test.state)
		t.Setenv("RUNTIME_DIRECTORY", test.runtime)
		if got := defaultPath(); got != test.want {
			t.Errorf("%q, want %q", got, test.want)
		}
	}
}
