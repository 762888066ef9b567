package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// startups compares how long a successor takes to serve with a plain start of the same program: what a handoff adds is
// what it costs.
func startups(ctx context.Context, t *table, n int) error {
	t.title = "From SIGUSR2 to a successor that serves"
	r, err := measureStartups(ctx, filepath.Join(dir, "hello"), n)
	if err != nil {
		return fmt.Errorf("startups: %w", err)
	}
	plain := t.times("fork + exec to READY=1, for comparison", r.plain.ready, 0)
	ready := t.times("SIGUSR2 to READY=1 with the successor's MAINPID=", r.handoff.ready, 0)
	plainAnswer := t.times("fork + exec to the first answer, under polling", r.plain.answer, 0)
	answer := t.times("SIGUSR2 to the successor's first answer, under polling", r.handoff.answer, 0)
	ratio := func(name string, d, to time.Duration) {
		x := float64(d) / float64(to)
		t.value(name, fmt.Sprintf("%.2f", x), "≤ 1.50", x <= 1.5)
	}
	ratio("READY=1, as a multiple of the plain start", ready, plain)
	ratio("first answer, as a multiple of the plain start", answer, plainAnswer)
	return nil
}

// startupTimes are those of plain starts and of handoffs: until READY=1 when nobody disturbs, and until the first answer
// to a client that asks all the time.
type startupTimes struct{ plain, handoff times }

type times struct{ ready, answer []time.Duration }

func (t *times) add(d time.Duration, poll bool) {
	if poll {
		t.answer = append(t.answer, d)
	} else {
		t.ready = append(t.ready, d)
	}
}

// measureStartups starts the program and hands it over, 2n times, every second time with a client that polls.
func measureStartups(ctx context.Context, program string, n int) (startupTimes, error) {
	var r startupTimes
	// Successors become this process's children when their parent ends, and so can be waited for.
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return r, fmt.Errorf("prctl: %w", err)
	}
	defer unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)
	tmp, err := os.MkdirTemp("", "zdt-bench-")
	if err != nil {
		return r, err
	}
	defer os.RemoveAll(tmp)
	notify, err := listenNotify(filepath.Join(tmp, "notify"))
	if err != nil {
		return r, err
	}
	defer notify.close()
	for i := -4; i < 2*n; i++ { // the first rounds fill caches
		poll := i%2 != 0
		plain, handoff, err := handOver(ctx, notify, program, tmp, poll)
		if err != nil {
			return r, err
		}
		if i >= 0 {
			r.plain.add(plain, poll)
			r.handoff.add(handoff, poll)
		}
	}
	return r, nil
}

// handOver starts the program, hands it over to itself, and ends it.
func handOver(ctx context.Context, notify *notifySocket, program, runtimeDir string, poll bool) (plain, handoff time.Duration, err error) {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	addr, err := freeAddress()
	if err != nil {
		return 0, 0, err
	}
	cmd := exec.Command(program, "-listen", addr)
	cmd.Env = []string{"NOTIFY_SOCKET=" + notify.conn.LocalAddr().String(), "RUNTIME_DIRECTORY=" + runtimeDir, "ZDT_SERVICE=bench"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	watch := newWatch(ctx, notify, addr, poll)

	began := time.Now()
	if err := cmd.Start(); err != nil {
		return 0, 0, err
	}
	first := cmd.Process.Pid
	killAll := func() { unix.Kill(-first, unix.SIGKILL) } // the group: a successor too
	stop := context.AfterFunc(ctx, killAll)
	defer stop()
	defer func() {
		if err != nil {
			killAll()
			cmd.Wait()
		}
	}()
	at, _, err := watch(0)
	if err != nil {
		return 0, 0, err
	}
	plain = at.Sub(began)

	began = time.Now()
	if err := cmd.Process.Signal(syscall.SIGUSR2); err != nil {
		return 0, 0, err
	}
	at, second, err := watch(first)
	if err != nil {
		return 0, 0, err
	}
	handoff = at.Sub(began)
	cmd.Wait() // it ends once its connections have
	if err := unix.Kill(second, unix.SIGTERM); err != nil {
		return 0, 0, fmt.Errorf("end successor: %w", err)
	}
	for {
		if _, err := unix.Wait4(second, nil, 0, nil); err != unix.EINTR {
			return plain, handoff, ctx.Err() // reaped, or somebody else's child
		}
	}
}

// newWatch returns a function that waits until another process than the one given serves, and tells when that was and
// which it is. With poll it goes by the answers to a client, else by READY=1.
func newWatch(ctx context.Context, notify *notifySocket, addr string, poll bool) func(not int) (time.Time, int, error) {
	return func(not int) (time.Time, int, error) {
		if poll {
			at, pid, err := pollUntilOther(ctx, addr, not)
			if err == nil {
				_, err = notify.wait(ctx)
			}
			return at, pid, err
		}
		at, err := notify.wait(ctx)
		if err != nil {
			return at, 0, err
		}
		// The incumbent may answer a last time, when it was just about to accept.
		_, pid, err := pollUntilOther(ctx, addr, not)
		return at, pid, err
	}
}

// freeAddress returns an address that nobody listens on at this moment.
func freeAddress() (string, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	return ln.Addr().String(), ln.Close()
}

func (n *notifySocket) wait(ctx context.Context) (time.Time, error) {
	select {
	case at := <-n.ready:
		return at, nil
	case <-ctx.Done():
		return time.Time{}, fmt.Errorf("wait for READY=1: %w", ctx.Err())
	}
}

// pollUntilOther opens a connection every millisecond, asks who serves, and returns when it is another process.
func pollUntilOther(ctx context.Context, addr string, not int) (time.Time, int, error) {
	pace := time.NewTicker(time.Millisecond)
	defer pace.Stop()
	for {
		pid, err := askPID(ctx, addr)
		switch {
		case not == 0 && errors.Is(err, syscall.ECONNREFUSED):
		case err != nil || pid != not:
			return time.Now(), pid, err
		}
		select {
		case <-pace.C:
		case <-ctx.Done():
			return time.Time{}, 0, ctx.Err()
		}
	}
}

// askPID asks over a connection of its own which process serves: "hello from v1, pid 4711".
func askPID(ctx context.Context, addr string) (int, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(5 * time.Second))
	if _, err := io.WriteString(conn, "GET / HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n"); err != nil {
		return 0, err
	}
	body, err := io.ReadAll(conn)
	if err != nil {
		return 0, err
	}
	var pid int
	_, after, ok := strings.Cut(string(body), ", pid ")
	if _, err := fmt.Sscan(after, &pid); !ok || err != nil {
		return 0, fmt.Errorf("unexpected answer %q", body)
	}
	return pid, nil
}
