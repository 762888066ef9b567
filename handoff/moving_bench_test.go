package handoff

import (
	"bufio"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"testing"
)

// BenchmarkServe compares what a request costs with net/http alone and with h.Serve.
func BenchmarkServe(b *testing.B) {
	body := []byte(strings.Repeat("x", 512))
	server := func() *http.Server {
		return &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { w.Write(body) })}
	}
	b.Run("net-http", func(b *testing.B) {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			b.Fatal(err)
		}
		srv := server()
		served := make(chan error, 1)
		go func() { served <- srv.Serve(ln) }()
		benchmarkRequests(b, ln.Addr())
		srv.Close()
		<-served
	})
	b.Run("handoff", func(b *testing.B) {
		h, err := Open(Options{Service: "bench", ControlSocket: "-", Logger: slog.New(slog.DiscardHandler)})
		if err != nil {
			b.Fatal(err)
		}
		ln, err := h.Listen("http", "tcp", "127.0.0.1:0")
		if err != nil {
			b.Fatal(err)
		}
		srv := server()
		served := make(chan error, 1)
		go func() { served <- h.Serve(srv, ln) }()
		benchmarkRequests(b, ln.Addr())
		srv.Close()
		<-served
		h.Close()
	})
}

// benchmarkRequests sends one GET after the other over one connection. The client allocates nothing.
func benchmarkRequests(b *testing.B, addr net.Addr) {
	c, err := net.Dial("tcp", addr.String())
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	request := []byte("GET / HTTP/1.1\r\nHost: bench\r\n\r\n")
	// The first answer tells how long they are.
	c.Write(request)
	counted := &counter{r: c}
	resp, err := http.ReadResponse(bufio.NewReader(counted), nil)
	if err != nil {
		b.Fatal(err)
	}
	io.Copy(io.Discard, resp.Body)
	answer := make([]byte, counted.n)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := c.Write(request); err != nil {
			b.Fatal(err)
		}
		if _, err := io.ReadFull(c, answer); err != nil {
			b.Fatal(err)
		}
	}
}

type counter struct {
	r io.Reader
	n int
}

func (c *counter) Read(b []byte) (int, error) {
	n, err := c.r.Read(b)
	c.n += n
	return n, err
}

// BenchmarkRecord is what a connection's bytes cost beside their being read: a request head, and its end.
func BenchmarkRecord(b *testing.B) {
	head := []byte("GET /some/path?with=query HTTP/1.1\r\nHost: example.org\r\nUser-Agent: bench\r\nAccept: */*\r\n\r\n")
	var r record
	r.begin()
	b.ReportAllocs()
	for b.Loop() {
		r.response()
		r.offered(serverBuffer, true)
		r.gave(head)
		r.request()
	}
}
