package journal

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"reflect"
	"strings"
	"testing"
	"testing/iotest"
	"time"
)

// bin renders a field in the binary form.
func bin(name, value string) string {
	return name + "\n" + string(binary.LittleEndian.AppendUint64(nil, uint64(len(value)))) + value + "\n"
}

func readAll(r io.Reader) (entries []Entry, err error) {
	for e, err := range NewReader(r).Entries() {
		if err != nil {
			return entries, err
		}
		entries = append(entries, e)
	}
	return entries, nil
}

func TestExport(t *testing.T) {
	in := "\n__CURSOR=c1\n__REALTIME_TIMESTAMP=1700000000123456\n__MONOTONIC_TIMESTAMP=5\n_PID=7\n" + bin("MESSAGE", "a\nb=\x00\n") +
		"X=1\nX=2=3\nEMPTY=\n\n\n" + "__CURSOR=c2\n__REALTIME_TIMESTAMP=no\nMESSAGE=\xff\n\n"
	want := []Entry{
		{Cursor: "c1", Realtime: time.UnixMicro(1700000000123456), Monotonic: 5 * time.Microsecond,
			Fields: []Field{{"_PID", "7"}, {"MESSAGE", "a\nb=\x00\n"}, {"X", "1"}, {"X", "2=3"}, {"EMPTY", ""}}},
		{Cursor: "c2", Fields: []Field{{"MESSAGE", "\xff"}}},
	}
	for name, r := range map[string]io.Reader{
		"at once":      strings.NewReader(in),
		"byte by byte": iotest.OneByteReader(strings.NewReader(in)),
	} {
		got, err := readAll(r)
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %v\ngot  %+v\nwant %+v", name, err, got, want)
		}
	}
	if e := want[0]; e.Get("X") != "1" || !reflect.DeepEqual(e.All("X"), []string{"1", "2=3"}) || e.Get("Y") != "" || e.All("Y") != nil {
		t.Error("Get or All is wrong")
	}
	if _, ok := want[0].one("X"); ok {
		t.Error("a repeated field is taken for one")
	}
}

// A stream that ends anywhere yields the entries before that place, whole,
// and says that it was cut unless it ended between entries.
func TestExportTruncated(t *testing.T) {
	first := "__CURSOR=a\nA=1\n" + bin("B", "2\n2") + "\n"
	in := first + "__CURSOR=b\n" + bin("M", "x\ny") + "\n"
	for n := range len(in) + 1 {
		got, err := readAll(strings.NewReader(in[:n]))
		whole, orderly := 0, n == 0 || n == len(first) || n == len(in)
		if n >= len(first) {
			whole++
		}
		if n == len(in) {
			whole++
		}
		if len(got) != whole {
			t.Errorf("%d bytes: %d entries, want %d", n, len(got), whole)
		}
		if orderly && err != nil || !orderly && err != io.ErrUnexpectedEOF {
			t.Errorf("%d bytes: error %v, orderly end %v", n, err, orderly)
		}
	}
}

func TestExportRefuses(t *testing.T) {
	for name, in := range map[string]string{
		"lower case name":   "message=x\n\n",
		"no name":           "=x\n\n",
		"html":              "<html>\n\n",
		"huge length":       "A\n\xff\xff\xff\xff\xff\xff\xff\x7f\n",
		"no newline after":  "A\n\x01\x00\x00\x00\x00\x00\x00\x00xy\n",
		"name out of range": strings.Repeat("A", 1000) + "=1\n\n",
		"digit first":       "1A=1\n\n",
	} {
		if _, err := readAll(strings.NewReader("OK=1\n\n" + in)); !errors.Is(err, ErrFormat) {
			t.Errorf("%s: error %v, want ErrFormat", name, err)
		}
	}
	r := NewReader(strings.NewReader("bad\n\nGOOD=1\n\n"))
	_, first := r.Next()
	if _, again := r.Next(); again != first || first == nil {
		t.Errorf("the error does not stick: %v, then %v", first, again)
	}
	cause := errors.New("cause")
	if _, err := readAll(iotest.ErrReader(cause)); err != cause {
		t.Errorf("error %v, want the reader's own", err)
	}
}

