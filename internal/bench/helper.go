package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"slices"
	"time"

	"github.com/zdt-dev/zdt/internal/load"
)

// helperMemory is what zdt run may have in memory.
const helperMemory = 12 << 20

// besideStarter compares zdt run with Server::Starter's start_server, which does the same for the same programs, and with
// no supervisor at all.
func besideStarter(ctx context.Context, t *table, n int) error {
	t.title = "zdt run, and start_server of Server::Starter"
	path, err := exec.LookPath("zdt")
	if err != nil {
		return err
	}
	all := []supervisor{zdtRun(path)}
	if other, err := exec.LookPath("start_server"); err == nil {
		all = append(all, startServer(other))
	} else {
		t.value("start_server: not installed (Debian 13's libserver-starter-perl)", "", "", true)
	}
	apps, err := supervisedApps(t)
	if err != nil {
		return err
	}
	for _, a := range apps {
		results, err := superviseByTurns(ctx, all, a, max(n/4, 1))
		if err != nil {
			return fmt.Errorf("upgrades of %s: %w", a.name, err)
		}
		for i, s := range all {
			results[i].rows(t, s.name+", "+a.name, a, i == 0)
		}
	}
	return throughputUnderHelper(ctx, t, path, n)
}

func supervisedApps(t *table) ([]app, error) {
	own, err := netHTTP()
	if err != nil {
		return nil, err
	}
	foreign, err := gunicorn(dir)
	if errors.Is(err, exec.ErrNotFound) {
		t.value("gunicorn: not installed", "", "", true)
		return []app{own}, nil
	}
	return []app{own, foreign}, err
}

// supervision is what the upgrades under a supervisor took, and what their clients saw.
type supervision struct {
	took                                  []time.Duration
	requests, failed, refused, reconnects int
	rss, pss                              float64
}

func (r supervision) rows(t *table, name string, a app, ours bool) {
	t.times(name+": an upgrade", r.took, 0)
	n := float64(len(r.took))
	t.value("  the longest of "+fmt.Sprint(len(r.took)), ms(slices.Max(r.took)), "", true)
	target := ""
	if ours && a.lossless {
		target = "0"
	}
	t.value("  requests failed per upgrade", fmt.Sprintf("%.2f", float64(r.failed)/n), target, r.failed == 0)
	target = ""
	if ours {
		target = "0"
	}
	t.value("  connections refused", fmt.Sprint(r.refused), target, r.refused == 0)
	t.value("  connections opened anew per upgrade, of 8 kept", fmt.Sprintf("%.1f", float64(r.reconnects)/n), "", true)
	if ours {
		target = "≤ 12.0 MiB"
	}
	t.value("  memory of the supervisor, RSS", mib(r.rss), target, r.rss <= helperMemory)
	t.value("  memory of the supervisor, PSS", mib(r.pss), "", true)
}

func mib(bytes float64) string { return fmt.Sprintf("%.1f MiB", bytes/(1<<20)) }

// superviseByTurns runs the program under each supervisor and upgrades it 2n times, A B B A.
func superviseByTurns(ctx context.Context, all []supervisor, a app, n int) ([]supervision, error) {
	results := make([]supervision, len(all))
	var runs []*supervised
	for _, s := range all {
		run, err := supervise(ctx, s, a)
		if err != nil {
			return nil, err
		}
		defer run.end()
		runs = append(runs, run)
	}
	order := make([]int, 0, 2*len(all))
	for i := range all {
		order = append(order, i)
	}
	back := slices.Clone(order)
	slices.Reverse(back)
	order = append(order, back...)
	for range n {
		for _, i := range order {
			if err := results[i].turn(ctx, runs[i]); err != nil {
				return nil, err
			}
		}
	}
	for i, run := range runs {
		var err error
		if results[i].rss, results[i].pss, err = run.memory(); err != nil {
			return nil, err
		}
	}
	return results, nil
}

