//go:build linux

package journal

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// fakeJournalctl acts run N of a script, a directory with a file N, which
// holds what to print and, after a line "--", what to do then: "hang", or
// anything else to say on standard error before exiting 1, or nothing to exit
// 0. Without a file it hangs. Each run leaves N.args and N.pid.
func fakeJournalctl(dir string, args []string) int {
	n := 1
	for ; ; n++ {
		f, err := os.OpenFile(filepath.Join(dir, fmt.Sprint(n, ".args")), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
		if err == nil {
			fmt.Fprint(f, strings.Join(args, "\n"))
			f.Close()
			break
		}
	}
	pid := filepath.Join(dir, fmt.Sprint(n, ".pid"))
	os.WriteFile(pid+".tmp", fmt.Append(nil, os.Getpid()), 0o644)
	os.Rename(pid+".tmp", pid)
	script, err := os.ReadFile(filepath.Join(dir, fmt.Sprint(n)))
	if err != nil {
		script = []byte("\x00--\nhang")
	}
	out, then, _ := strings.Cut(string(script), "\x00--\n")
	os.Stdout.WriteString(out)
	switch then {
	case "":
		return 0
	case "hang":
		time.Sleep(time.Minute) // killed before, unless the test was killed itself
	case "close":
		os.Stdout.Close()
		time.Sleep(time.Minute)
	}
	fmt.Fprint(os.Stderr, then)
	return 1
}

// script is a directory for fakeJournalctl and the query that runs it.
type script struct {
	dir string
	Query
}

func newScript(t *testing.T, runs ...string) script {
	t.Helper()
	s := script{dir: t.TempDir()}
	for i, run := range runs {
		if err := os.WriteFile(filepath.Join(s.dir, fmt.Sprint(i+1)), []byte(run), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	s.Query = Query{Source: Source{Unit: "web.service"}, Command: []string{exe, "fake-journalctl", s.dir}}
	return s
}

// args returns the arguments of run n.
func (s script) args(t *testing.T, n int) []string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(s.dir, fmt.Sprint(n, ".args")))
	if err != nil {
		t.Fatal(err)
	}
	return strings.Split(string(b), "\n")
}

// pid waits for run n to have begun.
func (s script) pid(t *testing.T, n int) int {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(2 * time.Millisecond) {
		if b, err := os.ReadFile(filepath.Join(s.dir, fmt.Sprint(n, ".pid"))); err == nil {
			var pid int
			fmt.Sscan(string(b), &pid)
			return pid
		}
	}
	t.Fatalf("run %d did not begin", n)
	return 0
}

func exported(cursor, message string) string {
	return "__CURSOR=" + cursor + "\n_SYSTEMD_UNIT=web.service\nMESSAGE=" + message + "\n\n"
}

const (
	thenHang  = "\x00--\nhang"
	thenClose = "\x00--\nclose"
)

func thenFail(say string) string { return "\x00--\n" + say }

func startFollow(t *testing.T, q Query) *Follower {
	t.Helper()
	f := follow(t.Context(), q, func(int) time.Duration { return time.Millisecond })
	t.Cleanup(f.Close)
	return f
}

// expect reads entries with these messages and no other.
func expect(t *testing.T, f *Follower, messages ...string) {
	t.Helper()
	timeout := time.After(20 * time.Second)
	for _, want := range messages {
		select {
		case e, ok := <-f.Entries():
			if !ok || e.Get("MESSAGE") != want {
				t.Fatalf("got %q (open %v), want %q; problem: %v", e.Get("MESSAGE"), ok, want, f.Problem())
			}
		case <-timeout:
			t.Fatalf("no %q; problem: %v", want, f.Problem())
		}
	}
}

// journalctl fails in each way at hand; every entry arrives once, in order.
func TestFollowResumes(t *testing.T) {
	s := newScript(t,
		exported("c0", "the cursor's own")+exported("c1", "one")+exported("c2", "two"),                                // ends
		exported("c2", "two")+exported("c3", "three")+"__CURSOR=c4\nMESSAGE=fo"+thenFail("died"),                      // in the middle of an entry
		exported("c3", "three")+exported("c4", "four")+"what is this?\n"+exported("x", "?")+thenHang,                  // garbage, and does not end
		exported("c4", "four")+exported("c3", "three")+exported("c5", "five")+exported("c5", "five")+thenFail("died"), // repeats itself
		"MESSAGE=no cursor\n\n"+exported("c6", "six")+thenClose,                                                       // closes its output, stays
		exported("c7", "seven")+thenHang,
	)
	s.AfterCursor = "c0"
	f := startFollow(t, s.Query)
	expect(t, f, "one", "two", "three", "four", "five", "six", "seven")
	for n, want := range []string{"c0", "c2", "c3", "c4", "c5", "c6"} {
		if args := s.args(t, n+1); !slices.Contains(args, "--cursor="+want) {
			t.Errorf("run %d: %q, want it after %s", n+1, args, want)
		}
	}
	if err := f.Problem(); err != nil {
		t.Errorf("a problem is left: %v", err)
	}
	pids := []int{}
	for n := range 6 {
		pids = append(pids, s.pid(t, n+1))
	}
	f.Close()
	if _, open := <-f.Entries(); open {
		t.Error("entries after Close")
	}
	for _, pid := range pids {
		if err := syscall.Kill(pid, 0); err != syscall.ESRCH {
			t.Errorf("process %d is still there: %v", pid, err)
		}
	}
}

// A journalctl that was started before there was a journal is deaf.
func TestFollowDoesNotStayDeaf(t *testing.T) {
	s := newScript(t, thenHang, thenHang, exported("c1", "one")+thenHang)
	f := startFollow(t, s.Query)
	expect(t, f, "one")
	if err := f.Problem(); err != nil {
		t.Errorf("problem %v; silence is none", err)
	}
}

// A consumer that does not read must not keep the Follower from ending, and
// neither must a context that ends.
func TestFollowEnds(t *testing.T) {
	s := newScript(t, exported("c1", "one")+exported("c2", "two")+thenHang)
	ctx, cancel := context.WithCancel(t.Context())
	f := Follow(ctx, s.Query)
	expect(t, f, "one")
	cancel()
	for range f.Entries() { // at most the second
	}
	f.Close()
	f.Close()

	s = newScript(t)
	f = Follow(t.Context(), s.Query)
	pid := s.pid(t, 1)
	f.Close()
	if err := syscall.Kill(pid, 0); err != syscall.ESRCH {
		t.Errorf("process %d is still there: %v", pid, err)
	}
}

// The process that holds the pipe may not be the one that was started, nor in
// its group: a wrapper in Command.
func TestFollowEndsWithGrandchild(t *testing.T) {
	s := newScript(t, exported("c1", "one")+thenHang)
	s.Command = append([]string{"sh", "-c", `setsid "$0" "$@" & wait`}, s.Command...)
	f := startFollow(t, s.Query)
	expect(t, f, "one")
	pid := s.pid(t, 1)
	t.Cleanup(func() { syscall.Kill(pid, syscall.SIGKILL) }) // the fake does not mind the hang-up
	begin := time.Now()
	f.Close()
	if took := time.Since(begin); took > 10*time.Second {
		t.Errorf("Close took %v", took)
	}
}

func TestFollowTellsItsProblem(t *testing.T) {
	s := newScript(t, thenFail("No journal files were opened due to insufficient permissions.\n"), exported("c1", "one")+thenHang)
	release := make(chan time.Duration)
	f := follow(t.Context(), s.Query, func(int) time.Duration { return <-release })
	t.Cleanup(f.Close)
	release <- time.Millisecond // after the first run ended
	// The problem was stored before the wait.
	if err := f.Problem(); !errors.Is(err, ErrNoAccess) {
		t.Errorf("problem %v, want ErrNoAccess", err)
	}
	expect(t, f, "one")
	f.Close()

	f = startFollow(t, Query{Source: s.Source, Command: []string{filepath.Join(s.dir, "absent")}})
	for deadline := time.Now().Add(20 * time.Second); f.Problem() == nil && time.Now().Before(deadline); {
		time.Sleep(time.Millisecond)
	}
	if err := f.Problem(); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("problem %v, want that there is no journalctl", err)
	}
}

