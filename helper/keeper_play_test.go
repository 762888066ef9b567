//go:build linux

package helper

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/zdt-dev/zdt/handoff"
	"github.com/zdt-dev/zdt/internal/sdnotify"
)

// envStage is the stageConfig of the processes of a scenario.
const envStage = "ZDT_TEST_STAGE"

// actors are what the test binary plays when it is executed as the file app of a release whose name begins
// with one of these: programs under a helper.
func actors() map[string]func(stageConfig) error {
	return map[string]func(stageConfig) error{
		"web":      func(c stageConfig) error { return playWeb(c, webTraits{}) },
		"stubborn": func(c stageConfig) error { return playWeb(c, webTraits{stubborn: true}) },
		"mute":     func(c stageConfig) error { return playWeb(c, webTraits{mute: true}) },
		"crash":    func(stageConfig) error { os.Exit(7); return nil },
		"again":    playAgain,
		"fades":    playFades,
		"moody":    playMoody,
		"third":    func(c stageConfig) error { return playThird(c, func() error { os.Exit(7); return nil }) },
		"later": func(c stageConfig) error {
			return playThird(c, func() error { return playWeb(c, webTraits{mute: true}) })
		},
		"library": playLibrary,
	}
}

// act plays the program as which this process was executed, and does not return then.
func act() {
	if filepath.Base(os.Args[0]) != "app" || os.Getenv(envStage) == "" {
		return
	}
	var c stageConfig
	err := json.Unmarshal([]byte(os.Getenv(envStage)), &c)
	release, resolveErr := filepath.EvalSymlinks(filepath.Dir(os.Args[0]))
	name, _, _ := strings.Cut(filepath.Base(release), ".")
	if err = errors.Join(err, resolveErr); err == nil {
		err = actors()[name](c)
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", os.Args[0], err)
		os.Exit(1)
	}
	os.Exit(0)
}

// helperMain is "zdt run" for the scenarios.
func helperMain([]string) error {
	var c stageConfig
	if err := json.Unmarshal([]byte(os.Getenv(envStage)), &c); err != nil {
		return err
	}
	app := App{
		Command: []string{c.path("current", "app")}, Environ: os.Environ(), Passing: Passing{Systemd: true}, Overlap: !c.Restart,
		ReadyTimeout: c.ReadyTimeout, DrainTimeout: c.DrainTimeout, Pause: c.Pause, Resume: c.Resume,
	}
	if c.Command != "" {
		app.Command = []string{c.Command}
	}
	if c.Script != "" {
		app.Command = []string{"/bin/sh", "-c", c.Script, c.path("log")}
	}
	var err error
	if app.Readiness, err = ParseReadiness(c.Ready); err != nil {
		return err
	}
	exit, err := Run(Options{
		Service: "stage", ControlSocket: c.controlPath(), Takeover: c.Takeover, NotifyDir: c.Dir, HoldTimeout: c.HoldTimeout,
		Listen: append([]Listen{{"http", "tcp", "127.0.0.1:0"}}, c.Listen...), App: app, Workers: c.Workers, ReusePort: c.ReusePort,
		Parse: func(command, environ []string) (App, error) {
			next := app
			if len(command) > 0 && command[0] == "wrong" {
				return App{}, errors.New("unknown flag")
			}
			if len(command) > 0 && command[0] == "alone" {
				next.Overlap = false
				return next, nil
			}
			if len(command) > 0 {
				next.Command = command
			}
			if len(environ) > 0 {
				next.Environ = append(environ, envStage+"="+os.Getenv(envStage))
			}
			return next, nil
		},
		Logger: slog.New(slog.NewJSONHandler(os.Stderr, nil)),
	})
	if err != nil {
		return err
	}
	exit.Die()
	return nil
}

// lastWords is how often LastWords are said.
const lastWords = 50

// webTraits are what makes a web server a difficult one.
type webTraits struct {
	stubborn bool // does not end when it is told to
	mute     bool // never says READY=1
}

// web is a web server that obeys: it stops accepting at SIGWINCH and begins again at SIGHUP,
// it finishes its requests at SIGTERM, and at the socket app-PID.sock it does what a
// test tells it.
type web struct {
	stageConfig
	notifier sdnotify.Notifier
	release  chan struct{} // closed: /hang answers
	released sync.Once
}

