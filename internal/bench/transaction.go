package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/zdt-dev/zdt/upgrade"
)

// transactionTarget is what the transaction may cost above the handoff in it.
const transactionTarget = 150 * time.Millisecond

// transaction compares a bare handoff with an upgrade to a release that is in the store already: the same service, by turns. What
// the upgrade does besides is look, verify the release, write records, watch the candidate, wait and read the journal.
func transaction(ctx context.Context, t *table, n int) error {
	t.title = "The transaction above the bare handoff"
	if err := makeService(ctx); err != nil {
		return err
	}
	releases, err := prepare(ctx)
	if err != nil {
		return fmt.Errorf("transaction: %w", err)
	}
	var returned, gone, whole, above []time.Duration
	upgradeTo := func(id string) error {
		ran, err := zdt(ctx, "upgrade", service, "--release", id, "--bake", "0s", "--no-rehearse", "-o", "json")
		if err != nil {
			return err
		}
		var report upgrade.Report
		if err := json.Unmarshal(ran.out, &report); err != nil {
			return fmt.Errorf("read the report: %w", err)
		}
		if report.Outcome != upgrade.Upgraded {
			return fmt.Errorf("outcome %q", report.Outcome)
		}
		whole = append(whole, ran.wall)
		return nil
	}
	reload := func() error {
		back, end, err := bareHandoff(ctx)
		returned, gone = append(returned, back), append(gone, end)
		return err
	}
	for i := range n {
		first, second := reload, func() error { return upgradeTo(releases[i%len(releases)]) }
		if i%2 == 1 {
			first, second = second, first
		}
		if err := errors.Join(first(), second()); err != nil {
			return fmt.Errorf("transaction: %w", err)
		}
		above = append(above, whole[i]-gone[i])
	}
	t.times("systemctl reload, until it returns", returned, 0)
	t.times("systemctl reload, until the old process is gone", gone, 0)
	t.times("zdt upgrade --release --no-rehearse, the same", whole, 0)
	t.times("what the transaction adds, of neighbouring turns", above, transactionTarget)
	return nil
}

// makeService makes the service that is upgraded, unless an earlier section has.
func makeService(ctx context.Context) error {
	_, err := zdt(ctx, "init", service, "--exec", filepath.Join(dir, "hello"), "--listen", address+"=http", "--start")
	return err
}

// prepare stages two releases that differ from each other and from all others.
func prepare(ctx context.Context) (ids []string, err error) {
	program, err := os.ReadFile(filepath.Join(dir, "hello"))
	if err != nil {
		return nil, err
	}
	for i := range 2 {
		file := filepath.Join(dir, "prepared")
		if err := os.WriteFile(file, append(bytes.Clone(program), fmt.Sprint("prepared ", i)...), 0o755); err != nil {
			return nil, err
		}
		ran, err := zdt(ctx, "stage", service, "--binary", file)
		if err != nil {
			return nil, err
		}
		ids = append(ids, strings.TrimSpace(string(ran.out)))
	}
	return ids, nil
}

// bareHandoff has systemd reload the service, and measures until that returns and until the process that served is gone.
func bareHandoff(ctx context.Context) (returned, gone time.Duration, err error) {
	out, err := exec.CommandContext(ctx, "systemctl", "show", "--value", "-p", "MainPID", service).Output()
	if err != nil {
		return 0, 0, fmt.Errorf("ask for the main process: %w", err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(out)))
	if err != nil {
		return 0, 0, fmt.Errorf("ask for the main process: %w", err)
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return 0, 0, fmt.Errorf("open process %d: %w", pid, err)
	}
	defer unix.Close(fd)
	began := time.Now()
	if out, err := exec.CommandContext(ctx, "systemctl", "reload", service).CombinedOutput(); err != nil {
		return 0, 0, fmt.Errorf("systemctl reload: %w\n%s", err, out)
	}
	returned = time.Since(began)
	for {
		_, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 60_000)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		return returned, time.Since(began), err
	}
}
