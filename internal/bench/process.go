package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"

	"golang.org/x/sys/unix"
)

// process is this program in one of its roles, with all its successors. They end when stdin is closed.
type process struct {
	cmd   *exec.Cmd
	stdin io.WriteCloser
	out   io.Reader
	said  *json.Decoder
}

// startProcess starts a role, on a processor of its own if pinned.
func startProcess(ctx context.Context, role string, pinned bool, env ...string) (*process, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, self, "-serve", role)
	cmd.Env = append(os.Environ(), env...)
	cmd.Stderr = os.Stderr
	return runProcess(cmd, pinned)
}

// runProcess starts a command that ends when its input does.
func runProcess(cmd *exec.Cmd, pinned bool) (p *process, err error) {
	p = &process{cmd: cmd}
	if p.stdin, err = p.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	if p.out, err = p.cmd.StdoutPipe(); err != nil {
		return nil, err
	}
	p.said = json.NewDecoder(p.out)
	start := p.cmd.Start
	if pinned {
		start = func() error { return startOnFirstProcessor(p.cmd) }
	}
	if err := start(); err != nil {
		return nil, err
	}
	return p, nil
}

// hear waits for the next thing the process tells.
func (p *process) hear(v any) error {
	if err := p.said.Decode(v); err != nil {
		return fmt.Errorf("listen to %q: %w", p.cmd.Args, err)
	}
	return nil
}

// stop ends the process and its successors, and waits.
func (p *process) stop() {
	p.stdin.Close()
	io.Copy(io.Discard, p.out) // they share it
	p.cmd.Wait()
}

// startOnFirstProcessor keeps the server on one processor and leaves the others to the clients, so that the server is what
// limits the rate, and where the scheduler puts whom is no part of it. With a single processor there is nothing to
// choose.
func startOnFirstProcessor(cmd *exec.Cmd) error {
	var all, first unix.CPUSet
	if err := unix.SchedGetaffinity(0, &all); err != nil || all.Count() < 2 {
		return cmd.Start()
	}
	for i := 0; first.Count() == 0; i++ {
		if all.IsSet(i) {
			first.Set(i)
		}
	}
	// A child inherits what the thread has that starts it.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := unix.SchedSetaffinity(0, &first); err != nil {
		return cmd.Start()
	}
	defer unix.SchedSetaffinity(0, &all)
	return cmd.Start()
}
