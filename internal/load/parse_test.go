package load

import (
	"bufio"
	"bytes"
	"io"
	"strings"
	"testing"
)

func TestSequence(t *testing.T) {
	for _, tc := range []struct {
		name                     string
		numbers                  []uint64
		lost, doubled, reordered int
	}{
		{"in order", []uint64{7, 8, 9}, 0, 0, 0},
		{"a gap", []uint64{1, 2, 5, 6}, 2, 0, 0},
		{"again", []uint64{1, 2, 2, 3}, 0, 1, 0},
		{"exchanged", []uint64{1, 3, 2, 4}, 0, 0, 1},
		{"late, and again", []uint64{1, 4, 2, 2, 5}, 1, 1, 1},
		{"before the first", []uint64{5, 4}, 0, 1, 0},
		{"far ahead", []uint64{0, 1 << 62}, maxMissing, 0, 0},
		{"the last numbers", []uint64{1<<64 - 2, 1<<64 - 1}, 0, 0, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var s sequence
			lost, doubled, reordered := 0, 0, 0
			for _, n := range tc.numbers {
				l, d, r := s.take(n)
				lost, doubled, reordered = lost+l, doubled+d, reordered+r
			}
			if lost != tc.lost || doubled != tc.doubled || reordered != tc.reordered {
				t.Errorf("lost %d, doubled %d, reordered %d; want %d, %d, %d", lost, doubled, reordered, tc.lost, tc.doubled, tc.reordered)
			}
		})
	}
}

func TestMessage(t *testing.T) {
	text := composeMessage(12, 34)
	if !strings.HasPrefix(text, "C12 34 ") || text == composeMessage(12, 35) || strings.ContainsAny(text, "\r\n") {
		t.Errorf("%q", text)
	}
	if sender, n, intact, ok := parseMessage(text); sender != 12 || n != 34 || !intact || !ok {
		t.Errorf("%q is read as %d, %d, %t, %t", text, sender, n, intact, ok)
	}
	if _, _, intact, ok := parseMessage(text[:len(text)-1]); intact || !ok {
		t.Error("a message without its last byte is taken for whole")
	}
	if _, _, _, ok := parseMessage("hello"); ok {
		t.Error("anything is taken for a message")
	}
}

func TestReadEvent(t *testing.T) {
	r := bufio.NewReader(strings.NewReader(": hi\n\nid: 1\n\nid:2\r\ndata: a\r\ndata:  b\r\n\r\nretry: 9\ndata\n\nid: 9\ndata: cut off\n"))
	for _, want := range []event{{"2", "a\n b"}, {"", ""}} {
		if got, err := readEvent(r); err != nil || got != want {
			t.Errorf("event %+v, %v, want %+v", got, err, want)
		}
	}
	if _, err := readEvent(r); err != io.EOF {
		t.Error(err)
	}
	for _, tc := range []struct {
		e    event
		n    uint64
		text string
		ok   bool
	}{
		{event{"7", "hello"}, 7, "hello", true},
		{event{"7", "7 hello"}, 7, "hello", true},
		{event{"", "7 hello"}, 7, "hello", true},
		{event{"7", "8 hello"}, 7, "8 hello", true},
		{event{"x", "hello"}, 0, "hello", false},
	} {
		if n, text, ok := tc.e.number(); ok != tc.ok || ok && (n != tc.n || text != tc.text) {
			t.Errorf("%+v has number %d, %q, %t", tc.e, n, text, ok)
		}
	}
}

// A service may send anything: whatever it is, it is read within bounds and without a panic.
func FuzzReadFrame(f *testing.F) {
	for _, s := range [][]byte{{0x81, 2, 'h', 'i'}, {0x01, 1, 'h', 0x80, 1, 'i'}, {0x88, 0}, {0x81, 126, 0, 200}, {0x81, 127, 0xff, 0, 0, 0, 0, 0, 0, 1}} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		r := bufio.NewReader(bytes.NewReader(data))
		read := 0
		for {
			fr, err := readFrame(r)
			if err != nil {
				return
			}
			if read += 2 + len(fr.payload); read > len(data) || len(fr.payload) > maxFrame {
				t.Fatalf("%d bytes out of %d", read, len(data))
			}
		}
	})
}

func FuzzReadEvent(f *testing.F) {
	f.Add([]byte("id: 1\ndata: x\n\n: c\n\ndata: 2 y\n\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		r := bufio.NewReader(bytes.NewReader(data))
		for {
			e, err := readEvent(r)
			if err != nil {
				return
			}
			e.number()
		}
	})
}

func FuzzMessage(f *testing.F) {
	f.Add(composeMessage(1, 2))
	f.Add("C4294967295 18446744073709551615 x")
	f.Fuzz(func(t *testing.T, text string) {
		sender, n, intact, ok := parseMessage(text)
		if intact && (!ok || composeMessage(sender, n) != text) {
			t.Errorf("%q is not intact", text)
		}
		numbered(text)
	})
}
