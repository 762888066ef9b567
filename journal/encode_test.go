package journal

import (
	"bytes"
	"reflect"
	"strings"
	"testing"
	"unicode/utf8"
)

// decodeNative parses what the writer sends. The native protocol frames
// fields just as the export format does, an empty line ends the entry.
func decodeNative(t testing.TB, data []byte) Entry {
	t.Helper()
	e, err := NewReader(bytes.NewReader(append(bytes.Clone(data), '\n'))).Next()
	if err != nil {
		t.Fatalf("parse %q: %v", data, err)
	}
	return e
}

func TestEncode(t *testing.T) {
	data, err := Event{
		Kind: Fork, Message: "two\nlines", TxID: "tx", Service: "web", Generation: 2, PID: 10, PeerPID: 11,
		Fields: []Field{Str(FieldExe, "/a=b"), Str("EMPTY", ""), Str("BINARY", "\x00\xff")},
	}.encode(3)
	if err != nil {
		t.Fatal(err)
	}
	want := "MESSAGE\n\x09\x00\x00\x00\x00\x00\x00\x00two\nlines\nPRIORITY=6\nMESSAGE_ID=185ea6feb9724408b5f295b5408d5a49\n" +
		"SYSLOG_IDENTIFIER=zdt\nZDT_EVENT=fork\nZDT_TXID=tx\nZDT_SERVICE=web\nZDT_GENERATION=2\nZDT_PID=10\nZDT_PEER_PID=11\n" +
		"ZDT_EVENTS_LOST=3\nZDT_EXE=/a=b\nEMPTY=\nBINARY=\x00\xff\n"
	if string(data) != want {
		t.Errorf("got  %q\nwant %q", data, want)
	}
}

func TestEncodeLeavesZeroMembersOut(t *testing.T) {
	data, err := Event{Kind: Drain, PID: -1}.encode(0)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{FieldTxID, FieldService, FieldGeneration, FieldPID, FieldPeerPID, FieldEventsLost, FieldCut} {
		if bytes.Contains(data, []byte(name+"=")) {
			t.Errorf("%s in %q", name, data)
		}
	}
}

func TestEncodeRefuses(t *testing.T) {
	for _, name := range []string{"", "lower", "_PID", "1ST", "A-B", "A\nB", "A=B", "É", strings.Repeat("A", 65),
		"MESSAGE", "MESSAGE_ID", "PRIORITY", FieldPID, FieldEvent, FieldEventsLost} {
		if data, err := (Event{Kind: Fork, Fields: []Field{Str(name, "x")}}).encode(0); err == nil {
			t.Errorf("field %q: encoded as %q", name, data)
		}
	}
	if _, err := (Event{Kind: "forged"}).encode(0); err == nil {
		t.Error("an unknown kind was encoded")
	}
	if _, err := (Event{Kind: Fork, Fields: make([]Field, maxFields+1)}).encode(0); err == nil {
		t.Error("too many fields were encoded")
	}
}

func TestEncodeIsBounded(t *testing.T) {
	e := Event{Kind: Exit, Message: strings.Repeat("é", maxMessage), TxID: strings.Repeat("\n", 1<<20), Service: "web"}
	for i := range maxFields {
		e.Fields = append(e.Fields, Str("FIELD_"+strings.Repeat("X", 40)+string(rune('A'+i%26)), strings.Repeat("y", 5000)))
	}
	data, err := e.encode(1 << 62)
	if err != nil {
		t.Fatal(err)
	}
	if len(data) > maxEvent {
		t.Errorf("%d bytes, more than %d", len(data), maxEvent)
	}
	got := decodeNative(t, data)
	if m := got.Get("MESSAGE"); len(m) > maxMessage || !utf8.ValidString(m) {
		t.Errorf("message of %d bytes, valid %v", len(m), utf8.ValidString(m))
	}
	if cut := got.Get(FieldCut); !strings.HasPrefix(cut, "MESSAGE ZDT_TXID FIELD_") {
		t.Errorf("%s = %.60q", FieldCut, cut)
	}
}

func TestCutText(t *testing.T) {
	for _, tt := range []struct {
		s    string
		n    int
		want string
	}{
		{"abc", 3, "abc"}, {"abc", 2, "ab"}, {"aé", 2, "a"}, {"a\U0001F600", 4, "a"}, {"\x80\x80\x80\x80\x80\x80", 5, "\x80\x80\x80\x80\x80"}, {"é", 0, ""},
	} {
		if got := cutText(tt.s, tt.n); got != tt.want {
			t.Errorf("cutText(%q, %d) = %q, want %q", tt.s, tt.n, got, tt.want)
		}
	}
}

// Whatever the values are, a reader gets the same fields back, no more.
func FuzzEncode(f *testing.F) {
	f.Add("web", "hello", "a\nMESSAGE=forged", "x")
	f.Add("", "\n\n", "\x00", strings.Repeat("a", maxValue+1))
	f.Fuzz(func(t *testing.T, service, message, one, two string) {
		e := Event{Kind: Abort, Service: service, Message: message, PID: 7, Fields: []Field{{"ONE", one}, {"TWO", two}}}
		data, err := e.encode(0)
		if err != nil {
			t.Fatal(err)
		}
		if len(data) > maxEvent {
			t.Fatalf("%d bytes", len(data))
		}
		got := decodeNative(t, data)
		var want []Field
		add := func(name, value string, limit int) { want = append(want, Field{name, cutText(value, limit)}) }
		add("MESSAGE", e.Text(), maxMessage)
		add("PRIORITY", "4", 1)
		add("MESSAGE_ID", Abort.ID(), 32)
		add("SYSLOG_IDENTIFIER", "zdt", 3)
		add(FieldEvent, "abort", 5)
		if service != "" {
			add(FieldService, service, maxValue)
		}
		add(FieldPID, "7", 1)
		add("ONE", one, maxValue)
		add("TWO", two, maxValue)
		if cut := got.Get(FieldCut); cut != "" {
			want = append(want, Field{FieldCut, cut})
		}
		if !reflect.DeepEqual(got.Fields, want) {
			t.Errorf("got  %q\nwant %q", got.Fields, want)
		}
	})
}
