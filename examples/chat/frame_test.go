package main

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"strings"
	"testing"
)

// masked is a frame as a client sends it.
func masked(first byte, payload []byte) []byte {
	b := []byte{first}
	switch n := len(payload); {
	case n < 126:
		b = append(b, 0x80|byte(n))
	case n <= 0xffff:
		b = binary.BigEndian.AppendUint16(append(b, 0x80|126), uint16(n))
	default:
		b = binary.BigEndian.AppendUint64(append(b, 0x80|127), uint64(n))
	}
	mask := []byte{0x37, 0xfa, 0x21, 0x3d}
	b = append(b, mask...)
	for i, x := range payload {
		b = append(b, x^mask[i%4])
	}
	return b
}

func TestParseFrame(t *testing.T) {
	const limit = 70000
	for _, test := range []struct {
		name string
		in   []byte
		want frame
	}{
		// The example of RFC 6455 §5.7.
		{"hello", []byte{0x81, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58}, frame{true, opText, []byte("Hello")}},
		{"nothing", masked(0x81, nil), frame{true, opText, nil}},
		{"fragment", masked(0x01, []byte("Hel")), frame{false, opText, []byte("Hel")}},
		{"continuation", masked(0x80, []byte("lo")), frame{true, opContinuation, []byte("lo")}},
		{"binary", masked(0x82, []byte{0}), frame{true, opBinary, []byte{0}}},
		{"ping", masked(0x89, bytes.Repeat([]byte("x"), 125)), frame{true, opPing, bytes.Repeat([]byte("x"), 125)}},
		{"two bytes of length", masked(0x81, bytes.Repeat([]byte("x"), 126)), frame{true, opText, bytes.Repeat([]byte("x"), 126)}},
		{"eight bytes of length", masked(0x81, bytes.Repeat([]byte("x"), 1<<16)), frame{true, opText, bytes.Repeat([]byte("x"), 1<<16)}},
		{"the limit", masked(0x81, bytes.Repeat([]byte("x"), limit)), frame{true, opText, bytes.Repeat([]byte("x"), limit)}},
	} {
		t.Run(test.name, func(t *testing.T) {
			in := append(bytes.Clone(test.in), "more"...)
			got, n, err := parseFrame(in, limit)
			if err != nil || n != len(test.in) {
				t.Fatalf("%d of %d bytes, error %v", n, len(test.in), err)
			}
			if got.final != test.want.final || got.op != test.want.op || !bytes.Equal(got.payload, test.want.payload) {
				t.Errorf("%+v, want %+v", got, test.want)
			}
			if !bytes.Equal(in[:n], test.in) {
				t.Error("the input was changed")
			}
			for cut := range min(len(test.in), 200) {
				if _, n, err := parseFrame(test.in[:cut], limit); n != 0 || err != nil {
					t.Fatalf("%d bytes of it: %d, %v", cut, n, err)
				}
			}
			if _, n, err := parseFrame(test.in[:len(test.in)-1], limit); n != 0 || err != nil {
				t.Errorf("without its last byte: %d, %v", n, err)
			}
		})
	}
}

func TestParseFrameRefuses(t *testing.T) {
	for _, test := range []struct {
		name string
		in   []byte
		code int
	}{
		{"not masked", []byte{0x81, 0x05}, closeProtocol},
		{"reserved bit", []byte{0xc1, 0x85}, closeProtocol},
		{"opcode 3", []byte{0x83, 0x80}, closeProtocol},
		{"opcode 11", []byte{0x8b, 0x80}, closeProtocol},
		{"ping in fragments", []byte{0x09, 0x80}, closeProtocol},
		{"long ping", []byte{0x89, 0xfe}, closeProtocol},
		{"125 bytes in two bytes of length", []byte{0x81, 0xfe, 0, 125}, closeProtocol},
		{"65535 bytes in eight", []byte{0x81, 0xff, 0, 0, 0, 0, 0, 0, 0xff, 0xff}, closeProtocol},
		{"negative", []byte{0x81, 0xff, 0x80, 0, 0, 0, 0, 0, 0, 0}, closeProtocol},
		{"too big for the limit", []byte{0x81, 0xfe, 0x03, 0xe9}, closeTooBig},
		{"too big for anything", []byte{0x81, 0xff, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, closeTooBig},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, n, err := parseFrame(test.in, 1000)
			if e := (*closeError)(nil); n != 0 || !errors.As(err, &e) || e.code != test.code {
				t.Errorf("%d, %v, want code %d", n, err, test.code)
			}
		})
	}
}

