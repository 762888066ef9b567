package load_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/zdt-dev/zdt/internal/load"
)

// echo answers as a service under load has to.
func echo(version string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Version", version)
		if r.Method == http.MethodPost {
			io.Copy(w, r.Body)
			return
		}
		fmt.Fprintln(w, "hello")
	}
}

func serveHTTP(t *testing.T, h http.Handler) *httptest.Server {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return s
}

func dialer(addr string) func(context.Context) (net.Conn, error) {
	return func(ctx context.Context) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "tcp", addr)
	}
}

// serveRaw gives each connection to handle, and closes it afterwards.
func serveRaw(t *testing.T, handle func(conn *net.TCPConn, r *bufio.Reader)) (addr string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer conn.Close()
				handle(conn.(*net.TCPConn), bufio.NewReader(conn))
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		wg.Wait()
	})
	return l.Addr().String()
}

// answer reads a request and answers it in full. It reports whether there was one.
func answer(conn net.Conn, r *bufio.Reader) bool {
	req, err := http.ReadRequest(r)
	if err != nil {
		return false
	}
	body, _ := io.ReadAll(req.Body)
	fmt.Fprintf(conn, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
	return true
}

// request reads a request and leaves it at that.
func request(r *bufio.Reader) bool {
	req, err := http.ReadRequest(r)
	if err == nil {
		io.Copy(io.Discard, req.Body)
	}
	return err == nil
}

// run makes load until cond holds, and stops it.
func run(t *testing.T, cfg load.Config, cond func(load.Report) bool) load.Report {
	t.Helper()
	l := load.Start(cfg)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	err := l.Until(ctx, cond)
	r := l.Stop()
	if err != nil {
		t.Fatalf("%v: %s", err, r)
	}
	return r
}

func requests(n int) func(load.Report) bool {
	return func(r load.Report) bool { return r.Requests >= n }
}

func TestGoodServer(t *testing.T) {
	var gets, posts, conns atomic.Int64
	h := echo("v1")
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.Method == http.MethodGet && r.URL.Path == "/page":
			gets.Add(1)
		case r.Method == http.MethodPost && r.URL.Path == "/echo":
			posts.Add(1)
		default:
			t.Errorf("%s %s", r.Method, r.URL)
		}
		h(w, r)
	}))
	s.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		if state == http.StateNew {
			conns.Add(1)
		}
	}
	s.Start()
	defer s.Close()
	r := run(t, load.Config{Dial: dialer(s.Listener.Addr().String()), Get: "/page", Post: "/echo", KeepAlive: 3, Fresh: 1}, requests(500))
	if r.Failed != 0 || r.Refused != 0 || r.Reconnects != 0 || r.PoliteCloses != 0 || r.IdleCloses != 0 {
		t.Errorf("%s", r)
	}
	if r.Versions["v1"] != r.Requests || len(r.Versions) != 1 {
		t.Errorf("%d requests, answers by version: %v", r.Requests, r.Versions)
	}
	if g, p := gets.Load(), posts.Load(); int(g+p) != r.Requests || g < p-10 || p < g-10 {
		t.Errorf("%d GET, %d POST, %d requests", g, p, r.Requests)
	}
	if n := conns.Load(); n < 4 || int(n) >= r.Requests {
		t.Errorf("%d connections for %d requests", n, r.Requests)
	}
	if r.P50 <= 0 || r.P50 > r.P99 || r.P99 > r.Max {
		t.Errorf("latency %v, %v, %v", r.P50, r.P99, r.Max)
	}
}

// The keep-alive race: the server closes a connection on which a request has just been written.
func TestConnectionClosedUnderARequest(t *testing.T) {
	for _, tc := range []struct {
		name  string
		close func(*net.TCPConn)
		kinds []load.Kind
	}{
		{"in order", func(*net.TCPConn) {}, []load.Kind{load.NoAnswer}},
		{"by reset", func(c *net.TCPConn) { c.SetLinger(0) }, []load.Kind{load.Reset}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			addr := serveRaw(t, func(conn *net.TCPConn, r *bufio.Reader) {
				if answer(conn, r) && request(r) {
					tc.close(conn)
				}
			})
			r := run(t, load.Config{Dial: dialer(addr), KeepAlive: 2, Fresh: -1}, requests(20))
			// Each connection has one good request and one failed one, and no request was sent twice.
			if r.Failed < r.Requests/2-2 || r.Failed > r.Requests/2+2 || r.Kinds[tc.kinds[0]] != r.Failed {
				t.Fatalf("%s\n%v", r, r.Kinds)
			}
			if r.IdleCloses != 0 || r.PoliteCloses != 0 || r.Reconnects == 0 {
				t.Errorf("%s", r)
			}
			if f := r.Failures[0]; f.Text == "" || f.Client != load.Kept || f.Kind != tc.kinds[0] {
				t.Errorf("first failure: %+v", f)
			}
		})
	}
}

