package load_test

import (
	"bufio"
	"crypto/sha256"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/zdt-dev/zdt/internal/load"
)

// alone is a load of nothing but what cfg says.
func alone(addr string, cfg load.Config) load.Config {
	cfg.Dial, cfg.KeepAlive, cfg.Fresh = dialer(addr), -1, -1
	if cfg.Piece == 0 {
		cfg.Piece = time.Millisecond
	}
	return cfg
}

// service understands every HTTP kind.
func service() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("/", echo("v1"))
	mux.HandleFunc("GET /slow", func(w http.ResponseWriter, r *http.Request) {
		d, _ := time.ParseDuration(r.URL.Query().Get("for"))
		time.Sleep(d)
	})
	mux.HandleFunc("POST /upload", func(w http.ResponseWriter, r *http.Request) {
		sum := sha256.New()
		n, _ := io.Copy(sum, r.Body)
		fmt.Fprintf(w, "%x %d\n", sum.Sum(nil), n)
	})
	return mux
}

// kinds are the HTTP clients beyond those of every load.
func kinds() map[load.Client]load.Config {
	return map[load.Client]load.Config{
		load.Slow: {Slow: 2, SlowFor: 20 * time.Millisecond}, load.Upload: {Uploads: 2}, load.Pipelined: {Pipelined: 2},
		load.HalfHead: {HalfHeads: 2}, load.Expect: {Expect: 2}, load.Idle: {Idle: 4, IdleThink: 10 * time.Millisecond},
	}
}

func TestKindsOnAGoodServer(t *testing.T) {
	for kind, cfg := range kinds() {
		t.Run(string(kind), func(t *testing.T) {
			t.Parallel()
			var conns, chunked atomic.Int64
			s := httptestServer(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if len(r.TransferEncoding) > 0 {
					chunked.Add(1)
				}
				service().ServeHTTP(w, r)
			}), &conns)
			r := run(t, alone(s, cfg), requests(20))
			if r.Losses() != 0 || r.Reconnects != 0 || r.IdleCloses != 0 || r.Clients[kind].Requests != r.Requests || len(r.Clients) != 1 {
				t.Errorf("%s\n%+v", r, r.Clients)
			}
			if n := conns.Load(); n > 4 {
				t.Errorf("%d connections", n)
			}
			if got := chunked.Load(); (kind == load.Upload) != (got > 0) || int(got) > r.Requests/2+2 {
				t.Errorf("%d requests of %d were chunked", got, r.Requests)
			}
		})
	}
}

// What the client itself asks for is no latency.
func TestLatencyWithoutTheClientsOwnPauses(t *testing.T) {
	var conns atomic.Int64
	s := httptestServer(t, service(), &conns)
	const asked = 200 * time.Millisecond
	r := run(t, alone(s, load.Config{Slow: 1, SlowFor: asked, Uploads: 1, HalfHeads: 1, Piece: asked / 8}), requests(6))
	if r.P50 >= asked/2 || r.Losses() > 0 {
		t.Error(r)
	}
}

func TestKindsOnABadServer(t *testing.T) {
	const head = "HTTP/1.1 200 OK\r\nContent-Length: "
	for _, tc := range []struct {
		name   string
		cfg    load.Config
		handle func(conn *net.TCPConn, r *bufio.Reader)
		kind   load.Kind
		text   string
	}{
		{"upload with another digest", load.Config{Uploads: 1}, func(conn *net.TCPConn, r *bufio.Reader) {
			if request(r) {
				fmt.Fprintf(conn, "%s70\r\n\r\n%064x 65536", head, 1)
			}
		}, load.BadAnswer, "back"},
		{"upload cut off", load.Config{Uploads: 1, Piece: 50 * time.Millisecond}, func(conn *net.TCPConn, r *bufio.Reader) {
			r.Peek(1) // and then a reset
		}, load.Reset, "upload"},
		{"head cut off", load.Config{HalfHeads: 1, Piece: 50 * time.Millisecond}, func(conn *net.TCPConn, r *bufio.Reader) {
			r.Peek(1)
			conn.SetLinger(0)
		}, load.Reset, ""},
		{"pipeline ends after the first answer", load.Config{Pipelined: 1}, func(conn *net.TCPConn, r *bufio.Reader) {
			for range 4 {
				req, err := http.ReadRequest(r)
				if err != nil {
					return
				}
				body, _ := io.ReadAll(req.Body)
				fmt.Fprintf(conn, "%s%d\r\nConnection: close\r\n\r\n%s", head, len(body), body)
			}
		}, load.NoAnswer, "answer 2 of 4"},
		{"pipeline in another order", load.Config{Pipelined: 1}, func(conn *net.TCPConn, r *bufio.Reader) {
			var bodies [][]byte
			for range 4 {
				req, err := http.ReadRequest(r)
				if err != nil {
					return
				}
				body, _ := io.ReadAll(req.Body)
				bodies = append(bodies, body)
			}
			for i := range bodies {
				fmt.Fprintf(conn, "%s%d\r\n\r\n%s", head, len(bodies[3-i]), bodies[3-i])
			}
		}, load.BadAnswer, "back"},
		{"body never asked for", load.Config{Expect: 1}, func(conn *net.TCPConn, r *bufio.Reader) {
			if req, err := http.ReadRequest(r); err == nil && req.Header.Get("Expect") == "100-continue" {
				fmt.Fprintf(conn, "%s0\r\n\r\n", head)
			}
		}, load.BadAnswer, "100 Continue is expected"},
		{"closed instead of asking", load.Config{Expect: 1}, func(conn *net.TCPConn, r *bufio.Reader) {
			http.ReadRequest(r)
		}, load.NoAnswer, ""},
		{"slow answer that never comes", load.Config{Slow: 1}, func(conn *net.TCPConn, r *bufio.Reader) {
			http.ReadRequest(r)
		}, load.NoAnswer, ""},
		{"head without end", load.Config{Slow: 1}, func(conn *net.TCPConn, r *bufio.Reader) {
			if request(r) {
				io.WriteString(conn, "HTTP/1.1 200 OK\r\nX: ")
				for line := strings.Repeat("x", 1<<16); ; {
					if _, err := io.WriteString(conn, line); err != nil {
						return
					}
				}
			}
		}, load.BadAnswer, "larger than 1 MiB"},
		{"one provisional answer after the other", load.Config{Slow: 1}, func(conn *net.TCPConn, r *bufio.Reader) {
			if request(r) {
				for range 11 {
					io.WriteString(conn, "HTTP/1.1 103 Early Hints\r\n\r\n")
				}
			}
		}, load.BadAnswer, "provisional"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			addr := serveRaw(t, tc.handle)
			r := run(t, alone(addr, tc.cfg), func(r load.Report) bool { return r.Kinds[tc.kind] >= 2 })
			if r.Failed != r.Losses() || r.Reconnects == 0 {
				t.Error(r)
			}
			for _, f := range r.Failures {
				if f.Kind == tc.kind && strings.Contains(f.Text, tc.text) {
					return
				}
			}
			t.Errorf("no %s with %q in %s", tc.kind, tc.text, r)
		})
	}
}

