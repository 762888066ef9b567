package helper

import (
	"bytes"
	"fmt"
	"net"
	"runtime"
	"strconv"
	"testing"
	"time"
)

// Whoever floods waits, and so does nothing else.
func TestMailboxFlood(t *testing.T) {
	m := newMailbox(t, "", myself())
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: m.Path(), Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	text := bytes.Repeat([]byte("x"), 1000)
	sent := 0
	flood := func() {
		for {
			conn.SetWriteDeadline(time.Now().Add(20 * time.Millisecond))
			if _, err := conn.Write(append(fmt.Appendf(nil, "STATUS=%d\nX=", sent), text...)); err != nil {
				return // it has to wait
			}
			sent++
		}
	}
	flood()
	if sent == 0 || sent > 2000 {
		t.Fatalf("%d messages wait somewhere", sent)
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for i := range 1500 {
		if i >= sent {
			flood()
		}
		n := next(t, m)
		if v, _ := n.first("STATUS"); v != strconv.Itoa(i) {
			t.Fatalf("message %d is %s", i, v)
		}
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	if after.HeapAlloc > before.HeapAlloc+1<<20 {
		t.Errorf("heap grew from %d to %d", before.HeapAlloc, after.HeapAlloc)
	}
}

// After the burst, it goes at a pace.
func TestMailboxPace(t *testing.T) {
	m := newMailbox(t, "", myself())
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: m.Path(), Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	over := make(chan struct{})
	go func() {
		defer close(over)
		for {
			if _, err := conn.Write([]byte("WATCHDOG=1")); err != nil {
				return
			}
		}
	}()
	defer func() { conn.Close(); <-over }()
	const extra = 200
	began := time.Now()
	for range mailBurst + extra {
		next(t, m)
	}
	if took := time.Since(began); took < (extra-1)*mailPause {
		t.Errorf("%d messages in %v", mailBurst+extra, took)
	}
}
