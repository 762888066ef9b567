package helper

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

func TestProgramGetsItsSockets(t *testing.T) {
	if !alone(t) {
		return
	}
	r := stageReaper(t)
	// A descriptor that the helper was started with and no one has marked.
	stray, err := unix.Open(os.DevNull, unix.O_RDONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(stray)
	var sockets []Socket
	var want strings.Builder
	for i, name := range []string{"in", "http", "admin"} {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer ln.Close()
		f, err := ln.(*net.TCPListener).File()
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		var st unix.Stat_t
		if err := unix.Fstat(int(f.Fd()), &st); err != nil {
			t.Fatal(err)
		}
		fd := i + 2
		if i == 0 {
			fd = 0
		}
		fmt.Fprintf(&want, "%d socket:[%d]\n", fd, st.Ino)
		sockets = append(sockets, Socket{name, "tcp", ln.Addr().String(), int(f.Fd())})
	}
	p, err := Passing{Systemd: true, Stdin: "in"}.arrange(sockets, []string{"sh", "-c",
		`test "$LISTEN_PID" = $$ && test "$WATCHDOG_PID" = $$ && echo "$LISTEN_FDS $LISTEN_FDNAMES {fd:admin}"
		 for fd in 0 3 4; do echo $fd $(readlink /proc/$$/fd/$fd); done
		 ls /proc/$$/fd; ps -o pgid= -p $$ | tr -d ' '; cat /proc/$$/comm`},
		append(os.Environ(), "LISTEN_PID=1", "WATCHDOG_PID="+ownPID))
	if err != nil {
		t.Fatal(err)
	}
	o := newOutput(t)
	p.Stdio[1] = int(o.Fd())
	g := start(t, r, p)
	if e := finish(t, g); e != (Exit{cldExited, 0}) {
		t.Fatalf("%v: %s", e, o.text())
	}
	all := fmt.Sprintf("2 http:admin 4\n%s0\n1\n2\n3\n4\n%d\nsh\n", &want, g.Leader())
	if got := o.text(); got != all {
		t.Errorf("got\n%swant\n%s", got, all)
	}
}

// A program starts with the signals and the limits as if systemd had started it, whatever
// Go's runtime and the helper have made of their own.
func TestProgramGetsPlainSignalsAndLimits(t *testing.T) {
	if !alone(t, limited, func(cmd *exec.Cmd) {
		runtime.LockOSThread() // the child inherits the mask of the thread that forks
		var set unix.Sigset_t
		set.Val[0] = 1<<(unix.SIGUSR2-1) | 1<<(unix.SIGTERM-1)
		unix.PthreadSigmask(unix.SIG_BLOCK, &set, nil)
	}) {
		return
	}
	if mask := statusLine(t, "self", "SigBlk"); mask == "0000000000000000" {
		t.Fatal("the test has not blocked signals in the helper")
	}
	signal.Ignore(unix.SIGHUP, unix.SIGPIPE, unix.SIGUSR1, unix.SIGCHLD)
	r := stageReaper(t)
	for ignore, want := range map[bool]string{false: "0000000000000000", true: "0000000000001000"} {
		o := newOutput(t)
		p := program{Path: "/bin/cat", Argv: []string{"cat", "/proc/self/status", "/proc/self/limits"}, Env: os.Environ(), Stdio: [3]int{-1, int(o.Fd()), 2}, IgnoreSIGPIPE: ignore}
		if e := finish(t, start(t, r, p)); e != (Exit{cldExited, 0}) {
			t.Fatal(e)
		}
		status := map[string]string{}
		for line := range strings.Lines(o.text()) {
			key, value, _ := strings.Cut(line, ":")
			status[key] = strings.TrimSpace(value)
			if strings.HasPrefix(line, "Max open files") && strings.Fields(line)[3] != "700" {
				t.Errorf("%s, want the 700 the helper was started with", line)
			}
		}
		if status["SigIgn"] != want || status["SigBlk"] != "0000000000000000" || status["SigCgt"] != "0000000000000000" {
			t.Errorf("IgnoreSIGPIPE %v: ignored %s, want %s; blocked %s, caught %s", ignore, status["SigIgn"], want, status["SigBlk"], status["SigCgt"])
		}
	}
}

func statusLine(t *testing.T, pid, key string) string {
	t.Helper()
	b, err := os.ReadFile("/proc/" + pid + "/status")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(b), "\n"+key+":")
	line, _, _ := strings.Cut(rest, "\n")
	return strings.TrimSpace(line)
}

