package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/zdt-dev/zdt/internal/load"
	"github.com/zdt-dev/zdt/upgrade"
)

const (
	service = "bench"
	address = "127.0.0.1:8080"
)

// upgrades measures what an operator waits for: the commands as a shell runs them, from exec to exit.
func upgrades(ctx context.Context, t *table, n int) error {
	t.title = "What an operator waits for"
	hello, err := os.ReadFile(filepath.Join(dir, "hello"))
	if err != nil {
		return err
	}
	if err := makeService(ctx); err != nil {
		return err
	}
	u := &upgrader{program: hello}
	idle, err := u.series(ctx, n)
	if err != nil {
		return fmt.Errorf("upgrades: %w", err)
	}
	t.times("zdt upgrade: a new release, no bake, no clients", idle.wall, 250*time.Millisecond)
	t.times("  of it processor time, journalctl's included", idle.cpu, 0)
	for _, p := range upgrade.Phases() {
		t.times("  "+string(p), idle.phases[p], 0)
	}

	l := load.Start(load.Config{Dial: func(ctx context.Context) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "tcp", address)
	}})
	busy, err := u.series(ctx, max(n/4, 2))
	report := l.Stop()
	if err != nil {
		return fmt.Errorf("upgrades under load: %w", err)
	}
	t.times("zdt upgrade under load: 32 kept connections, 4 fresh", busy.wall, 0)
	t.value("  clients: failed, refused", fmt.Sprintf("%d, %d", report.Failed, report.Refused), "0, 0", report.Failed+report.Refused == 0)
	t.value("  clients: requests per second meanwhile", fmt.Sprintf("%.0f/s", float64(report.Requests)/report.Elapsed.Seconds()), "", true)

	for _, args := range [][]string{{"status", service}, {"status", service, "-o", "json"}} {
		var wall []time.Duration
		for range n {
			r, err := zdt(ctx, args...)
			if err != nil {
				return err
			}
			wall = append(wall, r.wall)
		}
		t.times("zdt "+strings.Join(args, " "), wall, 50*time.Millisecond)
	}
	return nil
}

// upgrader makes a release nobody has seen for each upgrade.
type upgrader struct {
	program []byte
	made    int
}

type upgradeTimes struct {
	wall, cpu []time.Duration
	phases    map[upgrade.Phase][]time.Duration
}

func (u *upgrader) series(ctx context.Context, n int) (upgradeTimes, error) {
	r := upgradeTimes{phases: make(map[upgrade.Phase][]time.Duration)}
	for range n {
		// Bytes behind the end of an ELF file change its checksum and its size, as another version does, and nothing else.
		u.made++
		file := filepath.Join(dir, "next")
		if err := os.WriteFile(file, append(bytes.Clone(u.program), make([]byte, u.made)...), 0o755); err != nil {
			return r, err
		}
		if err := forget(); err != nil {
			return r, err
		}
		ran, err := zdt(ctx, "upgrade", service, "--binary", file, "--bake", "0s", "--no-rehearse", "-o", "json")
		if err != nil {
			return r, err
		}
		var report upgrade.Report
		if err := json.Unmarshal(ran.out, &report); err != nil {
			return r, fmt.Errorf("read the report: %w", err)
		}
		if report.Outcome != upgrade.Upgraded {
			return r, fmt.Errorf("outcome %q", report.Outcome)
		}
		r.wall, r.cpu = append(r.wall, ran.wall), append(r.cpu, ran.cpu)
		for _, timing := range report.Timings {
			r.phases[timing.Phase] = append(r.phases[timing.Phase], timing.Took)
		}
	}
	return r, nil
}

// forget removes all releases but the five last ones, as a host that is cared for has them.
func forget() error {
	releases, err := filepath.Glob("/var/lib/zdt/" + service + "/releases/2*") // by time, as their names begin with it
	if err != nil {
		return err
	}
	for len(releases) > 5 {
		if err := os.RemoveAll(releases[0]); err != nil {
			return err
		}
		releases = releases[1:]
	}
	return nil
}

// ran is a command that has ended well.
type ran struct {
	wall time.Duration
	cpu  time.Duration // its own and that of the programs it ran
	out  []byte
}

func zdt(ctx context.Context, args ...string) (ran, error) {
	cmd := exec.CommandContext(ctx, "zdt", args...)
	began := time.Now()
	out, err := cmd.Output()
	took := time.Since(began)
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			err = fmt.Errorf("%w\n%s%s", err, out, exit.Stderr)
		}
		return ran{}, fmt.Errorf("zdt %s: %w", strings.Join(args, " "), err)
	}
	return ran{took, cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime(), out}, nil
}

// programs is about zdt's own binary.
func programs(ctx context.Context, t *table, n int) error {
	t.title = "The programs"
	path, err := exec.LookPath("zdt")
	if err != nil {
		return err
	}
	for _, file := range []string{path, filepath.Join(dir, "hello")} {
		info, err := os.Stat(file)
		if err != nil {
			return err
		}
		t.value("size of "+filepath.Base(file), fmt.Sprintf("%.1f MB", float64(info.Size())/1e6), "", true)
	}
	var wall []time.Duration
	for range n {
		r, err := zdt(ctx, "version")
		if err != nil {
			return err
		}
		wall = append(wall, r.wall)
	}
	t.times("zdt version", wall, 0)
	return nil
}
