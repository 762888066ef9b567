package pty

import (
	"bytes"
	"os"
	"testing"
)

func TestRun(t *testing.T) {
	if _, err := os.Stat("/dev/ptmx"); err != nil {
		t.Skip("no pseudo terminals here")
	}
	for _, test := range []struct {
		name   string
		script string
		want   string
		status int
	}{
		{"terminal", "test -t 0 && test -t 1 && test -t 2 && echo yes", "yes\r\n", 0},
		{"size", "stty size", "30 77\r\n", 0},
		{"status", "echo no >&2; exit 11", "no\r\n", 11},
		{"signal", "kill -TERM $$", "", -1},
		{"much", "yes | head -n 100000 | tail -n 1", "y\r\n", 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			var out bytes.Buffer
			status, err := Run(&out, 77, 30, []string{"/bin/sh", "-c", test.script})
			if err != nil {
				t.Fatal(err)
			}
			if status != test.status || out.String() != test.want {
				t.Errorf("status %d, output %q; want %d, %q", status, out.String(), test.status, test.want)
			}
		})
	}
	if _, err := Run(&bytes.Buffer{}, 80, 25, []string{"/does/not/exist"}); err == nil {
		t.Error("a command that does not exist was run")
	}
}