// Whatever comes in: no panic, no payload over the limit, a whole frame never waits, and a half one never ends
// differently for having come in two pieces.
func FuzzParseFrame(f *testing.F) {
	f.Add([]byte{0x81, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58}, 4)
	f.Add(masked(0x81, bytes.Repeat([]byte("x"), 126)), 3)
	f.Add([]byte{0x81, 0xff, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, 9)
	f.Add(masked(0x88, closePayload(1000, "bye")), 1)
	f.Fuzz(func(t *testing.T, b []byte, cut int) {
		const limit = 300
		before := bytes.Clone(b)
		got, n, err := parseFrame(b, limit)
		if !bytes.Equal(b, before) {
			t.Fatal("the input was changed")
		}
		if n < 0 || n > len(b) || len(got.payload) > limit || err != nil && n != 0 {
			t.Fatalf("%+v, %d of %d bytes, %v", got, n, len(b), err)
		}
		if n > 0 {
			again, m, err := parseFrame(b[:n], limit)
			if m != n || err != nil || !bytes.Equal(again.payload, got.payload) {
				t.Fatalf("without what follows: %+v, %d, %v", again, m, err)
			}
		}
		if n == 0 && err == nil && len(b) > 14+limit {
			t.Fatalf("%d bytes are no frame yet", len(b))
		}
		if cut < 0 || cut > len(b) {
			return
		}
		if _, m, e := parseFrame(b[:cut], limit); e == nil && m == 0 {
			return // more was needed
		} else if m != n || (e == nil) != (err == nil) {
			t.Fatalf("the first %d bytes: %d, %v; all: %d, %v", cut, m, e, n, err)
		}
	})
}

func TestAppendFrame(t *testing.T) {
	for _, size := range []int{0, 1, 125, 126, 65535, 65536} {
		payload := bytes.Repeat([]byte("x"), size)
		b := appendFrame([]byte("before"), opText, payload)[len("before"):]
		// Masked with zeros, it is a client's frame of the same content.
		at := len(b) - size
		client := append(bytes.Clone(b[:at]), 0, 0, 0, 0)
		client = append(client, b[at:]...)
		client[1] |= 0x80
		f, n, err := parseFrame(client, 1<<20)
		if err != nil || n != len(client) || !f.final || f.op != opText || !bytes.Equal(f.payload, payload) {
			t.Errorf("%d bytes: %d of %d, %v", size, n, len(client), err)
		}
	}
}

func TestParseClose(t *testing.T) {
	for _, test := range []struct {
		payload []byte
		code    int // of the answer
	}{
		{nil, closeNoCode},
		{[]byte{3}, closeProtocol},
		{closePayload(1000, ""), 1000},
		{closePayload(4999, "my reasons"), 4999},
		{closePayload(999, ""), closeProtocol},
		{closePayload(1005, ""), closeNoCode},
		{[]byte{3, 0xed}, closeProtocol}, // 1005 in words
		{closePayload(2999, ""), closeProtocol},
		{[]byte{3, 0xe8, 0xff}, closeInvalidText},
	} {
		code, err := parseClose(test.payload)
		if e := (*closeError)(nil); errors.As(err, &e) {
			code = e.code
		}
		if code != test.code {
			t.Errorf("%q: %d, want %d", test.payload, code, test.code)
		}
	}
	if long := closePayload(closePolicy, strings.Repeat("ä", 100)); len(long) != 124 {
		t.Errorf("a long reason makes %d bytes", len(long)) // two for the code, and 61 letters of two
	}
}

// A message comes out whole wherever its fragments, its session's JSON between them, end.
func TestAssembly(t *testing.T) {
	travel := func(a assembly) assembly {
		text, err := json.Marshal(seat{Partial: a})
		if err != nil {
			t.Fatal(err)
		}
		var s seat
		if err := json.Unmarshal(text, &s); err != nil {
			t.Fatal(err)
		}
		return s.Partial
	}
	for _, fragments := range [][]string{{"whole"}, {""}, {"", ""}, {"", "a", ""}, {"gr\xc3", "\xbcn"}} {
		var a assembly
		for i, text := range fragments {
			f := frame{final: i == len(fragments)-1, op: opContinuation, payload: []byte(text)}
			if i == 0 {
				f.op = opText
			}
			message, err := a.add(f, 100)
			if err != nil {
				t.Fatalf("%q: %v", fragments, err)
			}
			if !f.final {
				if message != nil || a == nil {
					t.Fatalf("%q: %q before the end", fragments, message)
				}
			} else if message == nil || string(message) != strings.Join(fragments, "") || a != nil {
				t.Errorf("%q: %q", fragments, message)
			}
			a = travel(a)
		}
	}
	for _, test := range []struct {
		frames []frame
		code   int
	}{
		{[]frame{{true, opBinary, nil}}, closeUnsupported},
		{[]frame{{true, opContinuation, nil}}, closeProtocol},
		{[]frame{{false, opText, nil}, {true, opText, nil}}, closeProtocol},
		{[]frame{{true, opText, []byte("\xff")}}, closeInvalidText},
		{[]frame{{false, opText, make([]byte, 60)}, {false, opContinuation, make([]byte, 41)}}, closeTooBig},
	} {
		var a assembly
		var err error
		for _, f := range test.frames {
			_, err = a.add(f, 100)
		}
		if e := (*closeError)(nil); !errors.As(err, &e) || e.code != test.code {
			t.Errorf("%+v: %v, want code %d", test.frames, err, test.code)
		}
	}
}

func TestEvent(t *testing.T) {
	for text, want := range map[string]string{
		"hello":       "id: 7\ndata: 7 hello\n\n",
		"":            "id: 7\ndata: 7 \n\n",
		"a\nb\r\nc\r": "id: 7\ndata: 7 a\ndata: b\ndata: c\ndata: \n\n",
	} {
		if got := string(event(message{7, text})); got != want {
			t.Errorf("%q: %q, want %q", text, got, want)
		}
	}
}
