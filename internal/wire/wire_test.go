package wire

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
		got, err := ChooseVersion(tt.peer, tt.peerMin)
		var misfit *versionError
		if got != tt.want || (err != nil) != (tt.want == 0) || err != nil && !errors.As(err, &misfit) {
			t.Errorf("chooseVersion(%d, %d) = %d, %v", tt.peer, tt.peerMin, got, err)
		}
	}
	_, err := ChooseVersion(4, 3)
	if want := "the peer speaks versions 3 to 4, this program 1 to 2"; err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("%v, want %q", err, want)
	}
}

func TestDecodeMessage(t *testing.T) {
	for _, tt := range []struct {
		packet string
		flags  int
		want   Type // "": an error
	}{
		{`{"type":"ready"}`, 0, Ready},
		{`{"type":"ready","added":{"by":["a","newer"]}}`, 0, Ready},
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
		if err != nil && !errors.Is(err, ErrPacket) {
			t.Errorf("%s: %v is taken for the end of the link", tt.packet, err)
		}
	}
}

// A peer that could name descriptors would have them closed, or used, here.
func TestDecodeNamesNoDescriptors(t *testing.T) {
	m, err := decodeMessage([]byte(`{"type":"move","files":[0,1],"Files":[2],"-":[3]}`), 0)
	if err != nil || m.Files != nil {
		t.Errorf("%+v, %v", m, err)
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
		if err != nil && (m.Type != "" || !errors.Is(err, ErrPacket)) {
			t.Errorf("%+v, %v", m, err)
		}
	})
}

// pair returns two ends of a wire.
func pair(t *testing.T) (a, b *Link) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	if a, err = NewLink(fds[0]); err != nil {
		t.Fatal(err)
	}
	if b, err = NewLink(fds[1]); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close(); b.Close() })
	return a, b
}

func TestLink(t *testing.T) {
	a, b := pair(t)
	messages, stop := make(chan Message), make(chan struct{})
	go b.Pump(messages, stop)
	a.Send(Message{Type: Ready})
	a.Conn.Write([]byte("what a newer peer says, and nobody here can read"))
	a.Send(Message{Type: Commit})
	for _, want := range []Type{Ready, Commit} {
		if m := <-messages; m.Type != want {
			t.Errorf("got %q, want %q", m.Type, want)
		}
	}
	// What was said before the end is heard before the end.
	a.Send(Message{Type: Bye})
	a.Close()
	if m := <-messages; m.Type != Bye {
		t.Errorf("got %q, want %q", m.Type, Bye)
	}
	if _, ok := <-messages; ok {
		t.Error("a message after the end")
	}
	if err := b.Send(Message{Type: Ready}); !BrokenPipe(err) {
		t.Errorf("send to nobody: %v", err)
	}
}

// The kernel reports the reset by a peer that left something unread before what
// that peer has said.
func TestLastWordsOfAPeerThatDidNotListen(t *testing.T) {
	a, b := pair(t)
	b.Send(Message{Type: Progress})
	a.Send(Message{Type: Ready})
	a.Send(Message{Type: Quit})
	a.Close()
	messages := make(chan Message)
	go b.Pump(messages, make(chan struct{}))
	var got []Type
	for m := range messages {
		got = append(got, m.Type)
	}
	if !slices.Equal(got, []Type{Ready, Quit}) {
		t.Errorf("heard %q", got)
	}
}

func TestPumpLetsGo(t *testing.T) {
	a, b := pair(t)
	messages, stop := make(chan Message), make(chan struct{})
	ended := make(chan struct{})
	go func() { defer close(ended); b.Pump(messages, stop) }()
	a.Send(Message{Type: Ready}) // nobody takes it
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
		if err := a.Send(Message{Type: Progress, Reason: strings.Repeat("x", 1000)}); err != nil {
			break
		}
	}
	if took := time.Since(began); took > writeTimeout+5*time.Second {
		t.Errorf("took %v", took)
	}
}

func TestReceiveTruncated(t *testing.T) {
	a, b := pair(t)
	a.Send(Message{Type: Abort, Reason: strings.Repeat("x", MaxPacket)})
	if m, err := b.Receive(); !errors.Is(err, ErrPacket) {
		t.Errorf("%+v, %v", m.Type, err)
	}
	a.Close()
	if _, err := b.Receive(); !errors.Is(err, io.EOF) {
		t.Errorf("%v, want EOF", err)
	}
}
