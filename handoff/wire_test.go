package handoff

import (
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestChooseVersion(t *testing.T) {
	for _, tt := range []struct {
		peer, peerMin int
		want          int // 0: none
	}{
		{1, 1, 1},
		{2, 1, 2},
		{2, 2, 2},
		{9, 0, 2},
		{4, 3, 0},
		{0, 0, 0},
		{-1, -1, 0},
	} {
		got, err := chooseVersion(tt.peer, tt.peerMin)
		var misfit *versionError
		if got != tt.want || (err != nil) != (tt.want == 0) || err != nil && !errors.As(err, &misfit) {
			t.Errorf("chooseVersion(%d, %d) = %d, %v", tt.peer, tt.peerMin, got, err)
		}
	}
	_, err := chooseVersion(4, 3)
	if want := "the peer speaks versions 3 to 4, this program 1 to 2"; err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("%v, want %q", err, want)
	}
}

func TestDecodeMessage(t *testing.T) {
	for _, tt := range []struct {
		packet string
		flags  int
		want   messageType // "": an error
	}{
		{`{"type":"ready"}`, 0, msgReady},
		{`{"type":"ready","added":{"by":["a","newer"]}}`, 0, msgReady},
		{`{"type":"not known yet"}`, 0, "not known yet"},
		{`{"type":"ready"}`, msgTrunc, ""},
		{`{"type":""}`, 0, ""},
		{`{}`, 0, ""},
		{`{"type":"hello","version":"one"}`, 0, ""},
		{`{"type":"hello"`, 0, ""},
		{``, 0, ""},
		{`null`, 0, ""},
	} {
		m, err := decodeMessage([]byte(tt.packet), tt.flags)
		if m.Type != tt.want || (err == nil) != (tt.want != "") {
			t.Errorf("%s: %+v, %v", tt.packet, m, err)
		}
		if err != nil && !errors.Is(err, errPacket) {
			t.Errorf("%s: %v is taken for the end of the link", tt.packet, err)
		}
	}
}

func FuzzDecodeMessage(f *testing.F) {
	f.Add([]byte(`{"type":"hello","version":1,"min_version":1,"pid":7,"generation":2,"txid":"t","control_fd":5}`), 0)
	f.Add([]byte(`{"type":"bye","connections":{"idle":1}}`), 0)
	f.Add([]byte(`[]`), msgTrunc)
	f.Fuzz(func(t *testing.T, packet []byte, flags int) {
		m, err := decodeMessage(packet, flags)
		if err == nil && m.Type == "" {
			t.Error("a message without a type")
		}
		if err != nil && (m.Type != "" || !errors.Is(err, errPacket)) {
			t.Errorf("%+v, %v", m, err)
		}
	})
}

// pair returns two ends of a wire.
func pair(t *testing.T) (a, b *link) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	if a, err = newLink(fds[0]); err != nil {
		t.Fatal(err)
	}
	if b, err = newLink(fds[1]); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.close(); b.close() })
	return a, b
}

func TestLink(t *testing.T) {
	a, b := pair(t)
	messages, stop := make(chan message), make(chan struct{})
	go b.pump(messages, stop)
	a.send(message{Type: msgReady})
	a.conn.Write([]byte("what a newer peer says, and nobody here can read"))
	a.send(message{Type: msgCommit})
	for _, want := range []messageType{msgReady, msgCommit} {
		if m := <-messages; m.Type != want {
			t.Errorf("got %q, want %q", m.Type, want)
		}
	}
	// What was said before the end is heard before the end.
	a.send(message{Type: msgBye})
	a.close()
	if m := <-messages; m.Type != msgBye {
		t.Errorf("got %q, want %q", m.Type, msgBye)
	}
	if _, ok := <-messages; ok {
		t.Error("a message after the end")
	}
	if err := b.send(message{Type: msgReady}); !brokenPipe(err) {
		t.Errorf("send to nobody: %v", err)
	}
}

// The kernel reports the reset by a peer that left something unread before what
// that peer has said.
func TestLastWordsOfAPeerThatDidNotListen(t *testing.T) {
	a, b := pair(t)
	b.send(message{Type: msgProgress})
	a.send(message{Type: msgReady})
	a.send(message{Type: msgQuit})
	a.close()
	messages := make(chan message)
	go b.pump(messages, make(chan struct{}))
	var got []messageType
	for m := range messages {
		got = append(got, m.Type)
	}
	if !slices.Equal(got, []messageType{msgReady, msgQuit}) {
		t.Errorf("heard %q", got)
	}
}

func TestPumpLetsGo(t *testing.T) {
	a, b := pair(t)
	messages, stop := make(chan message), make(chan struct{})
	ended := make(chan struct{})
	go func() { defer close(ended); b.pump(messages, stop) }()
	a.send(message{Type: msgReady}) // nobody takes it
	close(stop)
	<-ended
}

// A peer that reads nothing holds nobody up.
func TestSendToPeerThatDoesNotRead(t *testing.T) {
	if testing.Short() {
		t.Skip("waits for a time-out")
	}
	t.Parallel()
	a, _ := pair(t)
	began := time.Now()
	for {
		if err := a.send(message{Type: msgProgress, Reason: strings.Repeat("x", 1000)}); err != nil {
			break
		}
	}
	if took := time.Since(began); took > writeTimeout+5*time.Second {
		t.Errorf("took %v", took)
	}
}

func TestReceiveTruncated(t *testing.T) {
	a, b := pair(t)
	a.send(message{Type: msgAbort, Reason: strings.Repeat("x", maxPacket)})
	if m, err := b.receive(); !errors.Is(err, errPacket) {
		t.Errorf("%+v, %v", m.Type, err)
	}
	a.close()
	if _, err := b.receive(); !errors.Is(err, io.EOF) {
		t.Errorf("%v, want EOF", err)
	}
}
