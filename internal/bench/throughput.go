package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/zdt-dev/zdt/handoff"
)

const (
	clients = 16
	slice   = 50 * time.Millisecond // long against a scheduler's turn, short against a noisy neighbour's
	// A process has its luck with addresses and caches, which outweighs what is looked for here: each pair of servers is
	// measured for so many rounds only.
	roundsOfPair = 10
)

// serveBare and serveLibrary serve the same handler, with net/http alone and with the library.
func serveBare() error {
	go exitWithInput()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	tell(ln.Addr().String())
	return http.Serve(ln, answers())
}

func serveLibrary() error {
	go exitWithInput()
	h, err := handoff.Open(handoff.Options{Service: "bench", ControlSocket: "-"})
	if err != nil {
		return err
	}
	ln, err := h.Listen("http", "tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	tell(ln.Addr().String())
	return h.Serve(&http.Server{Handler: answers()}, ln)
}

// throughput compares net/http with and without the library: kept-alive connections that send one GET after the other.
func throughput(ctx context.Context, t *table, n int) error {
	t.title = fmt.Sprintf("Throughput of net/http, %d connections, GET of 512 bytes", clients)
	r, err := measureThroughput(ctx, 4*n, startRole(roleBare), startRole(roleLibrary))
	if err != nil {
		return fmt.Errorf("throughput: %w", err)
	}
	rate := func(name string, v []float64) { t.value(name, fmt.Sprintf("%.0f/s", quantile(v, 0.5)), "", true) }
	rate("alone", r.bare.rate)
	rate("with the library", r.library.rate)
	x := quantile(r.rates, 0.5)
	t.value("requests per second, ratio of neighbouring turns", fmt.Sprintf("%.3f", x), "≥ 0.98", x >= 0.98)
	t.value("  their 10th and 90th percentile", fmt.Sprintf("%.2f–%.2f", quantile(r.rates, 0.1), quantile(r.rates, 0.9)), "", true)
	// What disturbs a turn makes it slower, never faster.
	fastest := quantile(r.library.turns, 0.9) / quantile(r.bare.turns, 0.9)
	t.value("  of the fastest tenth of the turns on either side", fmt.Sprintf("%.3f", fastest), "", true)
	t.value("processor time of the server per request, alone", fmt.Sprintf("%.2f µs", quantile(r.bare.cpu, 0.5)), "", true)
	t.value("processor time, ratio", fmt.Sprintf("%.3f", quantile(r.cpus, 0.5)), "", true)
	return nil
}

// series has the mean of each round's two turns, and in turns the rate of every turn.
type series struct{ rate, cpu, turns []float64 }

type comparison struct {
	bare, library series
	rates, cpus   []float64 // library divided by bare, of neighbouring turns
}

// starter starts one of the servers that are compared.
type starter func(ctx context.Context) (*server, error)

func startRole(role string) starter {
	return func(ctx context.Context) (*server, error) {
		p, err := startProcess(ctx, role, true)
		if err != nil {
			return nil, err
		}
		return meetServer(p)
	}
}

// measureThroughput compares two servers, of which the second has what the first is without.
func measureThroughput(ctx context.Context, rounds int, starters ...starter) (c comparison, err error) {
	for left := rounds; left > 0; left -= roundsOfPair {
		if err := c.pair(ctx, min(left, roundsOfPair), starters); err != nil {
			return c, err
		}
	}
	return c, nil
}

// pair measures two fresh servers.
func (c *comparison) pair(ctx context.Context, rounds int, starters []starter) (err error) {
	var servers [2]*server
	for i, start := range starters {
		if servers[i], err = start(ctx); err != nil {
			return err
		}
		defer servers[i].stop()
	}
	both := [2]*series{&c.bare, &c.library}
	for i := -1; i < rounds; i++ { // the first round warms up
		order := []int{0, 1, 1, 0}
		var rates, cpus [2]float64
		for _, which := range order {
			rate, cpu, err := servers[which].turn()
			if err != nil {
				return err
			}
			if i >= 0 {
				both[which].turns = append(both[which].turns, rate)
			}
			rates[which] += rate / 2
			cpus[which] += cpu / 2
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if i < 0 {
			continue
		}
		for which, s := range both {
			s.rate = append(s.rate, rates[which])
			s.cpu = append(s.cpu, cpus[which])
		}
		c.rates = append(c.rates, rates[1]/rates[0])
		c.cpus = append(c.cpus, cpus[1]/cpus[0])
	}
	return nil
}

// server is a server process and the connections to it.
type server struct {
	*process
	pid   int // whose processor time counts
	conns []net.Conn
	size  int // of an answer
}

const request = "GET / HTTP/1.1\r\nHost: bench\r\n\r\n"

// meetServer waits until a process says where it listens, and connects. The process is ended when that fails.
func meetServer(p *process) (s *server, err error) {
	s = &server{process: p, pid: p.cmd.Process.Pid}
	defer func(s *server) {
		if err != nil {
			s.stop()
		}
	}(s)
	var addr string
	if err := s.hear(&addr); err != nil {
		return nil, err
	}
	if s.conns, err = dial(addr, clients); err != nil {
		return nil, err
	}
	s.size, err = answerSize(s.conns[0])
	return s, err
}

// answerSize asks once. All answers are of the same size, so the clients need not parse them.
func answerSize(conn net.Conn) (int, error) {
	if _, err := io.WriteString(conn, request); err != nil {
		return 0, err
	}
	counted := &countingReader{r: conn}
	r := bufio.NewReader(counted)
	resp, err := http.ReadResponse(r, nil)
	if err != nil {
		return 0, err
	}
	_, err = io.Copy(io.Discard, resp.Body)
	return counted.n, err
}

type countingReader struct {
	r io.Reader
	n int
}

func (c *countingReader) Read(b []byte) (int, error) {
	n, err := c.r.Read(b)
	c.n += n
	return n, err
}

// turn loads the server for one slice and returns requests per second and the server's processor time per request, in
// microseconds.
func (s *server) turn() (rate, cpu float64, err error) {
	before, err := cpuOf(s.pid)
	if err != nil {
		return 0, 0, err
	}
	var done atomic.Int64
	var failed atomic.Pointer[error]
	began := time.Now()
	end := began.Add(slice)
	var wg sync.WaitGroup
	for _, conn := range s.conns {
		wg.Go(func() {
			answer := make([]byte, s.size)
			n := int64(0)
			for time.Now().Before(end) {
				_, err := io.WriteString(conn, request)
				if err == nil {
					_, err = io.ReadFull(conn, answer)
				}
				if err != nil {
					failed.Store(&err)
					return
				}
				n++
			}
			done.Add(n)
		})
	}
	wg.Wait()
	took := time.Since(began)
	if err := failed.Load(); err != nil {
		return 0, 0, *err
	}
	after, err := cpuOf(s.pid)
	if err != nil {
		return 0, 0, err
	}
	n := float64(done.Load())
	return n / took.Seconds(), float64((after - before).Microseconds()) / n, nil
}

func (s *server) stop() {
	hangUp(s.conns)
	s.process.stop()
}

// cpuOf sums what the scheduler counted for the threads of a process; /proc/PID/stat counts in ticks of 10 ms.
func cpuOf(pid int) (time.Duration, error) {
	files, err := filepath.Glob(filepath.Join("/proc", strconv.Itoa(pid), "task/*/schedstat"))
	if err != nil {
		return 0, err
	}
	var sum time.Duration
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			continue // a thread that ended
		}
		first, _, _ := strings.Cut(string(data), " ")
		ns, err := strconv.ParseInt(first, 10, 64)
		if err != nil {
			return 0, err
		}
		sum += time.Duration(ns)
	}
	if len(files) == 0 {
		return 0, errors.New("no scheduler statistics")
	}
	return sum, nil
}
