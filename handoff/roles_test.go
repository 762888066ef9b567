package handoff

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/zdt-dev/zdt/handoff/control"
)

// The programs that the test binary plays.

// socketSpec is a socket the service opens.
type socketSpec struct{ Name, Network, Address string }

// serviceConfig goes to every generation in the environment.
type serviceConfig struct {
	ControlSocket, HealthFile                                                    string // Health fails while the file exists
	ReadyTimeout, HoldTimeout, DrainTimeout, StreamTimeout, IdleGrace, StopGrace time.Duration

	HeaderTimeout, IdleTimeout time.Duration // of the HTTP server

	Sockets []socketSpec // the stream sockets serve HTTP, the others echo datagrams
	Skip    []string     // sockets that "service-next" does not open
	Close   []string     // sockets that are closed before READY
	Unready bool         // never serves
	Wrapped bool         // the program puts something around its connections: they cannot move
}

const envConfig = "ZDT_TEST_CONFIG"

// diary is what the generations write down, a line each.
func diary(format string, args ...any) {
	f, err := os.OpenFile(filepath.Join(os.Getenv(envRole), "diary"), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return
	}
	defer f.Close()
	fmt.Fprintf(f, "%d %s\n", os.Getpid(), fmt.Sprintf(format, args...))
}

func (c serviceConfig) options() Options {
	o := Options{
		ControlSocket: c.ControlSocket, ReadyTimeout: c.ReadyTimeout, HoldTimeout: c.HoldTimeout, DrainTimeout: c.DrainTimeout,
		VerifyMoves: true, StreamTimeout: c.StreamTimeout, IdleGrace: c.IdleGrace, StopGrace: c.StopGrace,
	}
	if c.HealthFile != "" {
		o.Health = func(context.Context) error {
			if _, err := os.Stat(c.HealthFile); err == nil {
				return errors.New("not well")
			}
			return nil
		}
	}
	return o
}

func readConfig() (serviceConfig, error) {
	var cfg serviceConfig
	return cfg, json.Unmarshal([]byte(os.Getenv(envConfig)), &cfg)
}

// report is what a generation says of itself at /report.
type report struct {
	PID, Generation int
	FDs             []string // what they lead to
	Goroutines      int
	Environ         []string
	ChildFDs        []string // those of a program it started
	Blocking        []string // sockets without O_NONBLOCK
	ReadsFrom       bool     // io.ReaderFrom is visible
	States          int64    // calls of the user's own ConnState
}

func serviceMain() error {
	cfg, err := readConfig()
	if err != nil {
		return err
	}
	exe, _ := os.Executable()
	early := filepath.Base(exe) == "service-early" // it says READY before it serves
	opt := cfg.options()
	opt.ManualReady = early
	h, err := Open(opt)
	if err != nil {
		return err
	}
	defer h.Close()
	h.OnDrain(func(context.Context) { diary("drain") })
	h.OnRelease(func(context.Context) { diary("release first registered") })
	h.OnRelease(func(context.Context) { diary("release") })
	h.Go(func(ctx context.Context) {
		<-ctx.Done()
		time.Sleep(20 * time.Millisecond) // the last piece of work
		diary("task done")
	})
	if cfg.Unready {
		<-h.Done()
		return nil
	}
	srv := &http.Server{ReadHeaderTimeout: cfg.HeaderTimeout, IdleTimeout: cfg.IdleTimeout}
	var states atomic.Int64
	srv.ConnState = func(net.Conn, http.ConnState) { states.Add(1) }
	srv.ConnContext = func(ctx context.Context, c net.Conn) context.Context {
		_, ok := c.(io.ReaderFrom)
		return context.WithValue(ctx, readsFromKey{}, ok)
	}
	ended := make(chan error, len(cfg.Sockets))
	listeners := map[string]io.Closer{}
	serving := 0
	var serve []func()
	for _, s := range cfg.Sockets {
		if filepath.Base(exe) == "service-next" && slices.Contains(cfg.Skip, s.Name) {
			continue
		}
		switch s.Network {
		case "udp", "udp4", "unixgram":
			pc, err := h.ListenPacket(s.Name, s.Network, s.Address)
			if err != nil {
				return err
			}
			serve = append(serve, func() { ended <- echo(h, pc) })
			listeners[s.Name] = pc
		default:
			ln, err := h.Listen(s.Name, s.Network, s.Address)
			if err != nil {
				return err
			}
			served := net.Listener(ln)
			if cfg.Wrapped {
				served = wrapper{ln}
			}
			serve = append(serve, func() { ended <- h.Serve(srv, served) })
			listeners[s.Name] = ln
		}
		serving++
		if slices.Contains(cfg.Close, s.Name) {
			if err := listeners[s.Name].Close(); err != nil {
				return err
			}
			serve = serve[:len(serve)-1]
			serving--
		}
	}
	srv.Handler = serviceMux(h, &states)
	if early {
		if err := h.Ready(); err != nil {
			return err
		}
		for h.Generation() > 1 && !strings.Contains(readFile(filepath.Join(os.Getenv(envRole), "diary")), " drain") {
			time.Sleep(3 * time.Millisecond) // its predecessor drains, and does not know what this one will serve
		}
	}
	for _, f := range serve {
		go f()
	}
	for range serving {
		if err := <-ended; err != nil {
			return err
		}
	}
	<-h.Done()
	diary("main returns")
	return nil
}

// shortServiceMain may open few descriptors.
func shortServiceMain() error {
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 100, Max: 100}); err != nil {
		return err
	}
	return serviceMain()
}

