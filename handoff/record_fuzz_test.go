package handoff

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"log"
	"math/rand/v2"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"
)

// The record against those who know the truth: whenever it says that it knows
// what the reader holds, it holds exactly that.

// witness is a connection as net/http gets it, and what lies under it. It counts
// what was given to the server.
type witness struct {
	net.Conn // for all but reading
	conn
	t       *testing.T
	ends    []int // where each request of the stream ends
	stream  []byte
	given   int // bytes of stream
	done    int // responses
	checked int // reads before which the record knew
	ended   chan struct{}
}

func (w *witness) Read(b []byte) (int, error) { return w.conn.read(b) }

// witnessed is what is under a witness.
type witnessed struct {
	net.Conn
	w *witness
}

// Read is called where a connection would move.
func (s witnessed) Read(b []byte) (int, error) {
	w := s.w
	if w.conn.movable() {
		w.checked++
		start := 0
		if w.done > 0 {
			start = w.ends[w.done-1]
		}
		if start > w.given {
			w.t.Errorf("after %d responses and %d bytes", w.done, w.given)
		} else if truth := w.stream[start:w.given]; !bytes.Equal(truth, w.conn.rec.pending) {
			w.t.Errorf("after %d responses the server holds %q, the record says %q", w.done, truth, w.conn.rec.pending)
		}
	}
	n, err := s.Conn.Read(b)
	w.given += n
	return n, err
}

func (w *witness) SetDeadline(t time.Time) error     { return w.conn.setDeadline(t) }
func (w *witness) SetReadDeadline(t time.Time) error { return w.conn.setReadDeadline(t) }

func (w *witness) Close() error {
	if w.conn.closed.CompareAndSwap(false, true) {
		w.Conn.Close()
		close(w.ended)
	}
	return nil
}

// FuzzRecordHTTP has net/http read requests of all kinds in pieces of any size,
// some sent ahead and some after the response before them.
func FuzzRecordHTTP(f *testing.F) {
	for seed := range uint64(200) {
		f.Add(seed, uint8(seed), uint16(1)<<(seed%13))
	}
	f.Fuzz(func(t *testing.T, seed uint64, requests uint8, piece uint16) {
		random := rand.New(rand.NewPCG(seed, uint64(piece)))
		w := &witness{t: t, ended: make(chan struct{})}
		var stream bytes.Buffer
		posted := false
		for range 1 + int(requests)%24 {
			if posted && random.IntN(4) == 0 {
				stream.WriteString("\r\n") // as some clients do after a POST
			}
			posted = writeRequest(&stream, random)
			w.ends = append(w.ends, stream.Len())
		}
		w.stream = stream.Bytes()
		client, server := net.Pipe()
		w.Conn = server
		w.conn.tracker = newTracker()
		w.conn.tracker.movesHTTP = true
		w.conn.net = witnessed{server, w}

		answers := make(chan struct{}, len(w.ends)) // one for each response
		read := make(chan struct{})
		go func() {
			defer close(read)
			r := bufio.NewReader(client)
			for {
				resp, err := http.ReadResponse(r, nil)
				if err != nil {
					return
				}
				io.Copy(io.Discard, resp.Body)
				if resp.StatusCode != http.StatusContinue {
					answers <- struct{}{}
				}
			}
		}()
		wrote := make(chan struct{})
		pipelines, timeouts := random.IntN(3), random.IntN(2) == 0
		go func() {
			defer close(wrote)
			defer client.Close()
			answered := 0
			for at := 0; at < len(w.stream); {
				n := min(1+random.IntN(1+int(piece)), len(w.stream)-at)
				if random.IntN(8) == 0 {
					n = min(4096, len(w.stream)-at)
				}
				// The end of a request is waited for, unless more is sent ahead.
				for i, end := range w.ends {
					if at < end && end <= at+n && random.IntN(4) >= pipelines {
						n = end - at
						if _, err := client.Write(w.stream[at : at+n]); err != nil {
							return
						}
						at += n
						for ; answered <= i; answered++ {
							select {
							case <-answers:
							case <-read:
								return
							}
						}
						n = 0
						break
					}
				}
				if _, err := client.Write(w.stream[at : at+n]); err != nil {
					return
				}
				at += n
			}
			for ; answered < len(w.ends); answered++ {
				select {
				case <-answers:
				case <-read:
					return
				}
			}
		}()
		srv := &http.Server{
			Handler: http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
				switch r.URL.Path {
				case "/some":
					io.CopyN(io.Discard, r.Body, 10)
				case "/all":
					io.Copy(io.Discard, r.Body)
				case "/early":
					rw.Write([]byte("early"))
					http.NewResponseController(rw).Flush()
					io.Copy(io.Discard, r.Body)
				}
				fmt.Fprint(rw, r.URL.Path)
			}),
			ConnState: func(c net.Conn, s http.ConnState) {
				httpState(c, s)
				if s == http.StateIdle {
					w.done++
				}
			},
			ErrorLog: log.New(io.Discard, "", 0),
		}
		if timeouts {
			srv.ReadHeaderTimeout, srv.IdleTimeout = patience, patience
		}
		srv.Serve(&probeListener{conn: w})
		<-w.ended
		<-wrote
		client.Close()
		<-read
		if w.done != len(w.ends) {
			t.Errorf("%d of %d requests were answered", w.done, len(w.ends))
		}
		if w.checked == 0 {
			t.Error("the record never knew")
		}
	})
}

