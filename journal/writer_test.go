package journal

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// sink is a journald that does nothing but hold a socket.
func sink(t *testing.T, path string) *net.UnixConn {
	t.Helper()
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

func receive(t *testing.T, conn *net.UnixConn) Entry {
	t.Helper()
	buf := make([]byte, 128<<10)
	if err := conn.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	n, err := conn.Read(buf)
	if err != nil {
		t.Fatal(err)
	}
	return decodeNative(t, buf[:n])
}

func newTestWriter(t *testing.T, path string) *Writer {
	t.Helper()
	w := NewWriter(path)
	t.Cleanup(func() {
		if err := w.Close(); err != nil {
			t.Error(err)
		}
	})
	return w
}

func TestWriter(t *testing.T) {
	path := filepath.Join(t.TempDir(), "socket")
	conn, w := sink(t, path), newTestWriter(t, path)
	if err := w.Write(Event{Kind: Fork, Service: "web", PID: 10, PeerPID: 11, Message: "a\nb"}); err != nil {
		t.Fatal(err)
	}
	e := receive(t, conn)
	if e.Get("MESSAGE") != "a\nb" || e.Get(FieldPeerPID) != "11" || e.Get("SYSLOG_IDENTIFIER") != "zdt" {
		t.Errorf("received %q", e.Fields)
	}
	if err := w.Write(Event{Kind: "nonsense"}); err == nil {
		t.Error("an event without a meaning was written")
	}
	if w.Dropped() != 1 {
		t.Errorf("Dropped() = %d, want 1", w.Dropped())
	}
	// The largest event fits into a datagram.
	big := Event{Kind: Exit, Message: strings.Repeat("m", 1<<20)}
	for i := range 20 {
		big.Fields = append(big.Fields, Str(fmt.Sprintf("F%d", i), strings.Repeat("\n", 1<<20)))
	}
	if err := w.Write(big); err != nil {
		t.Fatal(err)
	}
	if e := receive(t, conn); e.Get(FieldCut) == "" || e.Get(FieldEventsLost) != "1" {
		t.Errorf("%s=%q %s=%q", FieldCut, e.Get(FieldCut), FieldEventsLost, e.Get(FieldEventsLost))
	}
}

func TestWriterWithoutJournal(t *testing.T) {
	path := filepath.Join(t.TempDir(), "socket")
	w := newTestWriter(t, path)
	if err := w.Write(Event{Kind: Fork}); !errors.Is(err, ErrNoJournal) {
		t.Errorf("no socket: %v, want ErrNoJournal", err)
	}
	// A container image may have the path without anybody behind it.
	if err := os.WriteFile(path, nil, 0o666); err != nil {
		t.Fatal(err)
	}
	if err := w.Write(Event{Kind: Fork}); !errors.Is(err, ErrNoJournal) {
		t.Errorf("a file: %v, want ErrNoJournal", err)
	}
	if w.Dropped() != 0 {
		t.Errorf("Dropped() = %d; the caller still has those events", w.Dropped())
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	conn := sink(t, path)
	if err := w.Write(Event{Kind: Drain}); err != nil {
		t.Fatalf("journald appeared: %v", err)
	}
	if e := receive(t, conn); e.Get(FieldEvent) != "drain" || e.Get(FieldEventsLost) != "" {
		t.Errorf("received %q", e.Fields)
	}
	var none *Writer
	if err := none.Write(Event{Kind: Fork}); err != ErrNoJournal || none.Dropped() != 0 || none.Close() != nil {
		t.Errorf("a nil Writer: %v", err)
	}
}

// A stopped journald: systemd holds the socket, nobody reads, the queue is
// full. The service must not feel it.
func TestWriterNeverBlocks(t *testing.T) {
	path := filepath.Join(t.TempDir(), "socket")
	conn, w := sink(t, path), newTestWriter(t, path)
	queued := 0
	for ; ; queued++ {
		begin := time.Now()
		err := w.Write(Event{Kind: Drain, Service: fmt.Sprint(queued)})
		took := time.Since(begin)
		if took > 10*writeTimeout {
			t.Fatalf("write %d took %v", queued, took)
		}
		if err == nil {
			continue
		}
		if !errors.Is(err, ErrDropped) {
			t.Fatalf("write %d: %v, want ErrDropped", queued, err)
		}
		if took < writeTimeout/2 {
			t.Errorf("the first event without room waited for %v only", took)
		}
		break
	}
	begin := time.Now()
	var wg sync.WaitGroup
	for range 10 {
		wg.Go(func() {
			for range 20 {
				if err := w.Write(Event{Kind: Drain}); !errors.Is(err, ErrDropped) {
					t.Errorf("error %v, want ErrDropped", err)
				}
			}
		})
	}
	wg.Wait()
	if took := time.Since(begin); took > 10*writeTimeout*20 {
		t.Errorf("20 events each of 10 goroutines took %v", took)
	}
	begin = time.Now()
	for range 40 {
		if err := w.Write(Event{Kind: Drain}); !errors.Is(err, ErrDropped) {
			t.Errorf("error %v, want ErrDropped", err)
		}
	}
	if took := time.Since(begin); took > 40*writeTimeout/2 {
		t.Errorf("40 events to a stalled journald took %v", took)
	}
	if w.Dropped() != 241 {
		t.Errorf("Dropped() = %d, want 241", w.Dropped())
	}

	// Room again: the loss is told once.
	for i := range queued {
		if got := receive(t, conn).Get(FieldService); got != fmt.Sprint(i) {
			t.Fatalf("event %d is %q", i, got)
		}
	}
	for _, want := range []string{"241", ""} {
		if err := w.Write(Event{Kind: Exit}); err != nil {
			t.Fatal(err)
		}
		if got := receive(t, conn).Get(FieldEventsLost); got != want {
			t.Errorf("%s=%q, want %q", FieldEventsLost, got, want)
		}
	}
}

// An event that waits for room gets it within the deadline.
func TestWriterWaitsForRoom(t *testing.T) {
	path := filepath.Join(t.TempDir(), "socket")
	conn, w := sink(t, path), newTestWriter(t, path)
	queued := 0
	for w.Write(Event{Kind: Drain}) == nil {
		queued++
	}
	w.stalled = false // as if the queue had just filled up
	written := make(chan error)
	go func() { written <- w.Write(Event{Kind: Exit}) }()
	receive(t, conn)
	if err := <-written; err != nil {
		t.Errorf("with room after %d events: %v", queued, err)
	}
}

func TestWriterSurvivesNewSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "socket")
	conn, w := sink(t, path), newTestWriter(t, path)
	if err := w.Write(Event{Kind: Fork}); err != nil {
		t.Fatal(err)
	}
	receive(t, conn)
	conn.Close()
	os.Remove(path) // net does so itself for some ways to listen
	if err := w.Write(Event{Kind: Listen}); !errors.Is(err, ErrNoJournal) {
		t.Errorf("socket gone: %v, want ErrNoJournal", err)
	}
	conn = sink(t, path)
	if err := w.Write(Event{Kind: Drain}); err != nil {
		t.Fatalf("new socket: %v", err)
	}
	if e := receive(t, conn); e.Get(FieldEvent) != "drain" {
		t.Errorf("received %q", e.Fields)
	}
	// And without an event in between: the first write after it succeeds.
	conn.Close()
	os.Remove(path)
	conn = sink(t, path)
	if err := w.Write(Event{Kind: Exit}); err != nil {
		t.Fatalf("another socket: %v", err)
	}
	receive(t, conn)
	if w.Dropped() != 0 {
		t.Errorf("Dropped() = %d", w.Dropped())
	}
}

func TestWriterConcurrently(t *testing.T) {
	path := filepath.Join(t.TempDir(), "socket")
	conn, w := sink(t, path), newTestWriter(t, path)
	const writers, each = 8, 50
	var wg sync.WaitGroup
	for i := range writers {
		wg.Go(func() {
			for j := range each {
				if err := w.Write(Event{Kind: Drain, Generation: uint64(i), PID: j}); err != nil {
					t.Error(err)
				}
				w.Dropped()
			}
		})
	}
	for range writers * each {
		receive(t, conn)
	}
	wg.Wait()
}

func TestWriterClosed(t *testing.T) {
	path := filepath.Join(t.TempDir(), "socket")
	sink(t, path)
	w := NewWriter(path)
	if err := w.Write(Event{Kind: Fork}); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Write(Event{Kind: Fork}); err != ErrClosed {
		t.Errorf("error %v, want ErrClosed", err)
	}
}
