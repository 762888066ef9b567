package journalstream

import (
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

func TestReaderGone(t *testing.T) {
	own := func(fd int, err error) int {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { unix.Close(fd) })
		return fd
	}
	pipe := func(read bool) int {
		var p [2]int
		if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
			t.Fatal(err)
		}
		if read {
			own(p[0], nil)
		} else {
			unix.Close(p[0])
		}
		return own(p[1], nil)
	}
	stream := func(read bool) int { // as journald's
		p, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		unix.Shutdown(p[1], unix.SHUT_RD)
		if read {
			own(p[0], nil)
		} else {
			unix.Close(p[0])
		}
		return own(p[1], nil)
	}
	full := pipe(true)
	unix.SetNonblock(full, true)
	for {
		if _, err := unix.Write(full, make([]byte, 4096)); err != nil {
			break
		}
	}
	for _, tt := range []struct {
		name string
		fd   int
		want bool
	}{
		{"pipe", pipe(true), false},
		{"pipe that is full", full, false},
		{"pipe without a reader", pipe(false), true},
		{"stream", stream(true), false},
		{"stream without a reader", stream(false), true},
		{"null", own(unix.Open(os.DevNull, unix.O_WRONLY|unix.O_CLOEXEC, 0)), false},
		{"file", own(unix.Open(os.Args[0], unix.O_RDONLY|unix.O_CLOEXEC, 0)), false},
		{"no descriptor at all", 1 << 20, false},
	} {
		if got := readerGone(tt.fd); got != tt.want {
			t.Errorf("%s: %v, want %v", tt.name, got, tt.want)
		}
	}
}

func TestPlaceholder(t *testing.T) {
	ours, err := openPlaceholder()
	if err != nil {
		t.Fatal(err)
	}
	defer ours.Close()
	theirs, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer theirs.Close()
	file, err := os.OpenFile(t.TempDir()+"/log", os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	for f, want := range map[*os.File]bool{ours: true, theirs: false, file: false} {
		if got := isPlaceholder(int(f.Fd())); got != want {
			t.Errorf("%s: %v, want %v", f.Name(), got, want)
		}
	}
	if readerGone(int(ours.Fd())) {
		t.Error("nobody reads a placeholder, but that is no failure")
	}
}
