package helper

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"runtime/debug"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func readiness(t *testing.T, text string) Readiness {
	t.Helper()
	r, err := ParseReadiness(text)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// within returns a context for something that is expected to come.
func within(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), d)
	t.Cleanup(cancel)
	return ctx
}

// While both generations wait at one socket, only an answer of the new one counts, and the old one
// is asked nothing.
func TestProbeTellsGenerationsApart(t *testing.T) {
	dir := t.TempDir()
	for _, tt := range []struct {
		what, listen string
		probe        func(bound string) string
		style        string
		asks         bool // there is a request
	}{
		{"http", "127.0.0.1", func(a string) string { return "http://" + a + "/health?x=1" }, "", true},
		{"http over IPv6", "::1", func(a string) string { return "http://" + a + "/health?x=1" }, "", true},
		{"http over IPv4 to a socket of both", "::", func(a string) string { return "http://" + strings.Replace(a, "[::]", "127.0.0.1", 1) + "/health?x=1" }, "", true},
		{"http over a unix socket", dir + "/http.sock", func(a string) string { return "http+unix:" + a + ":/health?x=1" }, "", true},
		{"http over an abstract socket", "@zdt-test-" + dir, func(a string) string { return "http+unix:" + a + ":/health?x=1" }, "", true},
		{"https", "127.0.0.1", func(a string) string { return "https://" + a + "/health?x=1" }, "tls", true},
		{"tcp", "127.0.0.1", func(a string) string { return "tcp:" + a }, "", false},
		{"unix", dir + "/unix.sock", func(a string) string { return "unix:" + a }, "", false},
	} {
		t.Run(tt.what, func(t *testing.T) {
			socket, bound := listen(t, tt.listen)
			before, after := serve(t, socket, tt.style, false), serve(t, socket, tt.style, true)
			result := make(chan error, 1)
			ctx := within(t, patience)
			go func() {
				result <- readiness(t, tt.probe(bound)).wait(ctx, witness{Generation: 2, Band: after.band, Ended: after.ended})
			}()
			eventually(t, "the old generation got some connections", func() bool { return before.count(t, "accept") >= 10 })
			select {
			case err := <-result:
				t.Fatalf("ready before it accepts: %v", err)
			default:
			}
			after.open(t)
			if err := <-result; err != nil {
				t.Fatal(err)
			}
			if n := before.count(t, "request") + before.count(t, "half"); n != 0 {
				t.Errorf("the old generation got %d requests", n)
			}
			if tt.asks {
				eventually(t, "the request is in the log", func() bool { return after.count(t, "request GET /health?x=1 HTTP/1.1") == 1 })
			} else if after.count(t, "request") != 0 {
				t.Error("asked for nothing")
			}
		})
	}
}

// How a server treats the connection makes no difference.
func TestProbeAnswers(t *testing.T) {
	deferred := func(fd int) error { return unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_DEFER_ACCEPT, 10) }
	for _, tt := range []struct {
		style   string
		options []func(int) error
		probe   string // "http" unless it is something else
		want    string // what the error has; empty: ready
	}{
		{style: ""},
		{style: "http10"},
		{style: "hints"},
		{style: "redirect"},
		{style: "worker"},
		{style: "deferred", options: []func(int) error{deferred}},
		{style: "503", want: `it answered 503 Service Unavailable: "warming up[31m xxx`},
		{style: "hints, then no", want: `it answered 500 Internal Server Error: ""`},
		{style: "junk", want: "read the answer: malformed HTTP"},
		{style: "endless", want: "read the answer: unexpected EOF"},
		{style: "drip", want: "read the answer: "},
		{style: "slam", want: "last: "}, // whatever is seen of it first
		{style: "", probe: "https", want: "ask: "},
	} {
		t.Run(tt.style+tt.probe, func(t *testing.T) {
			t.Parallel()
			socket, bound := listen(t, "127.0.0.1", tt.options...)
			s := serve(t, socket, tt.style, false)
			if tt.probe == "" {
				tt.probe = "http"
			}
			limit := patience
			if tt.want != "" {
				limit = time.Second
			}
			r := readiness(t, tt.probe+"://"+bound+"/health")
			began := time.Now()
			err := r.wait(within(t, limit), witness{Band: s.band, Ended: s.ended})
			if tt.want == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			if err == nil || !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), r.String()) {
				t.Errorf("%v; want %q", err, tt.want)
			}
			if len(err.Error()) > 1000 {
				t.Errorf("an error of %d bytes", len(err.Error()))
			}
			if took := time.Since(began); took > limit+5*time.Second {
				t.Errorf("it took %v", took)
			}
		})
	}
}