func TestOtherStatuses(t *testing.T) {
	var n atomic.Int64
	s := serveHTTP(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet || r.Host != "example.com" || r.UserAgent() != "test" {
			t.Errorf("%s for %q by %q", r.Method, r.Host, r.UserAgent())
		}
		switch n.Add(1) % 4 {
		case 0:
			http.Error(w, "broken", http.StatusServiceUnavailable)
		case 1:
			http.Redirect(w, r, "http://127.0.0.1:1/", http.StatusFound)
		case 2:
			w.WriteHeader(http.StatusEarlyHints)
			w.WriteHeader(http.StatusNoContent)
		}
	}))
	r := run(t, load.Config{Dial: dialer(s.Listener.Addr().String()), GetOnly: true, AnyStatus: true, Host: "example.com", Agent: "test", KeepAlive: 2, Fresh: 1}, requests(100))
	if r.Losses() != 0 || r.Reconnects != 0 {
		t.Error(r)
	}
	sum := 0
	for _, status := range []int{200, 204, 302, 503} {
		sum += r.Statuses[status]
	}
	if sum != r.Requests || len(r.Statuses) != 4 {
		t.Errorf("%d requests, statuses %v", r.Requests, r.Statuses)
	}
}

// What is under way within a window is counted apart, also what began before it.
func TestWindow(t *testing.T) {
	var slow atomic.Pointer[chan struct{}]
	entered := make(chan struct{}, 1)
	s := serveHTTP(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if wait := slow.Load(); wait != nil {
			select {
			case entered <- struct{}{}:
			default:
			}
			<-*wait
		}
	}))
	l := load.Start(load.Config{Dial: dialer(s.Listener.Addr().String()), GetOnly: true, KeepAlive: 1, Fresh: -1})
	defer l.Stop()
	until := func(cond func(load.Report) bool) {
		t.Helper()
		if err := l.Until(t.Context(), cond); err != nil {
			t.Fatal(err)
		}
	}
	until(requests(10))
	if r := l.Report(); r.Inside.Requests != 0 || r.Outside.Requests != r.Requests || len(r.Windows) != 0 {
		t.Errorf("inside %+v", r.Inside)
	}
	wait := make(chan struct{})
	slow.Store(&wait)
	<-entered // before the window
	end := l.Window()
	const pause = 50 * time.Millisecond
	time.Sleep(pause)
	end()
	slow.Store(nil)
	close(wait) // after it
	before := l.Report().Requests
	until(func(r load.Report) bool { return r.Requests >= before+10 })
	r := l.Stop()
	if r.Inside.Requests != 1 || r.Inside.Max < pause || r.Outside.Requests != r.Requests-1 || r.Max != r.Inside.Max || r.Outside.P50 > r.Inside.P50 {
		t.Errorf("inside %+v\noutside %+v", r.Inside, r.Outside)
	}
	if len(r.Windows) != 1 || r.Windows[0].To-r.Windows[0].From < pause || r.Windows[0].To > r.Elapsed {
		t.Errorf("windows %v of %v", r.Windows, r.Elapsed)
	}
}

// Cancel waits neither for answers nor for connections, and counts nothing of what it gives up.
func TestCancel(t *testing.T) {
	entered, release := make(chan struct{}, 10), make(chan struct{})
	s := serveHTTP(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		entered <- struct{}{}
		<-release
	}))
	l := load.Start(load.Config{Dial: dialer(s.Listener.Addr().String()), KeepAlive: 1, Fresh: 1, Slow: 1, Timeout: time.Hour})
	for range 3 {
		<-entered
	}
	r := l.Cancel()
	close(release)
	if r.Requests != 0 || r.Losses() != 0 || r.Reconnects != 0 {
		t.Error(r)
	}
	if again := l.Stop(); again.Elapsed != r.Elapsed {
		t.Errorf("stopped again: %s", again)
	}
}

// httptestServer counts connections, and returns its address.
func httptestServer(t *testing.T, h http.Handler, conns *atomic.Int64) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: h, ConnState: func(_ net.Conn, s http.ConnState) {
		if s == http.StateNew {
			conns.Add(1)
		}
	}}
	done := make(chan struct{})
	go func() { defer close(done); srv.Serve(ln) }()
	t.Cleanup(func() { srv.Close(); <-done })
	return ln.Addr().String()
}
