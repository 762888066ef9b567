// Package script runs a program of the administrator's to its end: in a process group of its own, with nothing inherited
// but descriptors 0, 1 and 2, its output read line by line, and killed whole when its time is over.
package script

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/zdt-dev/zdt/internal/memfile"
	"github.com/zdt-dev/zdt/journal"
	"golang.org/x/sys/unix"
)

const (
	// lineLimit bounds a line, in bytes; what is longer becomes several.
	lineLimit = 2 << 10
	// keepLimit bounds what is kept of a line for the report.
	keepLimit = 512
	// straggle is how long the output is read after the program's end, when somebody who left its process group still
	// has it open.
	straggle = 500 * time.Millisecond
	// killPatience bounds the wait for the end of a program that was killed: one that hangs in the kernel, as on a
	// network file system, would hold zdt for ever.
	killPatience = 5 * time.Second
)

// Command is what to run.
type Command struct {
	Path  string // absolute, see package trustpath
	Args  []string
	Env   []string // all of it, see Environ
	Stdin []byte   // none: /dev/null
	// Grace is the time between SIGTERM and SIGKILL when ctx ends; 0: SIGKILL at once.
	Grace time.Duration
	// Line gets each line of what the program writes, standard output and error together, made printable. It must not
	// block for long; it runs in another goroutine, and not after Run has returned. May be nil.
	Line func(text string)
	Keep int // so many of the last lines are kept
}

// Result is how it went.
type Result struct {
	// Err is nil if the program ended by itself with status 0. It says what else happened: it could
	// not be started, exited with another status, was killed, or with the cause of the context: its time was over.
	Err  error
	Code int           // exit status; -1 if it did not exit by itself
	Tail []string      // the last lines
	Cut  int           // how many there were before
	Took time.Duration // until its end
}

// Run runs the program until it ends or ctx does. What it leaves in its process group is killed.
func Run(ctx context.Context, c Command) Result {
	began := time.Now()
	res := Result{Code: -1}
	if err := ctx.Err(); err != nil {
		res.Err = context.Cause(ctx)
		return res
	}
	cmd := exec.Command(c.Path, c.Args...)
	cmd.Env, cmd.Dir = c.Env, "/"
	// Of its own: a Ctrl-C in the terminal is zdt's to act upon, and all that it starts can be killed.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	from, to, err := os.Pipe()
	if err != nil {
		res.Err = fmt.Errorf("open a pipe to %s: %w", c.Path, err)
		return res
	}
	defer from.Close()
	cmd.Stdout, cmd.Stderr = to, to
	if len(c.Stdin) > 0 {
		// A file: whether the program reads it or not, nobody waits for that, and there is no end to be written to.
		fd, err := memfile.Write("stdin", c.Stdin)
		if err != nil {
			to.Close()
			res.Err = fmt.Errorf("prepare the input of %s: %w", c.Path, err)
			return res
		}
		in := os.NewFile(uintptr(fd), "stdin")
		defer in.Close()
		if _, err := in.Seek(0, io.SeekStart); err != nil {
			to.Close()
			res.Err = fmt.Errorf("prepare the input of %s: %w", c.Path, err)
			return res
		}
		cmd.Stdin = in
	}
	closeOnExec()
	err = cmd.Start()
	to.Close()
	if err != nil {
		res.Err = fmt.Errorf("start %s: %w", c.Path, err)
		return res
	}

	pid := cmd.Process.Pid
	ended := make(chan struct{}) // it is dead and not reaped: its number, and its group's, are still its own
	go func() {
		defer close(ended)
		for unix.Waitid(unix.P_PID, pid, nil, unix.WEXITED|unix.WNOWAIT, nil) == unix.EINTR {
		}
	}()
	read := make(chan struct{})
	go func() {
		defer close(read)
		res.Tail, res.Cut = lines(from, c.Line, c.Keep)
	}()

	over := false
	select {
	case <-ended:
	case <-ctx.Done():
		over = true
		if c.Grace > 0 {
			unix.Kill(-pid, unix.SIGTERM)
			timer := time.NewTimer(c.Grace)
			select {
			case <-ended:
			case <-timer.C:
			}
			timer.Stop()
		}
	}
	unix.Kill(-pid, unix.SIGKILL)
	dead := true
	select {
	case <-ended:
	default:
		timer := time.NewTimer(killPatience)
		select {
		case <-ended:
		case <-timer.C:
			dead = false
		}
		timer.Stop()
	}
	took := time.Since(began)
	from.SetReadDeadline(time.Now().Add(straggle))
	<-read
	res.Took = took
	switch {
	case !dead:
		go func() { <-ended; cmd.Wait() }() // as long as the kernel holds it
		res.Err = fmt.Errorf("%w, and it cannot be killed: it hangs in the kernel", context.Cause(ctx))
	default:
		err = cmd.Wait()
		res.Code, res.Err = cmd.ProcessState.ExitCode(), explain(err)
		if over { // also when it ends with 0 then: it did not come to its end
			res.Err = context.Cause(ctx)
		}
	}
	return res
}

func explain(err error) error {
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		return err
	}
	if s, ok := exit.Sys().(syscall.WaitStatus); ok && s.Signaled() {
		return errors.New("it was killed by " + unix.SignalName(s.Signal()))
	}
	return fmt.Errorf("it exited with %d", exit.ExitCode())
}

// lines reads until the end, or until the deadline of from.
func lines(from io.Reader, line func(string), keep int) (tail []string, cut int) {
	in := bufio.NewReaderSize(from, lineLimit)
	for {
		raw, err := in.ReadSlice('\n')
		if len(raw) > 0 {
			text := strings.TrimRight(string(raw), "\r\n")
			if line != nil {
				line(journal.Printable(text))
			}
			if keep > 0 {
				if len(tail) == keep {
					tail, cut = append(tail[:0], tail[1:]...), cut+1
				}
				if len(text) > keepLimit {
					text = text[:keepLimit] + "..."
				}
				tail = append(tail, journal.Printable(text))
			}
		}
		if err != nil && !errors.Is(err, bufio.ErrBufferFull) {
			return tail, cut
		}
	}
}

// closeOnExec marks all descriptors. Those that this process opened are marked already, those
// that it was started with are not, as the one of a lock or of --events-fd in the script that called zdt.
func closeOnExec() {
	if unix.CloseRange(3, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC) == nil {
		return
	}
	// Before Linux 5.11.
	dir, err := os.Open("/proc/self/fd")
	if err != nil {
		return
	}
	defer dir.Close()
	names, _ := dir.Readdirnames(-1)
	for _, name := range names {
		if fd, err := strconv.Atoi(name); err == nil && fd > 2 {
			unix.CloseOnExec(fd)
		}
	}
}

// Environ is what a program gets of the environment that zdt runs in, and more behind it: little, for zdt may have been
// called through sudo, by a timer or by another tool, and the program has to work each time.
func Environ(more ...string) []string {
	env := []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
	for _, name := range []string{"HOME", "USER", "LOGNAME", "LANG", "TZ", "XDG_RUNTIME_DIR", "DBUS_SESSION_BUS_ADDRESS", "TRACEPARENT", "TRACESTATE"} {
		if v, found := os.LookupEnv(name); found {
			env = append(env, name+"="+v)
		}
	}
	return append(env, more...)
}