func TestCursor(t *testing.T) {
	s := newScript(t, "__CURSOR=s=1;i=2\nMESSAGE_ID=x\n\n")
	got, err := Cursor(t.Context(), s.Query)
	if err != nil || got != "s=1;i=2" {
		t.Errorf("got %q, %v", got, err)
	}
	if args := s.args(t, 1); slices.ContainsFunc(args, func(a string) bool { return strings.Contains(a, "web.service") }) {
		t.Errorf("%q looks at the unit only; it may have no entry yet", args)
	}
	if got, err := Cursor(t.Context(), newScript(t, "").Query); err != nil || got != "" {
		t.Errorf("an empty journal: %q, %v", got, err)
	}
	if _, err := Cursor(t.Context(), newScript(t, thenFail("Permission denied")).Query); !errors.Is(err, ErrNoAccess) {
		t.Errorf("error %v, want ErrNoAccess", err)
	}
	if _, err := Cursor(t.Context(), newScript(t, "__CURSOR=c\nMES").Query); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("error %v, want io.ErrUnexpectedEOF", err)
	}
	if _, err := Cursor(t.Context(), newScript(t, "A=1\n\n").Query); !errors.Is(err, ErrFormat) {
		t.Errorf("error %v, want ErrFormat", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	s = newScript(t)
	go func() { s.pid(t, 1); cancel() }()
	if _, err := Cursor(ctx, s.Query); err == nil {
		t.Error("no error although it was cancelled")
	}
}

func TestTail(t *testing.T) {
	line := func(cursor, pid, message string) string {
		return "__CURSOR=" + cursor + "\n__REALTIME_TIMESTAMP=1000000\n_PID=" + pid + "\n_SYSTEMD_UNIT=web.service\nPRIORITY=3\n" + bin("MESSAGE", message) + "\n"
	}
	s := newScript(t, thenFail("no right to sync"),
		line("c0", "7", "before")+line("c1", "7", "one")+line("c2", "7", "two\r\nthree \x1b[2J\n")+
			strings.Replace(line("c3", "7", "other"), "web.service", "db.service", 1)+
			strings.Replace(line("c4", "7", "orphan"), "_SYSTEMD_UNIT=web.service\n", "", 1)+
			line("c5", "7", strings.Repeat("é", 400)))
	s.AfterCursor, s.PID, s.Lines = "c0", 7, 4
	got, err := Tail(t.Context(), s.Query)
	if err != nil {
		t.Fatal(err)
	}
	var want []Line
	for _, text := range []string{"two", `three \x1b[2J`, "orphan", strings.Repeat("é", 256) + "..."} {
		want = append(want, Line{Time: time.Unix(1, 0), Priority: PriErr, PID: 7, Text: text})
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
	if args := s.args(t, 1); !slices.Contains(args, "--sync") {
		t.Errorf("first %q, want --sync", args)
	}
}

func TestArguments(t *testing.T) {
	web := Query{Source: Source{Unit: "web.service"}}
	user := Query{Source: Source{Unit: "web.service", User: true, UID: 1000}, EventsOnly: true}
	const loss = " + _TRANSPORT=driver MESSAGE_ID=a596d6fe7bfa4994828e72309e95d61e OBJECT_SYSTEMD_UNIT=web.service + _TRANSPORT=driver MESSAGE_ID=f77379a8490b408bbe5f6940505a777b"
	const common = "journalctl --no-pager --quiet --output=export "
	for _, tt := range []struct {
		got  []string
		want string
	}{
		{web.follow("c"), common + "--follow --no-tail --cursor=c _SYSTEMD_UNIT=web.service + SYSLOG_IDENTIFIER=zdt ZDT_SERVICE=web _UID=0 + _PID=1 UNIT=web.service" + loss},
		{web.rest(), common + "_SYSTEMD_UNIT=web.service + SYSLOG_IDENTIFIER=zdt ZDT_SERVICE=web _UID=0 + _PID=1 UNIT=web.service" + loss},
		{user.follow(""), common + "--follow --no-tail _SYSTEMD_USER_UNIT=web.service _UID=1000 SYSLOG_IDENTIFIER=zdt + SYSLOG_IDENTIFIER=zdt ZDT_SERVICE=web _UID=1000"},
		{web.tail(), common + "--lines=10 _SYSTEMD_UNIT=web.service"},
		{Query{Source: web.Source, PID: 7, Since: time.UnixMicro(1700000000000123)}.tail(), common + "--since=@1700000000.000123 _PID=7"},
	} {
		if got := strings.Join(tt.got, " "); got != tt.want {
			t.Errorf("got  %s\nwant %s", got, tt.want)
		}
	}
}

// journalctl 258 says READY=1 to a NOTIFY_SOCKET, which would be zdt's own.
func TestEnvironment(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", "/run/x")
	t.Setenv("SYSTEMD_PAGER", "evil")
	for _, kv := range environ() {
		if strings.HasPrefix(kv, "NOTIFY_SOCKET=") || strings.HasPrefix(kv, "SYSTEMD_PAGER=") {
			t.Errorf("%s is passed on", kv)
		}
	}
}
