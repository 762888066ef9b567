package health

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const patience = time.Minute // for what is expected to come, on a busy host too

const envPlay = "ZDT_HEALTH_PLAY"

func TestMain(m *testing.M) {
	if style := os.Getenv(envPlay); style != "" {
		play(style)
		os.Exit(0)
	}
	// No gate asks it.
	os.Setenv("http_proxy", "http://127.0.0.1:1")
	os.Setenv("HTTP_PROXY", "http://127.0.0.1:1")
	os.Exit(m.Run())
}

// play is a generation of a service that accepts at descriptor 3 until its standard input ends.
func play(style string) {
	go func() {
		io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	}()
	if style == "parent" { // whose child serves
		cmd := exec.Command("/proc/self/exe")
		cmd.Env = append(os.Environ(), envPlay+"=serve")
		cmd.Stdin, cmd.Stdout = os.Stdin, os.Stdout
		cmd.ExtraFiles = []*os.File{os.NewFile(3, "socket")}
		cmd.Run()
		return
	}
	l, err := net.FileListener(os.NewFile(3, "socket"))
	if err != nil {
		panic(err)
	}
	say := func(line string) { fmt.Println(line) }
	say("up")
	if style == "deaf" {
		select {}
	}
	if style == "slam" {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			conn.Close()
		}
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/status/", func(w http.ResponseWriter, r *http.Request) {
		code, _ := strconv.Atoi(strings.TrimPrefix(r.URL.Path, "/status/"))
		if code/100 == 3 {
			w.Header().Set("Location", "/status/200")
		}
		w.WriteHeader(code)
		fmt.Fprintf(w, "this is %d\x1b[0m for %s", code, r.Host)
	})
	mux.HandleFunc("/hints", func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(http.StatusEarlyHints) })
	mux.HandleFunc("/late", func(w http.ResponseWriter, r *http.Request) {
		for range 2000 {
			fmt.Fprintf(w, "%0100d\n", 0)
		}
		fmt.Fprint(w, "needle")
	})
	mux.HandleFunc("/endless", func(w http.ResponseWriter, r *http.Request) {
		for {
			if _, err := fmt.Fprintf(w, "%01000d\n", 0); err != nil {
				return
			}
		}
	})
	mux.HandleFunc("/hang", func(w http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	mux.HandleFunc("/who", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, r.Header.Get("User-Agent"), " ", r.Header.Get("Connection"), " ", r.Header.Get("X-Forwarded-For"))
	})
	if style == "tls" {
		srv := &http.Server{Handler: mux, ErrorLog: log.New(io.Discard, "", 0)}
		panic(srv.ServeTLS(l, os.Getenv("CERT"), os.Getenv("KEY")))
	}
	srv := &http.Server{Handler: mux, ConnState: func(_ net.Conn, s http.ConnState) {
		if s == http.StateActive {
			say("request")
		}
	}}
	panic(srv.Serve(l))
}

// player is a running generation.
type player struct {
	pid   int
	lines chan string // what it says
}

// start starts a generation at the socket, and waits until it accepts.
func start(t *testing.T, socket *os.File, style string, change ...func(*exec.Cmd)) player {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), envPlay+"="+style)
	cmd.Stderr = os.Stderr
	cmd.ExtraFiles = []*os.File{socket}
	for _, f := range change {
		f(cmd)
	}
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); errors.Is(err, syscall.EPERM) && cmd.SysProcAttr != nil {
		t.Skip(err) // no namespaces for this user
	} else if err != nil {
		t.Fatal(err)
	}
	p := player{cmd.Process.Pid, make(chan string, 10000)}
	read := make(chan struct{})
	go func() {
		defer close(read)
		for s := bufio.NewScanner(stdout); s.Scan(); {
			p.lines <- s.Text()
		}
	}()
	t.Cleanup(func() {
		stdin.Close()
		<-read
		cmd.Wait()
	})
	select {
	case line := <-p.lines:
		if line != "up" {
			t.Fatal(line)
		}
	case <-time.After(patience):
		t.Fatal("it does not come up")
	}
	return p
}

// requests is how many it has had.
func (p player) requests() int { return len(p.lines) }

// bind is a listening socket that nobody accepts at.
func bind(t *testing.T, network, address string, options ...func(fd int) error) (socket *os.File, bound string) {
	t.Helper()
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var err error
		c.Control(func(fd uintptr) {
			for _, option := range options {
				err = option(int(fd))
			}
		})
		return err
	}}
	l, err := lc.Listen(t.Context(), network, address)
	if errors.Is(err, syscall.EAFNOSUPPORT) || errors.Is(err, syscall.EADDRNOTAVAIL) {
		t.Skip(err) // no IPv6 here
	}
	if err != nil {
		t.Fatal(err)
	}
	if u, ok := l.(*net.UnixListener); ok {
		u.SetUnlinkOnClose(false)
	}
	socket, err = l.(interface{ File() (*os.File, error) }).File()
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	t.Cleanup(func() { socket.Close() })
	return socket, l.Addr().String()
}

func deferAccept(fd int) error {
	return unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_DEFER_ACCEPT, 10)
}
