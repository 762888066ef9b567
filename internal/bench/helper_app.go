package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/zdt-dev/zdt/internal/sdnotify"
)

// leaderHeader tells which process the supervisor has started, in every answer of a program that is supervised.
const leaderHeader = "X-Leader"

// serveStarter is a program as one writes it for Server::Starter: it serves the socket that it is given, and finishes its
// requests at SIGTERM in the way of net/http.
func serveStarter() error {
	go exitWithInput()
	stop, cancel := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer cancel()
	ln, err := starterListener(os.Getenv("SERVER_STARTER_PORT"))
	if err != nil {
		return err
	}
	tell(ln.Addr().String())
	tell(os.Getpid())
	leader, answer := strconv.Itoa(os.Getpid()), answers()
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set(leaderHeader, leader)
		if r.Method == http.MethodPost {
			io.Copy(w, r.Body)
			return
		}
		answer(w, r)
	})}
	ended := make(chan error, 1)
	go func() {
		<-stop.Done()
		ended <- srv.Shutdown(context.Background())
	}()
	n := sdnotify.Notifier{Socket: os.Getenv("NOTIFY_SOCKET")}
	if err := n.Ready("serving"); err != nil {
		return err
	}
	if err := srv.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return <-ended
}

// starterListener is the first socket of "127.0.0.1:80=3;/run/web.sock=4".
func starterListener(ports string) (net.Listener, error) {
	first, _, _ := strings.Cut(ports, ";")
	fd, err := strconv.Atoi(first[strings.LastIndexByte(first, '=')+1:])
	if err != nil {
		return nil, fmt.Errorf("SERVER_STARTER_PORT=%q: %w", ports, err)
	}
	file := os.NewFile(uintptr(fd), "socket")
	defer file.Close()
	return net.FileListener(file)
}

// app is a program to be supervised. fd is the number of its socket, as its supervisor has it in an argument.
type app struct {
	name     string
	command  func(fd string) []string
	lossless bool // no request fails when it stops
}

// netHTTP is this program as serveStarter.
func netHTTP() (app, error) {
	self, err := os.Executable()
	return app{name: "net/http", command: func(string) []string { return []string{self, "-serve", roleStarter} }}, err
}

const gunicornApp = `import os
def app(environ, start_response):
    body = environ["wsgi.input"].read() if environ["REQUEST_METHOD"] == "POST" else b"x" * 512
    start_response("200 OK", [("` + leaderHeader + `", str(os.getppid())), ("Content-Length", str(len(body)))])
    return [body]
`

// gunicorn is Debian's, with two workers that close each connection after its answer.
func gunicorn(dir string) (app, error) {
	path, err := exec.LookPath("gunicorn")
	if err != nil {
		return app{}, err
	}
	if err := os.WriteFile(filepath.Join(dir, "app.py"), []byte(gunicornApp), 0o644); err != nil {
		return app{}, err
	}
	return app{name: "gunicorn", lossless: true, command: func(fd string) []string {
		return []string{path, "--preload", "--workers", "2", "--log-level", "error", "--chdir", dir, "--bind", "fd://" + fd, "app:app"}
	}}, nil
}
