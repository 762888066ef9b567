package handoff

import "testing"

// What a record believes of net/http holds for the Go of these tests.
func TestServerReads(t *testing.T) {
	if err := probeServer(); err != nil {
		t.Error(err)
	}
	for _, p := range probes {
		held, known := probeHeld(p.sent)
		if known && held != p.held || p.known && !known {
			t.Errorf("after %q: %q, known %v; want %q, %v", p.sent, held, known, p.held, p.known)
		}
	}
}

// A server that reads in another way is found out.
func TestRecordIsNotFooled(t *testing.T) {
	for _, tt := range []struct {
		what    string
		size    int
		waiting bool
	}{
		{"a smaller buffer", 2048, true},
		{"a larger buffer", 8192, true},
		{"more held than was ever given", serverBuffer - 3, true},
		{"parsing already", serverBuffer, false},
	} {
		var r record
		r.begin()
		r.gave([]byte("GE"))
		r.request()
		r.response()
		if r.offered(tt.size, tt.waiting); r.known() {
			t.Errorf("%s: the record says it knows", tt.what)
		}
	}
}

func TestRecordTail(t *testing.T) {
	for _, pieces := range [][]string{{"abcdef"}, {"abc", "def"}, {"abcde", "f"}, {"abcd", "e", "f"}, {"a", "b", "c", "d", "e", "f"}, {"abcd", "ef"}} {
		var r record
		r.begin()
		r.request()
		for _, p := range pieces {
			r.gave([]byte(p))
		}
		r.response()
		r.offered(serverBuffer-3, true)
		if !r.known() || string(r.pending) != "def" {
			t.Errorf("%q: holds %q, known %v", pieces, r.pending, r.known())
		}
	}
}

// Requests that the server had whole in its buffer leave no trace but the tail.
func TestRecordPipeline(t *testing.T) {
	var r record
	r.begin()
	r.gave([]byte("one and two, and the body of two is three, 123"))
	r.request() // one
	r.response()
	r.request() // two: nothing was read for it
	r.gave([]byte("45"))
	r.response()
	r.offered(serverBuffer-3, true)
	if !r.known() || string(r.pending) != "345" {
		t.Errorf("holds %q, known %v", r.pending, r.known())
	}
	r.request()
	r.response()
	r.offered(serverBuffer, false) // parses already
	r.gave([]byte("6"))
	if r.known() {
		t.Error("knows what is parsed")
	}
	r.request()
	r.response()
	r.offered(serverBuffer-2, true)
	if !r.known() || string(r.pending) != "56" {
		t.Errorf("holds %q, known %v", r.pending, r.known())
	}
}

func TestRecordBounds(t *testing.T) {
	var r record
	r.begin()
	for range maxPending / 1024 {
		r.gave(make([]byte, 1024))
	}
	if !r.known() {
		t.Error("lost too early")
	}
	r.gave([]byte{1})
	if r.known() || r.pending != nil {
		t.Errorf("keeps %d bytes", len(r.pending))
	}
	r.boundary(0)
	if !r.known() {
		t.Error("a boundary does not help")
	}
	r.gave([]byte("ab"))
	if r.boundary(3); r.known() {
		t.Error("the program holds more than it was given")
	}
	r.begin()
	r.gave([]byte("PRI * HTTP/2.0\r\n\r\n"))
	if r.known() {
		t.Error("an HTTP/2 connection is taken for one that can move")
	}
}

func BenchmarkProbeServer(b *testing.B) {
	for b.Loop() {
		if err := probeServer(); err != nil {
			b.Fatal(err)
		}
	}
}
