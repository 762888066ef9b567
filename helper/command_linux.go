package helper

import (
	"context"
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// outputLimit bounds what run keeps of a command's output: the end of it is
// read and thrown away.
const outputLimit = 64 << 10

// run executes a command in a group of its own and returns how it ended and what it
// wrote, standard output and error together. What it leaves running is killed, and so is
// it when ctx ends; the error is then the cause of ctx.
func (r *reaper) run(ctx context.Context, argv, env []string) (Exit, []byte, error) {
	if len(argv) == 0 {
		return Exit{}, nil, errNoCommand
	}
	var pipe [2]int
	if err := unix.Pipe2(pipe[:], unix.O_CLOEXEC); err != nil {
		return Exit{}, nil, fmt.Errorf("open a pipe to %s: %w", argv[0], err)
	}
	unix.SetNonblock(pipe[0], true)
	from := os.NewFile(uintptr(pipe[0]), "output")
	defer from.Close()
	g, err := r.start(program{Path: argv[0], Argv: argv, Env: env, Stdio: [3]int{-1, pipe[1], pipe[1]}})
	unix.Close(pipe[1])
	if err != nil {
		return Exit{}, nil, err
	}
	read := make(chan []byte)
	go func() {
		out, _ := io.ReadAll(io.LimitReader(from, outputLimit))
		io.Copy(io.Discard, from)
		read <- out
	}()
	select {
	case <-g.LeaderDone():
	case <-ctx.Done():
		err = context.Cause(ctx)
	case <-r.stopped:
		err = errStopped
	}
	g.end()
	// Who left the group unseen may hold the pipe for ever. What the command itself wrote is in
	// the pipe by now; its reader is given a moment for it.
	from.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
	exit, _ := g.LeaderExit()
	return exit, <-read, err
}