func TestExecErrors(t *testing.T) {
	if !alone(t) {
		return
	}
	r := stageReaper(t)
	dir := t.TempDir()
	write := func(name, content string, mode fs.FileMode) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), mode); err != nil {
			t.Fatal(err)
		}
		return path
	}
	found := filepath.Join(dir, "found")
	if err := os.Mkdir(found, 0o755); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		path, dir, search string
		errno             syscall.Errno
		want              string
	}{
		{dir + "/nothing", "", "", unix.ENOENT, "execute " + dir + "/nothing: no such file or directory"},
		{write("plain", "#!/bin/sh\n", 0o644), "", "", unix.EACCES, "execute " + dir + "/plain: permission denied"},
		{dir, "", "", unix.EACCES, "permission denied"},
		{write("text", "hello\n", 0o755), "", "", unix.ENOEXEC, "neither a program for this machine nor a script"},
		{write("lost", "#!/nonexistent/python\n", 0o755), "", "", unix.ENOENT, "what is missing is the interpreter"},
		{"/bin/true", dir + "/nodir", "", unix.ENOENT, "change to directory " + dir + "/nodir"},
		{"./nothing", dir, "", unix.ENOENT, "execute ./nothing"},
		{"no-such-command", "", "/bin:" + dir, unix.ENOENT, "execute no-such-command: no such file"},
		{"plain", "", "/bin:" + dir, unix.EACCES, "execute " + dir + "/plain: permission denied"},
		{"lost", "", "/bin:" + dir, unix.ENOENT, "execute " + dir + "/lost: no such file or directory (the file is there"},
		{"found", "", found + "/..:/bin", unix.EACCES, "permission denied"},
		{"true", "", ".:bin", unix.ENOENT, "execute true"},
	}
	for _, tt := range tests {
		_, err := r.start(program{Path: tt.path, Argv: []string{"app"}, Dir: tt.dir, Env: []string{"PATH=" + tt.search}, Stdio: [3]int{-1, -1, -1}})
		if !errors.Is(err, tt.errno) || !strings.Contains(fmt.Sprint(err), tt.want) {
			t.Errorf("%s in %q: %v, want %q", tt.path, tt.dir, err, tt.want)
		}
	}
	if left := children(); len(left) > 0 {
		t.Errorf("children left: %v", left)
	}
	// A program in a later directory is found behind one that cannot be executed.
	write("true", "", 0o644)
	g := start(t, r, program{Path: "true", Argv: []string{"true"}, Dir: dir, Env: []string{"PATH=" + dir + ":/usr/bin:/bin"}, Stdio: [3]int{-1, -1, -1}})
	if e := finish(t, g); e != (Exit{cldExited, 0}) {
		t.Error(e)
	}
}

// Another zdt may be put in the place of the one that runs: the shim stays the same.
func TestShimIsTheRunningFile(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "zdt")
	if os.Getenv(envAlone) == "" {
		data, err := os.ReadFile("/proc/self/exe")
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, data, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if !alone(t, func(cmd *exec.Cmd) { cmd.Path, cmd.Args[0] = file, file }) {
		return
	}
	r := stageReaper(t)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(self); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(self, []byte("#!/bin/sh\nexit 99\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	if e := finish(t, start(t, r, shell(newOutput(t), "exit 5"))); e != (Exit{cldExited, 5}) {
		t.Errorf("%v", e)
	}
}

func TestShimIsForNobodyElse(t *testing.T) {
	for _, args := range [][]string{nil, {"run"}, {shimWord}, {shimWord, "x"}, {shimWord, "-1"}, {shimWord, "1", "2"}} {
		if Shim(args) {
			t.Errorf("%q made a shim", args)
		}
	}
	out, err := exec.Command("/proc/self/exe", shimWord, "1000").CombinedOutput()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 127 || !strings.Contains(string(out), "for zdt run alone") {
		t.Errorf("%v: %s", err, out)
	}
}

func BenchmarkStart(b *testing.B) {
	r, err := startReaper()
	if err != nil {
		b.Fatal(err)
	}
	defer r.stop()
	for b.Loop() {
		g, err := r.start(program{Path: "/bin/true", Argv: []string{"true"}, Stdio: [3]int{-1, -1, -1}})
		if err != nil {
			b.Fatal(err)
		}
		<-g.Done()
	}
}