// turn is one upgrade under load.
func (r *supervision) turn(ctx context.Context, s *supervised) error {
	l := load.Start(load.Config{Dial: s.dial, KeepAlive: 8, Fresh: 2, Think: 4 * time.Millisecond})
	defer l.Stop()
	flows := func() error {
		from := l.Report().Requests
		ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
		defer cancel()
		return l.Until(ctx, func(r load.Report) bool { return r.Requests >= from+150 })
	}
	if err := flows(); err != nil {
		return err
	}
	before := l.Report()
	took, err := s.upgrade(ctx)
	if err == nil {
		err = flows()
	}
	if err != nil {
		return err
	}
	after := l.Stop()
	r.took = append(r.took, took)
	r.requests += after.Requests - before.Requests
	r.failed += after.Failed - before.Failed
	r.refused += after.Refused - before.Refused
	// Of a server that closes each connection nothing is to be told.
	if before.PoliteCloses == 0 {
		r.reconnects += after.Reconnects - before.Reconnects
	}
	return nil
}

// throughputUnderHelper compares a server under zdt run with the same one started by hand.
func throughputUnderHelper(ctx context.Context, t *table, zdt string, n int) error {
	r, err := measureThroughput(ctx, 4*n, startAlone, startSupervised(zdt))
	if err != nil {
		return fmt.Errorf("throughput under zdt run: %w", err)
	}
	t.value("throughput of net/http, started by hand", fmt.Sprintf("%.0f/s", quantile(r.bare.rate, 0.5)), "", true)
	t.value("  under zdt run", fmt.Sprintf("%.0f/s", quantile(r.library.rate, 0.5)), "", true)
	x := quantile(r.rates, 0.5)
	t.value("  ratio of neighbouring turns", fmt.Sprintf("%.3f", x), "≥ 0.99", x >= 0.99)
	t.value("  their 10th and 90th percentile", fmt.Sprintf("%.2f–%.2f", quantile(r.rates, 0.1), quantile(r.rates, 0.9)), "", true)
	t.value("  processor time of the server per request, by hand", fmt.Sprintf("%.2f µs", quantile(r.bare.cpu, 0.5)), "", true)
	t.value("  processor time, ratio", fmt.Sprintf("%.3f", quantile(r.cpus, 0.5)), "", true)
	return nil
}

// startAlone starts the server with a socket, as a supervisor would, and is none.
func startAlone(ctx context.Context) (*server, error) {
	a, err := netHTTP()
	if err != nil {
		return nil, err
	}
	ln, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		return nil, err
	}
	defer ln.Close()
	socket, err := ln.File()
	if err != nil {
		return nil, err
	}
	defer socket.Close()
	args := a.command("3")
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Env = append(os.Environ(), "NOTIFY_SOCKET=", "SERVER_STARTER_PORT="+ln.Addr().String()+"=3")
	cmd.ExtraFiles = []*os.File{socket}
	return meetStarter(cmd)
}

// startSupervised starts it under zdt run.
func startSupervised(zdt string) starter {
	return func(ctx context.Context) (*server, error) {
		a, err := netHTTP()
		if err != nil {
			return nil, err
		}
		addr, err := freeAddress()
		if err != nil {
			return nil, err
		}
		args := append([]string{"run", "--listen", addr + "=http", "--pass", "server-starter", "--control", "-", "--"}, a.command("")...)
		cmd := exec.CommandContext(ctx, zdt, args...)
		cmd.Env = append(os.Environ(), "NOTIFY_SOCKET=", "ZDT_SERVICE=bench")
		return meetStarter(cmd)
	}
}

func meetStarter(cmd *exec.Cmd) (*server, error) {
	cmd.Stderr = os.Stderr
	p, err := runProcess(cmd, true)
	if err != nil {
		return nil, err
	}
	s, err := meetServer(p)
	if err != nil {
		return nil, err
	}
	if err := s.hear(&s.pid); err != nil {
		s.stop()
		return nil, err
	}
	return s, nil
}
