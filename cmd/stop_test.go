package cmd

import (
	"context"
	"errors"
	"os/exec"
	"testing"
	"time"
)

// zdt stop returns when the process has ended, not when it was told to, and gives up with its context.
func TestStopMain(t *testing.T) {
	cmd := exec.Command("/bin/sh", "-c", `trap 'read line; exit 0' TERM; echo ready; while :; do read line; done`)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	if _, err := out.Read(make([]byte, 10)); err != nil {
		t.Fatal(err)
	}
	go func() { ended <- cmd.Wait() }()

	gone := errors.New("systemd's patience ended")
	ctx, cancel := context.WithTimeoutCause(t.Context(), 50*time.Millisecond, gone)
	defer cancel()
	if err := stopMain(ctx, cmd.Process.Pid); !errors.Is(err, gone) {
		t.Errorf("a process that does not end: %v, want %v", err, gone)
	}
	in.Close()
	if err := stopMain(t.Context(), cmd.Process.Pid); err != nil {
		t.Error(err)
	}
	select {
	case <-ended:
	case <-time.After(10 * time.Second):
		t.Fatal("stopMain returned, and the process lives")
	}
	if err := stopMain(t.Context(), cmd.Process.Pid); err != nil {
		t.Errorf("a process that ended long ago: %v", err)
	}
}