func TestExportIsBounded(t *testing.T) {
	long := strings.Repeat("x", 3*maxReadValue)
	in := "__CURSOR=c\nT=" + long + "\n" + bin("B", long+"\n") + "OK=1\n\n"
	got, err := readAll(strings.NewReader(in + "__CURSOR=d\nN=2\n\n"))
	if err != nil || len(got) != 2 || !got[0].Cut || got[1].Cut || got[0].Get("OK") != "1" || got[1].Get("N") != "2" {
		t.Fatalf("error %v, %d entries", err, len(got))
	}
	if n := len(got[0].Get("T")); n != maxReadValue {
		t.Errorf("a line's value has %d bytes, want %d", n, maxReadValue)
	}
	if n := len(got[0].Get("B")); n != maxReadValue {
		t.Errorf("a binary value has %d bytes, want %d", n, maxReadValue)
	}

	var b strings.Builder
	for range 2000 {
		b.WriteString(bin("F", strings.Repeat("y", 2000)))
	}
	got, err = readAll(strings.NewReader(b.String() + "\n"))
	if err != nil || len(got) != 1 || !got[0].Cut {
		t.Fatalf("error %v, %d entries", err, len(got))
	}
	size := 0
	for _, f := range got[0].Fields {
		size += len(f.Name) + len(f.Value)
	}
	if size > maxReadEntry || len(got[0].Fields) > maxReadFields {
		t.Errorf("%d bytes in %d fields kept", size, len(got[0].Fields))
	}
}

// A promise of a terabyte must not be believed before the bytes arrive.
func TestExportAllocatesWhatArrives(t *testing.T) {
	in := "A\n" + string(binary.LittleEndian.AppendUint64(nil, 1<<40)) + "few"
	allocated := testing.Benchmark(func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := readAll(strings.NewReader(in)); err != io.ErrUnexpectedEOF {
				b.Fatal(err)
			}
		}
	}).AllocedBytesPerOp()
	if allocated > 256<<10 {
		t.Errorf("%d bytes allocated for 3", allocated)
	}
}

// Whatever comes: bounds hold, and what was read is read again from its own
// rendering.
func FuzzExport(f *testing.F) {
	f.Add([]byte("__CURSOR=c1\n__REALTIME_TIMESTAMP=1\nMESSAGE=x\n\n"))
	f.Add([]byte("__CURSOR=c1\n" + bin("MESSAGE", "a\nb") + "A=1\nA=2\n\n\nB=\n\n"))
	f.Add([]byte("A\n\xff\xff\xff\xff\xff\xff\xff\xff"))
	f.Add([]byte("A\n\x05\x00\x00\x00\x00\x00\x00\x00abc"))
	f.Add([]byte("=\n"))
	f.Fuzz(func(t *testing.T, in []byte) {
		entries, err := readAll(bytes.NewReader(in))
		if err != nil && err != io.ErrUnexpectedEOF && !errors.Is(err, ErrFormat) {
			t.Fatalf("error %v", err)
		}
		total := 0
		for _, e := range entries {
			var b strings.Builder
			b.WriteString(bin("__CURSOR", e.Cursor))
			for _, field := range e.Fields {
				total += len(field.Name) + len(field.Value)
				if !readableName(field.Name) || strings.HasPrefix(field.Name, "__") {
					t.Fatalf("field %q", field.Name)
				}
				b.WriteString(bin(field.Name, field.Value))
			}
			again, err := readAll(strings.NewReader(b.String() + "\n"))
			if err != nil || len(again) != 1 || again[0].Cursor != e.Cursor || !reflect.DeepEqual(again[0].Fields, e.Fields) {
				t.Fatalf("%v: read %+v, then %+v", err, e, again)
			}
			// For the reader of the result: no panic, whatever is in it.
			Trusted(e, Source{Unit: "web.service"})
			Decode(e, Source{Unit: "web.service", User: true})
			linesOf(e)
		}
		if total > len(in) {
			t.Fatalf("%d bytes out of %d", total, len(in))
		}
	})
}