func playWeb(c stageConfig, traits webTraits) error {
	w := &web{stageConfig: c, notifier: sdnotify.Notifier{Socket: os.Getenv("NOTIFY_SOCKET")}, release: make(chan struct{})}
	if pid := os.Getenv("LISTEN_PID"); pid != strconv.Itoa(os.Getpid()) {
		return fmt.Errorf("LISTEN_PID=%s", pid)
	}
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGWINCH, syscall.SIGHUP)
	ln, err := net.FileListener(os.NewFile(3, "http"))
	if err != nil {
		return err
	}
	orders, err := net.Listen("unix", c.path(fmt.Sprintf("app-%d.sock", os.Getpid())))
	if err != nil {
		return err
	}
	defer orders.Close()
	go w.obey(orders)
	mux := http.NewServeMux()
	mux.HandleFunc("/", func(rw http.ResponseWriter, _ *http.Request) { fmt.Fprint(rw, os.Getpid()) })
	mux.HandleFunc("/hang", func(rw http.ResponseWriter, _ *http.Request) {
		w.note("hangs")
		<-w.release
		fmt.Fprint(rw, os.Getpid())
	})
	var open sync.WaitGroup
	srv := &http.Server{Handler: mux, ConnState: func(_ net.Conn, state http.ConnState) {
		switch state {
		case http.StateNew:
			open.Add(1)
		case http.StateClosed:
			open.Done()
		}
	}}
	served := make(chan error, 1)
	go func() { served <- srv.Serve(ln) }()
	if !traits.mute {
		w.note("serves") // before anybody can act on it
		w.notifier.Send("READY=1")
	}
	for s := range signals {
		w.note(s.String())
		if s != syscall.SIGTERM || traits.stubborn {
			continue
		}
		ln.Close()
		<-served
		open.Wait() // in place of Shutdown, which closes connections whose request is being read
		if what := w.LastWords; what != "" {
			f, _ := os.Open(os.DevNull)
			for range lastWords { // more than one, so that some wait when it is gone
				w.notifier.SendFDs(strings.Split(what, " "), int(f.Fd()))
			}
		}
		return nil
	}
	return nil
}

// obey does what it is told, a line each, and answers with an empty one.
func (w *web) obey(orders net.Listener) {
	for {
		conn, err := orders.Accept()
		if err != nil {
			return
		}
		line, _ := bufio.NewReader(conn).ReadString('\n')
		verb, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
		switch verb {
		case "say":
			w.notifier.Send(strings.Split(rest, " ")...)
		case "store":
			f, _ := os.Open(os.DevNull)
			w.notifier.SendFDs([]string{"FDSTORE=1", "FDNAME=" + rest}, int(f.Fd()))
			f.Close()
		case "release":
			w.released.Do(func() { close(w.release) }) // of several that hang here, each is told
		case "fork": // a child that is in the group and outlives this process
			fd, _ := unix.Open(os.DevNull, unix.O_RDWR, 0)
			pid, err := syscall.ForkExec("/bin/sleep", []string{"sleep", "1000"}, &syscall.ProcAttr{
				Env: os.Environ(), Files: []uintptr{uintptr(fd), uintptr(fd), uintptr(fd)},
			})
			fmt.Fprintln(conn, pid, err)
		case "exit":
			n, _ := strconv.Atoi(rest)
			w.note("ends")
			os.Exit(n)
		case "environ":
			fmt.Fprintln(conn, os.Getenv(rest))
		}
		fmt.Fprintln(conn)
		conn.Close()
	}
}

// note tells the test, by a line in the stage's log.
func (w *web) note(what string) {
	f, err := os.OpenFile(w.path("log"), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return
	}
	defer f.Close()
	fmt.Fprintf(f, "%d %s\n", os.Getpid(), what)
}

// playAgain serves the first time, and does not end when it is told to. Later it does not come up.
func playAgain(c stageConfig) error {
	if os.Getenv("ZDT_GENERATION") == "1" {
		return playWeb(c, webTraits{stubborn: true})
	}
	os.Exit(9)
	return nil
}

// playFades serves the first time. Later it ends as soon as it was READY.
func playFades(c stageConfig) error {
	if os.Getenv("ZDT_GENERATION") == "1" {
		return playWeb(c, webTraits{})
	}
	sdnotify.Notifier{Socket: os.Getenv("NOTIFY_SOCKET")}.Send("READY=1")
	os.Exit(9)
	return nil
}

// playThird does something else where it is the third worker.
func playThird(c stageConfig, third func() error) error {
	if os.Getenv("ZDT_WORKER") == "3" {
		return third()
	}
	return playWeb(c, webTraits{})
}

// playMoody is never READY while there is a file "mood" in the stage's directory.
func playMoody(c stageConfig) error {
	_, err := os.Stat(c.path("mood"))
	return playWeb(c, webTraits{mute: err == nil})
}

// playLibrary is a program that could hand over by itself.
func playLibrary(c stageConfig) error {
	h, err := handoff.Open(handoff.Options{})
	if err != nil {
		return err
	}
	ln, err := h.Listen("http", "tcp", "")
	if err != nil {
		return err
	}
	(&web{stageConfig: c}).note(fmt.Sprint("is ", h.Generation()))
	return h.Serve(&http.Server{Handler: http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) { fmt.Fprint(rw, os.Getpid()) })}, ln)
}

// stageConfig is what a scenario is like.
type stageConfig struct {
	Dir       string
	Program   string // the actor in the first release
	Script    string // a shell's, in place of it; $0 is the log
	Command   string // in place of the program
	Ready     string // Readiness
	Restart   bool   // the program cannot run twice at a time
	Workers   int
	ReusePort bool
	LastWords string // what the program says to systemd at its end, with a descriptor
	Takeover  string // the takeover socket
	Control   string // the control socket, in place of one in Dir
	Listen    []Listen

	Pause, Resume                           syscall.Signal
	ReadyTimeout, DrainTimeout, HoldTimeout time.Duration
}

func (c stageConfig) controlPath() string {
	if c.Control != "" {
		return c.Control
	}
	return c.path("control.sock")
}

func (c stageConfig) path(elem ...string) string {
	return filepath.Join(append([]string{c.Dir}, elem...)...)
}
