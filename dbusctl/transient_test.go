package dbusctl

import (
	"errors"
	"os"
	"reflect"
	"testing"
	"time"

	"github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"
)

func TestPropertyValues(t *testing.T) {
	for _, tt := range []struct {
		p         Property
		name      string
		signature string
		value     any
	}{
		{Text("User", "www"), "User", "s", "www"},
		{Flag("PrivateTmp", true), "PrivateTmp", "b", true},
		{List("Environment", "A=b c"), "Environment", "as", []string{"A=b c"}},
		{List("Environment"), "Environment", "as", []string{}},
		{Span("TimeoutStopUSec", 1500*time.Millisecond), "TimeoutStopUSec", "t", uint64(1500000)},
		{Span("TimeoutStopUSec", Infinity), "TimeoutStopUSec", "t", ^uint64(0)},
		{Span("TimeoutStopUSec", -1), "TimeoutStopUSec", "t", uint64(0)},
		{Int("KillSignal", 15), "KillSignal", "i", int32(15)},
		{Uint("UMask", 0o77), "UMask", "u", uint32(0o77)},
		{Size("MemoryMax", 1<<40), "MemoryMax", "t", uint64(1 << 40)},
	} {
		if tt.p.Name() != tt.name || tt.p.value.Signature().String() != tt.signature || !reflect.DeepEqual(tt.p.value.Value(), tt.value) {
			t.Errorf("%s: %v %v, want %s %v", tt.p.Name(), tt.p.value.Signature(), tt.p.value, tt.signature, tt.value)
		}
	}
	if p := Command("ExecStart", "/bin/x", "x", "$A"); p.Name() != "ExecStartEx" || p.value.Signature().String() != "a(sasas)" {
		t.Errorf("Command: %s %v", p.Name(), p.value)
	}
	f := os.Stdin
	if p := ExtraFiles(NamedFile{"web", f}); p.passed([]int{7}).Signature().String() != "a(hs)" {
		t.Errorf("ExtraFiles: %v", p.passed([]int{7}))
	}
	if p := File("StandardInputFileDescriptor", f); p.passed([]int{7}).Signature().String() != "h" {
		t.Errorf("File: %v", p.passed([]int{7}))
	}
}

// A descriptor that is passed on stays the caller's, and as it was.
func TestDuplicateLeavesFilesAlone(t *testing.T) {
	r, w, err := os.Pipe()
	must(t, err)
	defer w.Close()
	fds, err := duplicate([]*os.File{r})
	must(t, err)
	dups := os.NewFile(uintptr(fds[0]), "dup")
	defer dups.Close()
	// A deadline works only on a descriptor that does not block.
	if err := r.SetReadDeadline(time.Now().Add(-time.Second)); err != nil {
		t.Errorf("deadline: %v", err)
	}
	if _, err := r.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("read: %v", err)
	}
	r.Close()
	made, err := duplicate([]*os.File{w, r})
	if err == nil || len(made) != 1 {
		t.Errorf("a closed file: %v, %v", made, err)
	}
	for _, fd := range made {
		unix.Close(fd)
	}
}

func TestStartTransientRefusals(t *testing.T) {
	s := startFake(t)
	m := s.dial()
	ctx := testContext(t)
	var e *Error
	if err := m.StartTransient(ctx, TransientUnit{Name: "no suffix"}); !errors.As(err, &e) || e.Op != "start transient" {
		t.Errorf("bad name: %v", err)
	}
	for _, tt := range []struct {
		answer string
		want   error
	}{
		{"org.freedesktop.systemd1.UnitExists", ErrUnitExists},
		{"org.freedesktop.DBus.Error.AccessDenied", ErrNotAuthorised},
	} {
		err := explain(ctx, "start transient", "x.service", dbus.Error{Name: tt.answer, Body: []any{"no"}})
		if !errors.Is(err, tt.want) || !errors.As(err, &e) || e.Hint == "" {
			t.Errorf("%s: %v", tt.answer, err)
		}
	}
}

func TestWritable(t *testing.T) {
	for _, tt := range []struct {
		signature string
		read      any
	}{
		{"s", "x"}, {"as", []string{"a"}}, {"(bas)", []any{true, []string{"a", "b"}}},
		{"a(ssbt)", [][]any{{"/a", "/b", true, uint64(16384)}}}, {"a(ssbt)", [][]any{}},
		{"(aiai)", []any{[]int32{1}, []int32{15}}}, {"a(iayu)", [][]any{{int32(2), []byte{10, 0, 0, 0}, uint32(8)}}},
	} {
		v, err := writable(dbus.MakeVariantWithSignature(tt.read, dbus.ParseSignatureMust(tt.signature)))
		if err != nil {
			t.Errorf("%s: %v", tt.signature, err)
		} else if got := dbus.MakeVariant(v.Value()).Signature().String(); got != tt.signature {
			t.Errorf("%s would be sent as %s", tt.signature, got)
		}
	}
	for _, signature := range []string{"", "(s", "a", "v", "a{sv}"} {
		if kind, rest, err := kindOf(signature); err == nil {
			t.Errorf("%q is %v, rest %q", signature, kind, rest)
		}
	}
}