func writeRequest(w io.Writer, random *rand.Rand) (posted bool) {
	path := []string{"/none", "/some", "/all", "/early"}[random.IntN(4)]
	body := strings.Repeat("b", []int{0, 1, 9, 300, 5000, 70_000}[random.IntN(6)])
	header := ""
	if n := random.IntN(6); n > 2 {
		header = "X-Long: " + strings.Repeat("h", []int{10, 3000, 9000}[n-3]) + "\r\n"
	}
	switch random.IntN(3) {
	case 0:
		fmt.Fprintf(w, "GET %s HTTP/1.1\r\nHost: a\r\n%s\r\n", path, header)
		return false
	case 1:
		fmt.Fprintf(w, "POST %s HTTP/1.1\r\nHost: a\r\n%sContent-Length: %d\r\n\r\n%s", path, header, len(body), body)
	case 2:
		fmt.Fprintf(w, "POST %s HTTP/1.1\r\nHost: a\r\n%sTransfer-Encoding: chunked\r\n\r\n", path, header)
		for len(body) > 0 {
			n := 1 + random.IntN(len(body))
			fmt.Fprintf(w, "%x\r\n%s\r\n", n, body[:n])
			body = body[n:]
		}
		io.WriteString(w, "0\r\n\r\n")
	}
	return true
}

// FuzzRecordTracked: the program says how much it holds, truly or not.
func FuzzRecordTracked(f *testing.F) {
	f.Add([]byte{10, 200, 3, 200, 255, 200, 0, 5, 129})
	f.Add([]byte{250, 250, 250, 128, 7, 131})
	f.Fuzz(func(t *testing.T, ops []byte) {
		var r record
		r.begin()
		var truth []byte // given and not processed
		lied := false    // since the last true boundary
		next := byte(0)
		for _, op := range ops[:min(len(ops), 40)] {
			switch {
			case op < 128: // bytes are given: some, or very many
				n := int(op)
				if op > 124 && len(truth) < maxPending {
					n = maxPending / 3 * int(op-124)
				}
				b := make([]byte, n)
				for i := range b[:min(n, 1000)] {
					b[i] = next
					next++
				}
				r.gave(b)
				truth = append(truth, b...)
			case op < 250: // a boundary
				held := min(int(op-128)*int(op-128), len(truth))
				was := r.known()
				r.boundary(held)
				truth = truth[len(truth)-held:]
				lied = lied && !r.known()
				if was && !r.known() {
					t.Errorf("a boundary with %d bytes held makes the record forget", held)
				}
				if held == 0 && !r.known() {
					t.Error("with nothing held there is nothing to know")
				}
			default: // a program that counts wrong
				r.boundary(len(truth) + 1 + int(op-250))
				if lied = true; r.known() {
					t.Error("the record knows more than was given")
				}
			}
			if r.known() && !bytes.Equal(truth, r.pending) {
				t.Fatalf("the program holds %d bytes, the record %d (%v)", len(truth), len(r.pending), lied)
			}
			if len(r.pending) > maxPending {
				t.Fatalf("%d bytes are kept", len(r.pending))
			}
		}
	})
}
