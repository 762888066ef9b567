package script

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const patience = 20 * time.Second

// sh is a command that runs a script.
func sh(text string) Command {
	return Command{Path: "/bin/sh", Args: []string{"-c", text}, Env: Environ("ZDT_X=y"), Keep: 5}
}

func TestRun(t *testing.T) {
	for _, tt := range []struct {
		what string
		cmd  Command
		code int
		err  string
		tail []string
		cut  int
	}{
		{what: "nothing", cmd: sh("")},
		{what: "both outputs", cmd: sh("echo out; echo err >&2; printf rest"), tail: []string{"out", "err", "rest"}},
		{what: "the last lines", cmd: sh("seq 100"), tail: []string{"96", "97", "98", "99", "100"}, cut: 95},
		{what: "a status", cmd: sh("echo no; exit 7"), code: 7, err: "it exited with 7", tail: []string{"no"}},
		{what: "a signal", cmd: sh("kill -SEGV $$"), code: -1, err: "it was killed by SIGSEGV"},
		{what: "an environment of its own", cmd: sh("echo $ZDT_X $ZDT_SECRET $0"), tail: []string{"y /bin/sh"}},
		{what: "no input", cmd: sh("cat; readlink /proc/self/fd/0"), tail: []string{"/dev/null"}},
		{what: "nothing a terminal acts upon", cmd: sh(`printf 'a\033[31mb\rc\n'`), tail: []string{`a\x1b[31mb\x0dc`}},
		{what: "where", cmd: sh("pwd"), tail: []string{"/"}},
		{what: "absent", cmd: Command{Path: "/no/such"}, code: -1, err: "start /no/such: fork/exec /no/such: no such file or directory"},
	} {
		t.Run(tt.what, func(t *testing.T) {
			t.Setenv("ZDT_SECRET", "shown")
			var told []string
			tt.cmd.Line = func(text string) { told = append(told, text) }
			got := Run(t.Context(), tt.cmd)
			text := ""
			if got.Err != nil {
				text = got.Err.Error()
			}
			if text != tt.err || got.Code != tt.code || !slices.Equal(got.Tail, tt.tail) || got.Cut != tt.cut || len(told) != len(tt.tail)+tt.cut {
				t.Errorf("%+v, told %q", got, told)
			}
		})
	}
}

func TestRunInput(t *testing.T) {
	c := sh("cat")
	c.Stdin = []byte("one\ntwo")
	if got := Run(t.Context(), c); got.Err != nil || !slices.Equal(got.Tail, []string{"one", "two"}) {
		t.Errorf("%+v", got)
	}
	// Whether it is read or not makes no difference.
	c = sh("exit 0")
	c.Stdin = make([]byte, 1<<20)
	if got := Run(t.Context(), c); got.Err != nil {
		t.Errorf("%+v", got)
	}
}

// A lock's descriptor, above all, must not live on in a program that is started.
func TestRunInheritsNothing(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "lock"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	// As the caller of zdt may have left it.
	if _, err := unix.FcntlInt(f.Fd(), unix.F_SETFD, 0); err != nil {
		t.Fatal(err)
	}
	c := sh("ls /proc/$$/fd")
	c.Stdin = []byte("x")
	got := Run(t.Context(), c)
	// dash opens the script itself nowhere; with -c there is none.
	if got.Err != nil || !slices.Equal(got.Tail, []string{"0", "1", "2"}) {
		t.Errorf("%+v", got)
	}
}

func TestRunDeadline(t *testing.T) {
	for _, tt := range []struct {
		what, script string
		grace        time.Duration
		last         string
	}{
		{"at once", "echo up; trap 'echo asked' TERM; while :; do sleep 0.01; done", 0, "up"},
		{"asked first", "trap 'echo asked; exit 0' TERM; echo up; while :; do sleep 0.01; done", patience, "asked"},
		{"deaf", "trap '' TERM; echo up; while :; do sleep 0.01; done", 50 * time.Millisecond, "up"},
	} {
		t.Run(tt.what, func(t *testing.T) {
			ctx, cancel := context.WithCancelCause(t.Context())
			defer cancel(nil)
			why := errors.New("its time is over")
			c := sh(tt.script)
			c.Grace = tt.grace
			c.Line = func(text string) {
				if text == "up" {
					cancel(why)
				}
			}
			began := time.Now()
			got := Run(ctx, c)
			if got.Err != why || len(got.Tail) == 0 || got.Tail[len(got.Tail)-1] != tt.last || time.Since(began) > patience/2 {
				t.Errorf("%+v after %v", got, time.Since(began))
			}
		})
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	mark := filepath.Join(t.TempDir(), "mark")
	if got := Run(ctx, sh("touch "+mark)); !errors.Is(got.Err, context.Canceled) {
		t.Errorf("%+v", got)
	}
	if _, err := os.Stat(mark); err == nil {
		t.Error("it ran, and its time was over before")
	}
}

// Nothing of its group is left, whatever it ended with. Who leaves the group stays, and is not waited for.
func TestRunLeavesNothing(t *testing.T) {
	got := Run(t.Context(), sh("sleep 300 & echo $!"))
	if got.Err != nil || len(got.Tail) != 1 {
		t.Fatalf("%+v", got)
	}
	pid, err := strconv.Atoi(got.Tail[0])
	if err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil || strings.Contains(string(stat), ") Z ") {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("what it left runs on")
		}
	}

	began := time.Now()
	away := filepath.Join(t.TempDir(), "away")
	got = Run(t.Context(), sh("setsid sh -c 'echo $$; >"+away+"; exec sleep 300' & until test -e "+away+"; do :; done"))
	if got.Err != nil || len(got.Tail) != 1 || time.Since(began) > patience/2 {
		t.Fatalf("%+v after %v", got, time.Since(began))
	}
	if pid, err := strconv.Atoi(got.Tail[0]); err == nil && pid > 1 {
		unix.Kill(pid, unix.SIGKILL)
	}
}
