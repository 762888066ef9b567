package journal

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"sync"
	"time"
)

// process is one run of journalctl, whose output is read from out. The one
// who started it calls end.
type process struct {
	cmd    *exec.Cmd
	out    *os.File
	stderr head
	cancel context.CancelFunc
}

// start runs argv until it ends by itself, ctx is done or end is called.
func start(ctx context.Context, argv []string) (*process, error) {
	out, in, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("make a pipe for journalctl: %w", err)
	}
	ctx, cancel := context.WithCancel(ctx)
	p := &process{out: out, cancel: cancel}
	p.cmd = exec.CommandContext(ctx, argv[0], argv[1:]...)
	p.cmd.Env = environ()
	p.cmd.Stdout = in
	p.cmd.Stderr = &p.stderr
	isolate(p.cmd)
	// Closing the pipe ends a Read also when a grandchild keeps its other
	// end, and ends journalctl --follow, which watches it for a hang-up.
	p.cmd.Cancel = func() error {
		out.Close()
		return kill(p.cmd)
	}
	p.cmd.WaitDelay = time.Second // for a grandchild that keeps stderr
	err = p.cmd.Start()
	in.Close()
	if err != nil {
		cancel()
		out.Close()
		return nil, fmt.Errorf("run journalctl: %w", err)
	}
	return p, nil
}

// wait reaps a process whose output was read to its end. One that closed its
// output but stays has a second.
func (p *process) wait() error {
	grace := time.AfterFunc(time.Second, p.cancel)
	err := p.cmd.Wait()
	grace.Stop()
	p.cancel()
	p.out.Close()
	if err != nil {
		return explain(err, p.stderr.String())
	}
	return nil
}

// end ends the process and reaps it. The error is of one that had ended by
// itself.
func (p *process) end() error {
	p.cancel()
	err := p.wait()
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

// head keeps the beginning of what is written to it.
type head struct {
	mu sync.Mutex
	b  []byte
}

func (h *head) Write(p []byte) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if room := 1024 - len(h.b); room > 0 {
		h.b = append(h.b, p[:min(room, len(p))]...)
	}
	return len(p), nil
}

func (h *head) String() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return string(h.b)
}