// A server that closes idle connections without a word, while requests are on their way: some of them fail.
func TestServerThatDropsIdleConnections(t *testing.T) {
	addr := serveRaw(t, func(conn *net.TCPConn, r *bufio.Reader) {
		if answer(conn, r) {
			r.Peek(1) // the next request is there, unread: the kernel answers with a reset
		}
	})
	r := run(t, load.Config{Dial: dialer(addr), KeepAlive: 2, Fresh: -1}, requests(20))
	if r.Failed == 0 || r.Kinds[load.Reset]+r.Kinds[load.NoAnswer] != r.Failed {
		t.Errorf("%s\n%v", r, r.Kinds)
	}
}

func TestIdleCloseIsNoFailure(t *testing.T) {
	addr := serveRaw(t, func(conn *net.TCPConn, r *bufio.Reader) { answer(conn, r) })
	// The pause is as long as any machine needs to deliver the close.
	r := run(t, load.Config{Dial: dialer(addr), KeepAlive: 2, Fresh: -1, Think: time.Second},
		func(r load.Report) bool { return r.IdleCloses >= 4 && r.Reconnects >= 2 })
	if r.Failed != 0 || r.Refused != 0 || r.PoliteCloses != 0 {
		t.Errorf("%s", r)
	}
}

func TestPoliteCloseIsNoFailure(t *testing.T) {
	s := serveHTTP(t, echo("v1"))
	s.Config.SetKeepAlivesEnabled(false)
	r := run(t, load.Config{Dial: dialer(s.Listener.Addr().String()), KeepAlive: 2, Fresh: 2}, requests(100))
	if r.Failed != 0 || r.IdleCloses != 0 || r.PoliteCloses == 0 || r.PoliteCloses >= r.Requests {
		t.Errorf("%s", r)
	}
	if d := r.PoliteCloses - r.Reconnects; d < 0 || d > 2 {
		t.Errorf("%s", r)
	}
}

func TestBadAnswers(t *testing.T) {
	head := "HTTP/1.1 200 OK\r\nContent-Length: "
	for _, tc := range []struct {
		name, answer string
		kind         load.Kind
		text         string
	}{
		{"error status", "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n", load.BadAnswer, "503"},
		{"another body", head + "5\r\n\r\nwrong", load.BadAnswer, `"wrong"`},
		{"cut off in the head", "HTTP/1.1 200", load.BadAnswer, "unexpected EOF"},
		{"cut off in the body", head + "100\r\n\r\nabc", load.BadAnswer, "unexpected EOF"},
		{"not HTTP", "SSH-2.0\r\n\r\n", load.BadAnswer, "malformed"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			addr := serveRaw(t, func(conn *net.TCPConn, r *bufio.Reader) {
				if request(r) {
					io.WriteString(conn, tc.answer)
				}
			})
			r := run(t, load.Config{Dial: dialer(addr), KeepAlive: -1, Fresh: 1}, func(r load.Report) bool { return r.Kinds[tc.kind] >= 2 })
			if f := r.Failures[0]; f.Kind != tc.kind || f.Client != load.Fresh || !strings.Contains(f.Text, tc.text) {
				t.Errorf("%+v", f)
			}
		})
	}
}

func TestUnaskedAnswer(t *testing.T) {
	addr := serveRaw(t, func(conn *net.TCPConn, r *bufio.Reader) {
		if answer(conn, r) {
			io.WriteString(conn, "HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n")
		}
	})
	r := run(t, load.Config{Dial: dialer(addr), KeepAlive: 1, Fresh: -1, Think: time.Second}, func(r load.Report) bool { return r.Failed > 0 })
	if r.Kinds[load.BadAnswer] != r.Failed {
		t.Errorf("%s", r)
	}
}

