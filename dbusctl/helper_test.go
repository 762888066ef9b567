package dbusctl

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"
	"time"
)

// helperEnv names the part that the test binary plays inside a guest.
const helperEnv = "ZDT_DBUSCTL_HELPER"

// helper runs that part, if any, in place of the tests.
func helper() (ran bool) {
	var err error
	switch role := os.Getenv(helperEnv); role {
	case "":
		return false
	case "service":
		err = helperService()
	case "worker":
		err = helperWorker()
	case "stranger":
		err = helperStranger()
	case "direct":
		err = helperManage(Options{}, "t.service")
	case "user":
		err = helperManage(Options{User: true}, "u.service")
	default:
		err = fmt.Errorf("no such role: %s", role)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	return true
}

// helperService is a service with a worker process. HUP: make the worker the
// main process. USR1: change the status. USR2: leave a mark. TERM: end both.
func helperService() error {
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, syscall.SIGHUP, syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGTERM)
	self, err := os.Executable()
	if err != nil {
		return err
	}
	worker := exec.Command(self)
	worker.Env = append(os.Environ(), helperEnv+"=worker")
	up, err := worker.StdoutPipe()
	if err != nil {
		return err
	}
	if err := worker.Start(); err != nil {
		return err
	}
	if _, err := io.ReadFull(up, make([]byte, 1)); err != nil { // until then a signal would kill it
		return fmt.Errorf("wait for the worker: %w", err)
	}
	if err := notify("READY=1\nSTATUS=up"); err != nil {
		return err
	}
	for s := range signals {
		switch s {
		case syscall.SIGHUP:
			err = notify(fmt.Sprintf("MAINPID=%d\nREADY=1\nSTATUS=handed over", worker.Process.Pid))
		case syscall.SIGUSR1:
			err = notify("STATUS=draining")
		case syscall.SIGUSR2:
			err = mark()
		case syscall.SIGTERM:
			worker.Process.Signal(syscall.SIGTERM)
			worker.Wait()
			return nil
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func helperWorker() error {
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, syscall.SIGUSR2, syscall.SIGTERM)
	if _, err := os.Stdout.Write([]byte{'\n'}); err != nil {
		return err
	}
	for s := range signals {
		if s == syscall.SIGTERM {
			return nil
		}
		if err := mark(); err != nil {
			return err
		}
	}
	return nil
}

// mark records that this process got SIGUSR2.
func mark() error {
	return os.WriteFile(fmt.Sprintf("%s/usr2.%d", os.Getenv("RUNTIME_DIRECTORY"), os.Getpid()), nil, 0o644)
}

func notify(state string) error {
	conn, err := net.Dial("unixgram", os.Getenv("NOTIFY_SOCKET"))
	if err != nil {
		return err
	}
	defer conn.Close()
	_, err = conn.Write([]byte(state))
	return err
}

// helperStranger is an unprivileged user: may look, may not touch.
func helperStranger() error {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	m, err := Dial(ctx, Options{})
	if err != nil {
		return err
	}
	defer m.Close()
	u, err := m.Unit(ctx, "t.service")
	if err != nil || u.MainPID == 0 {
		return fmt.Errorf("read as a stranger: %+v, %v", u, err)
	}
	if _, err := m.Watch(ctx, "t.service"); err != nil {
		return fmt.Errorf("watch as a stranger: %v", err)
	}
	for what, err := range map[string]error{
		"start":         m.Start(ctx, "t.service"),
		"restart":       m.Restart(ctx, "t.service"),
		"reload":        m.Reload(ctx, "t.service"),
		"signal":        m.Signal(ctx, "t.service", syscall.SIGUSR2),
		"daemon-reload": m.DaemonReload(ctx),
		"enable":        m.Enable(ctx, false, "t.service"),
	} {
		var e *Error
		if !errors.Is(err, ErrNotAuthorised) || !errors.As(err, &e) || e.Hint == "" {
			return fmt.Errorf("%s as a stranger: %v, want ErrNotAuthorised", what, err)
		}
		fmt.Println(err)
	}
	return nil
}

// helperManage starts, watches, signals and stops a unit of the manager at hand.
func helperManage(o Options, name string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	m, err := Dial(ctx, o)
	if err != nil {
		return err
	}
	defer m.Close()
	fmt.Println("direct:", m.direct)
	if err := m.DaemonReload(ctx); err != nil {
		return err
	}
	states, err := m.Watch(ctx, name)
	if err != nil {
		return err
	}
	if err := m.Start(ctx, name); err != nil {
		return err
	}
	await := func(what string, want func(Unit) bool) error {
		var last Unit
		for u := range states {
			if want(u) {
				return nil
			}
			last = u
		}
		return fmt.Errorf("watch ended before %s: %v %v; last %+v", what, ctx.Err(), m.Err(), last)
	}
	steps := []func() error{
		func() error {
			return await("active", func(u Unit) bool { return u.MainPID != 0 && u.StatusText == "up" })
		},
		func() error { return m.Signal(ctx, name, syscall.SIGUSR1) },
		func() error { return await("status", func(u Unit) bool { return u.StatusText == "draining" }) },
		func() error { return m.Stop(ctx, name) },
		func() error { return await("inactive", func(u Unit) bool { return u.ActiveState == "inactive" }) },
	}
	for _, step := range steps {
		if err := step(); err != nil {
			return err
		}
	}
	if _, err := m.Unit(ctx, "nope.service"); !errors.Is(err, ErrNoUnit) || !strings.Contains(err.Error(), "nope.service") {
		return fmt.Errorf("read nope.service: %v", err)
	}
	return nil
}