// wrapper is a program's own listener, as one that counts or limits.
type wrapper struct{ net.Listener }

func (w wrapper) Accept() (net.Conn, error) {
	c, err := w.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return wrapped{c}, nil
}

type wrapped struct{ net.Conn }

func (w wrapped) NetConn() net.Conn { return w.Conn }

type readsFromKey struct{}

func echo(h *Handoff, pc *PacketConn) error {
	buf := make([]byte, 1500)
	for {
		n, from, err := pc.ReadFrom(buf)
		if errors.Is(err, net.ErrClosed) {
			return nil
		}
		if err != nil {
			return err
		}
		pc.WriteTo(fmt.Appendf(nil, "%d %s", h.Generation(), buf[:n]), from)
	}
}

func serviceMux(h *Handoff, states *atomic.Int64) *http.ServeMux {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Version", strconv.Itoa(h.Generation()))
		fmt.Fprintf(w, "%d %d", h.Generation(), os.Getpid())
	})
	mux.HandleFunc("POST /", func(w http.ResponseWriter, r *http.Request) { io.Copy(w, r.Body) })
	mux.HandleFunc("GET /slow", func(w http.ResponseWriter, r *http.Request) {
		d, _ := time.ParseDuration(r.URL.Query().Get("for"))
		time.Sleep(d)
		fmt.Fprintf(w, "%d done", h.Generation())
	})
	mux.HandleFunc("GET /until-drain", func(w http.ResponseWriter, r *http.Request) {
		<-h.Draining()
		time.Sleep(50 * time.Millisecond)
		fmt.Fprintf(w, "%d done", h.Generation())
	})
	mux.HandleFunc("GET /hijack", func(w http.ResponseWriter, r *http.Request) {
		c, rw, err := w.(http.Hijacker).Hijack()
		if err != nil {
			return
		}
		defer c.Close()
		for {
			line, err := rw.ReadString('\n')
			if err != nil {
				return
			}
			fmt.Fprintf(c, "%d %s", h.Generation(), line)
		}
	})
	mux.HandleFunc("GET /report", func(w http.ResponseWriter, r *http.Request) {
		out := report{
			PID: os.Getpid(), Generation: h.Generation(), Goroutines: runtime.NumGoroutine(),
			Environ: os.Environ(), States: states.Load(), FDs: fdTargets(),
		}
		out.ReadsFrom, _ = r.Context().Value(readsFromKey{}).(bool)
		if r.URL.Query().Get("child") != "" {
			exe, _ := os.Executable()
			cmd := exec.Command(filepath.Join(filepath.Dir(exe), "list-fds"))
			if text, err := cmd.Output(); err == nil {
				out.ChildFDs = strings.Fields(string(text))
			} else {
				out.ChildFDs = []string{err.Error()}
			}
		}
		h.sockets.pass(func(names []string, fds []int) error {
			for i, fd := range fds {
				if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0); err != nil || flags&unix.O_NONBLOCK == 0 {
					out.Blocking = append(out.Blocking, names[i])
				}
			}
			return nil
		})
		json.NewEncoder(w).Encode(out)
	})
	return mux
}

// fdTargets lists what this process's descriptors lead to, leaving out
// numbers that differ from process to process.
func fdTargets() []string {
	entries, _ := os.ReadDir("/proc/self/fd")
	var out []string
	for _, e := range entries {
		to, err := os.Readlink("/proc/self/fd/" + e.Name())
		if err == nil && !strings.HasPrefix(to, "/proc/") {
			to, _, _ = strings.Cut(to, ":[")
			out = append(out, to)
		}
	}
	slices.Sort(out)
	return out
}

// listFDsMain is a program started by the service.
func listFDsMain() error {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return err
	}
	for _, e := range entries {
		to, err := os.Readlink("/proc/self/fd/" + e.Name())
		if err == nil && !strings.HasPrefix(to, "/proc/") && !strings.HasPrefix(to, "anon_inode:") {
			fmt.Println(e.Name() + "=" + to)
		}
	}
	return nil
}

// crashAfterReadyMain opens everything, says READY and dies.
func crashAfterReadyMain() error {
	h, err := Open(Options{})
	if err != nil {
		return err
	}
	if err := h.Ready(); err != nil {
		return err
	}
	return errors.New("the first request was one too many")
}

// otherWireMain speaks a version of the wire that nobody knows yet.
func otherWireMain() error {
	fd, err := strconv.Atoi(os.Getenv(envPredecessor))
	if err != nil {
		return err
	}
	if _, err := unix.Write(fd, []byte(`{"type":"hello","version":99,"min_version":98}`)); err != nil {
		return err
	}
	return errors.New("the peer is too old")
}

// closesHandoffMain says READY, accepts, closes its Handoff and does not end.
func closesHandoffMain() error {
	h, err := Open(Options{})
	if err != nil {
		return err
	}
	if err := h.Ready(); err != nil {
		return err
	}
	time.Sleep(50 * time.Millisecond) // as a program that finds out late
	h.Close()
	select {}
}

// deafToTermMain neither comes up nor ends when it is told to.
func deafToTermMain() error {
	signal.Ignore(syscall.SIGTERM)
	select {}
}

// askControlMain asks for the status and prints what the error is.
func askControlMain() error {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	c, err := control.Dial(ctx, os.Args[1])
	if err != nil {
		return err
	}
	defer c.Close()
	st, err := c.Status(ctx)
	fmt.Printf("pid %d, error %v\n", st.PID, err)
	return nil
}