func TestTimeout(t *testing.T) {
	addr := serveRaw(t, func(conn *net.TCPConn, r *bufio.Reader) {
		request(r)
		r.Peek(1) // until the client gives up
	})
	r := run(t, load.Config{Dial: dialer(addr), KeepAlive: 1, Fresh: 1, Timeout: 20 * time.Millisecond}, func(r load.Report) bool { return r.Failed >= 4 })
	if r.Kinds[load.Timeout] != r.Failed {
		t.Errorf("%s", r)
	}
}

func TestRefused(t *testing.T) {
	nobody := errors.New("nobody there")
	r := run(t, load.Config{KeepAlive: 2, Fresh: 2, Failures: 3, Dial: func(context.Context) (net.Conn, error) { return nil, nobody }},
		func(r load.Report) bool { return r.Refused >= 10 })
	if r.Requests != 0 || r.Failed != 0 || r.Kinds[load.Refused] != r.Refused || len(r.Failures) != 3 {
		t.Errorf("%s", r)
	}
	if s := r.String(); !strings.Contains(s, "nobody there") || !strings.Contains(s, fmt.Sprintf("and %d more", r.Refused-3)) {
		t.Errorf("%s", s)
	}
}

func TestVersionsOverTime(t *testing.T) {
	var handler atomic.Pointer[http.HandlerFunc]
	v1, v2 := echo("v1"), echo("v2")
	handler.Store(&v1)
	s := serveHTTP(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { (*handler.Load())(w, r) }))
	l := load.Start(load.Config{Dial: dialer(s.Listener.Addr().String()), KeepAlive: 2, Fresh: 1, Bucket: 10 * time.Millisecond})
	defer l.Stop()
	if err := l.Until(t.Context(), func(r load.Report) bool { return r.Versions["v1"] > 100 }); err != nil {
		t.Fatal(err)
	}
	handler.Store(&v2)
	if err := l.Until(t.Context(), func(r load.Report) bool { return r.Versions["v2"] > 100 }); err != nil {
		t.Fatal(err)
	}
	r := l.Stop()
	sum := map[string]int{}
	for i, b := range r.Buckets {
		if want := time.Duration(i) * 10 * time.Millisecond; b.At != want {
			t.Errorf("bucket %d is at %v", i, b.At)
		}
		for v, n := range b.Versions {
			sum[v] += n
		}
	}
	if sum["v1"] != r.Versions["v1"] || sum["v2"] != r.Versions["v2"] || sum["v1"]+sum["v2"] != r.Requests {
		t.Errorf("buckets have %v, report has %v of %d", sum, r.Versions, r.Requests)
	}
	if first, last := r.Buckets[0].Versions, r.Buckets[len(r.Buckets)-1].Versions; first["v2"] > 0 || last["v2"] == 0 {
		t.Errorf("first %v, last %v", first, last)
	}
}

// Stop waits for the answers to requests under way, and for all clients.
func TestStop(t *testing.T) {
	entered, release := make(chan struct{}, 10), make(chan struct{})
	s := serveHTTP(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		entered <- struct{}{}
		<-release
		echo("v1")(w, r)
	}))
	var open atomic.Int64
	l := load.Start(load.Config{KeepAlive: 1, Fresh: 1, Think: time.Hour, Dial: func(ctx context.Context) (net.Conn, error) {
		conn, err := dialer(s.Listener.Addr().String())(ctx)
		if err == nil {
			open.Add(1)
			conn = &countedConn{Conn: conn, open: &open}
		}
		return conn, err
	}})
	<-entered
	<-entered
	stopped := make(chan load.Report)
	go func() { stopped <- l.Stop() }()
	close(release)
	r := <-stopped
	if r.Requests != 2 || r.Failed != 0 {
		t.Errorf("%s", r)
	}
	if n := open.Load(); n != 0 {
		t.Errorf("%d connections are open after Stop", n)
	}
	if again := l.Stop(); again.Elapsed != r.Elapsed || again.Requests != r.Requests {
		t.Errorf("stopped again: %s", again)
	}
}

type countedConn struct {
	net.Conn
	open *atomic.Int64
}

func (c *countedConn) Close() error {
	c.open.Add(-1)
	return c.Conn.Close()
}
