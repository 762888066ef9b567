package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/zdt-dev/zdt/handoff/control"
)

// supervisor is a way to run a program so that it can be replaced.
type supervisor struct {
	name    string
	trigger syscall.Signal
	// start makes the command that binds addr and runs the program. dir is for its files.
	start func(ctx context.Context, addr, dir string, a app) *exec.Cmd
	// settled waits until another upgrade can begin.
	settled func(ctx context.Context, dir string) error
}

// zdtRun is the zdt at path.
func zdtRun(path string) supervisor {
	return supervisor{
		name: "zdt run", trigger: unix.SIGUSR2,
		start: func(ctx context.Context, addr, dir string, a app) *exec.Cmd {
			args := []string{"run", "--listen", addr + "=http", "--pass", "server-starter", "--control", filepath.Join(dir, "control.sock"), "--"}
			return exec.CommandContext(ctx, path, append(args, a.command("{fd:http}")...)...)
		},
		settled: func(ctx context.Context, dir string) error {
			for {
				c, err := control.Dial(ctx, filepath.Join(dir, "control.sock"))
				if err != nil {
					return err
				}
				st, err := c.Status(ctx)
				c.Close()
				if err != nil || st.Phase == control.Idle && st.Predecessor == nil {
					return err
				}
				time.Sleep(time.Millisecond)
			}
		},
	}
}

// startServer is Server::Starter's own program, at path. It has no readiness: it takes a program that lives for a second
// for good, which is the least that it can be told but none.
func startServer(path string) supervisor {
	const fd = "9"
	return supervisor{
		name: "start_server", trigger: unix.SIGHUP,
		start: func(ctx context.Context, addr, dir string, a app) *exec.Cmd {
			args := []string{"--port", addr + "=" + fd, "--interval", "1", "--log-file", filepath.Join(dir, "log"), "--"}
			return exec.CommandContext(ctx, path, append(args, a.command(fd)...)...)
		},
		settled: func(context.Context, string) error { return nil },
	}
}

// supervised is a program that runs under a supervisor.
type supervised struct {
	supervisor
	*process
	dir, addr string
	leader    int
}

func supervise(ctx context.Context, s supervisor, a app) (run *supervised, err error) {
	dir, err := os.MkdirTemp("", "zdt-bench-")
	if err != nil {
		return nil, err
	}
	addr, err := freeAddress()
	if err != nil {
		return nil, err
	}
	cmd := s.start(ctx, addr, dir, a)
	cmd.Env = append(os.Environ(), "NOTIFY_SOCKET=", "ZDT_SERVICE=bench")
	var said bytes.Buffer
	cmd.Stderr = &said
	p, err := runProcess(cmd, false)
	if err != nil {
		return nil, err
	}
	go io.Copy(io.Discard, p.out) // what the programs tell
	run = &supervised{supervisor: s, process: p, dir: dir, addr: addr}
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	for {
		if run.leader, err = run.ask(ctx); err == nil {
			break
		}
		select {
		case <-time.After(5 * time.Millisecond):
		case <-ctx.Done():
			run.end()
			return nil, fmt.Errorf("%s: %w\n%s", s.name, err, said.Bytes())
		}
	}
	return run, nil
}

// ask is a client, and returns who has answered.
func (s *supervised) ask(ctx context.Context) (leader int, err error) {
	conn, err := s.dial(ctx)
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := io.WriteString(conn, "GET / HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n"); err != nil {
		return 0, err
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	return strconv.Atoi(resp.Header.Get(leaderHeader))
}

func (s *supervised) dial(ctx context.Context) (net.Conn, error) {
	var d net.Dialer
	return d.DialContext(ctx, "tcp", s.addr)
}

// upgrade replaces the program by another process of it, and returns how long it took from the signal until the old one
// was gone and the new one had answered.
func (s *supervised) upgrade(ctx context.Context) (time.Duration, error) {
	old := s.leader
	pidfd, err := unix.PidfdOpen(old, 0)
	if err != nil {
		return 0, fmt.Errorf("watch process %d: %w", old, err)
	}
	defer unix.Close(pidfd)
	began := time.Now()
	if err := s.cmd.Process.Signal(s.trigger); err != nil {
		return 0, err
	}
	if err := awaitEnd(pidfd, 40*time.Second); err != nil {
		return 0, fmt.Errorf("%s: process %d does not end: %w", s.name, old, err)
	}
	if s.leader, err = s.ask(ctx); err != nil {
		return 0, err
	}
	took := time.Since(began)
	if s.leader == old {
		return 0, fmt.Errorf("%s: process %d still answers", s.name, old)
	}
	return took, s.settled(ctx, s.dir)
}

func awaitEnd(pidfd int, limit time.Duration) error {
	for deadline := time.Now().Add(limit); ; {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}, int(time.Until(deadline).Milliseconds()))
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return err
		case n == 0:
			return os.ErrDeadlineExceeded
		default:
			return nil
		}
	}
}

// memory is what the supervisor's own process has in memory, in bytes: all of it, and with what it shares divided by
// those it shares it with.
func (s *supervised) memory() (rss, pss float64, err error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", s.cmd.Process.Pid))
	if err != nil {
		return 0, 0, err
	}
	for line := range strings.Lines(string(data)) {
		name, value, _ := strings.Cut(line, ":")
		var kib float64
		fmt.Sscan(value, &kib)
		switch name {
		case "Rss":
			rss = 1024 * kib
		case "Pss":
			pss = 1024 * kib
		}
	}
	return rss, pss, nil
}

// end stops the program and its supervisor.
func (s *supervised) end() {
	s.cmd.Process.Signal(unix.SIGTERM)
	s.cmd.Wait()
	s.stdin.Close()
	os.RemoveAll(s.dir)
}