func TestProbeNobody(t *testing.T) {
	socket, bound := listen(t, "127.0.0.1")
	s := serve(t, socket, "", true) // holds the socket and never accepts
	for _, text := range []string{"http://" + bound + "/", "tcp:" + bound} {
		err := readiness(t, text).wait(within(t, 300*time.Millisecond), witness{Band: s.band})
		if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "nobody accepted the connection") {
			t.Errorf("%s: %v", text, err)
		}
	}
	// Nobody can accept, and nothing is ever sent.
	_, late := listen(t, "127.0.0.1", func(fd int) error {
		return unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_DEFER_ACCEPT, 10)
	})
	if err := readiness(t, "tcp:"+late).wait(within(t, 300*time.Millisecond), witness{Band: s.band}); err == nil || !strings.Contains(err.Error(), "TCP_DEFER_ACCEPT") {
		t.Errorf("deferred: %v", err)
	}
	// Nobody listens.
	free, address := listen(t, "127.0.0.1")
	unix.Shutdown(free, unix.SHUT_RDWR)
	err := readiness(t, "tcp:"+address).wait(within(t, 300*time.Millisecond), witness{Band: s.band})
	if !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("nobody listens: %v", err)
	}
	// The program ends meanwhile.
	ended := make(chan struct{})
	close(ended)
	began := time.Now()
	if err := readiness(t, "tcp:"+bound).wait(within(t, patience), witness{Band: s.band, Ended: ended}); !errors.Is(err, errEnded) || time.Since(began) > patience/2 {
		t.Errorf("the program has ended: %v", err)
	}
	// Or while it answers.
	drips, dripsAt := listen(t, "127.0.0.1")
	slow := serve(t, drips, "drip", false)
	ended = make(chan struct{})
	go func() {
		defer close(ended)
		for slow.count(t, "request") == 0 {
			time.Sleep(time.Millisecond)
		}
	}()
	began = time.Now()
	if err := readiness(t, "http://"+dripsAt+"/").wait(within(t, patience), witness{Band: slow.band, Ended: ended}); !errors.Is(err, errEnded) || time.Since(began) > probeTimeout/2 {
		t.Errorf("the program ends meanwhile: after %v, %v", time.Since(began), err)
	}
	// And nobody else's socket is taken for the program's, even when it is the only generation.
	ours, theirs := listen(t, "127.0.0.1")
	go func() {
		for {
			fd, _, err := unix.Accept4(ours, unix.SOCK_CLOEXEC)
			if err != nil {
				return
			}
			defer unix.Close(fd)
		}
	}()
	err = readiness(t, "tcp:"+theirs).wait(within(t, 300*time.Millisecond), witness{Band: s.band, Alone: true})
	unix.Shutdown(ours, unix.SHUT_RDWR)
	if err == nil || !strings.Contains(err.Error(), errOther.Error()) {
		t.Errorf("another program's socket: %v", err)
	}
}

// A helper that may not look at the program's descriptors says so, and takes the answer only
// when there is nobody else whose it could be.
func TestProbeCannotSee(t *testing.T) {
	if os.Getuid() != 0 && os.Getenv(envAlone) == "" {
		t.Skip("only root can become another user")
	}
	if !alone(t, func(cmd *exec.Cmd) {
		dir, err := os.MkdirTemp("", "zdt")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { os.RemoveAll(dir) })
		if err := os.Chmod(dir, 0o777); err != nil {
			t.Fatal(err)
		}
		cmd.Env = append(cmd.Env, "TMPDIR="+dir)
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	}) {
		return
	}
	for _, style := range []string{"undumpable", ""} {
		socket, bound := listen(t, "127.0.0.1")
		s := serve(t, socket, style, false)
		for _, isAlone := range []bool{true, false} {
			err := readiness(t, "http://"+bound+"/").wait(within(t, 2*time.Second), witness{Band: s.band, Alone: isAlone})
			if style == "" || isAlone {
				if err != nil {
					t.Errorf("%q alone=%v: %v", style, isAlone, err)
				}
			} else if !errors.Is(err, os.ErrPermission) || !strings.Contains(err.Error(), "cannot be seen which generation") {
				t.Errorf("%q alone=%v: %v", style, isAlone, err)
			}
		}
	}
}

// The same where the program has rights that the helper lacks, as when it is root without
// CAP_SYS_PTRACE: the directory can be opened, what is in it cannot be read.
func TestProbeCannotRead(t *testing.T) {
	setpriv, err := exec.LookPath("setpriv")
	if os.Getenv(envAlone) == "" && (err != nil || os.Getuid() != 0) {
		t.Skip("needs root and setpriv")
	}
	if !alone(t, func(cmd *exec.Cmd) {
		socket, bound := listen(t, "127.0.0.1")
		s := serve(t, socket, "", false)
		cmd.Env = append(cmd.Env, "PROBE="+bound, "LEADER="+strconv.Itoa(s.band.Leader))
		cmd.Path, cmd.Args = setpriv, append([]string{setpriv, "--bounding-set=-sys_ptrace,-sys_admin", "/proc/self/exe"}, cmd.Args[1:]...)
		cmd.Args[2], err = os.Executable()
		if err != nil {
			t.Fatal(err)
		}
	}) {
		return
	}
	leader, _ := strconv.Atoi(os.Getenv("LEADER"))
	err = readiness(t, "tcp:"+os.Getenv("PROBE")).wait(within(t, time.Second), witness{Band: band{Leader: leader}})
	if !errors.Is(err, os.ErrPermission) || !strings.Contains(err.Error(), "cannot be seen which generation") {
		t.Error(err)
	}
}

func TestProbeLeavesNothing(t *testing.T) {
	socket, bound := listen(t, "127.0.0.1")
	s := serve(t, socket, "", false)
	r := readiness(t, "http://"+bound+"/")
	defer debug.SetGCPercent(debug.SetGCPercent(-1)) // it would close what is forgotten
	leaksNothing(t, func(t *testing.T) {
		for range 50 {
			if err := r.wait(within(t, patience), witness{Band: s.band, Ended: s.ended}); err != nil {
				t.Fatal(err)
			}
		}
		for range 5 {
			stuck, stuckAt := listen(t, "127.0.0.1")
			ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
			if err := readiness(t, "http://"+stuckAt+"/").wait(ctx, witness{Band: s.band}); err == nil {
				t.Error("ready")
			}
			cancel()
			unix.Shutdown(stuck, unix.SHUT_RDWR)
		}
	})
}
