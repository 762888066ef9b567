package cmd

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

// newStopCmd is what ExecStop= of a generated unit runs. systemd alone would
// kill: it notes at the moment of a handoff that the new main process is not its
// child, does not look again when the old process has ended and it became one, and
// does not wait for a main process that is not its child between SIGTERM and
// SIGKILL (seen with 252 and 257). For the end of an ExecStop= it does wait.
func newStopCmd(f *factory) *cobra.Command {
	cmd := &cobra.Command{
		Use:    "stop",
		Hidden: true, // nobody but systemd has a use for it
		Short:  "Stop the main process and wait for its end (ExecStop=)",
		Long: `Send SIGTERM to the main process of the service that runs this as ExecStop=, and
wait until it has finished its requests and ended. People use systemctl stop.`,
		Example: `  ExecStop=-/usr/local/bin/zdt stop      (in the unit)`,
		Args:    arguments(0, 0, ""),
	}
	return f.command(cmd, func(ctx context.Context, _ []string) error {
		text := f.getenv("MAINPID")
		if text == "" && f.getenv("RUNTIME_DIRECTORY") != "" {
			return nil // it ended by itself, and systemd cleans up
		}
		pid, err := strconv.Atoi(text)
		if err != nil || pid <= 0 {
			return usage("systemctl stop NAME", "stop: $MAINPID, which says in ExecStop= whom to stop, is not set")
		}
		return stopMain(ctx, pid)
	}, ExitOK, ExitUnexpected, ExitUsage, ExitTerm)
}

// stopMain ends one process and waits for its end. The runtime in it ends what
// else there is of the service: a candidate, or a predecessor that still drains.
func stopMain(ctx context.Context, pid int) error {
	process, err := openPidfd(pid)
	if errors.Is(err, syscall.ESRCH) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("main process %d: %w", pid, err)
	}
	defer process.close()
	if err := process.signal(syscall.SIGTERM); err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("signal main process %d: %w", pid, err)
	}
	if err := process.wait(ctx); err != nil {
		return err
	}
	// It has ended, but systemd may learn of this command's end first. It would
	// kill the remains, which harms nobody, and write into the journal that it did.
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	for tick := time.NewTicker(2 * time.Millisecond); process.signal(0) == nil; {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
	return nil
}

// wait returns when the process has ended.
func (p pidfd) wait(ctx context.Context) error {
	const look = 100 * time.Millisecond // for the end of ctx; that of the process wakes at once
	for ctx.Err() == nil {
		fds := []unix.PollFd{{Fd: int32(p), Events: unix.POLLIN}}
		n, err := unix.Poll(fds, int(look.Milliseconds()))
		switch {
		case err != nil && err != unix.EINTR:
			return fmt.Errorf("wait for the main process: %w", err)
		case err == nil && n > 0:
			return nil
		}
	}
	return fmt.Errorf("wait for the main process: %w", context.Cause(ctx))
}
