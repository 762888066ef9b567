package helper

import (
	"crypto/rand"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/zdt-dev/zdt/internal/memfile"
)

// execTimeout bounds how long the program's file may take to be executed, as on a
// network file system that does not answer.
const execTimeout = 30 * time.Second

// killTimeout bounds how long a killed group is waited for: a process in an
// uninterruptible sleep does not end.
const killTimeout = 5 * time.Second

// start executes the program as the leader of a new process group, with the
// descriptors it names and no other. When it returns nil, the exec has succeeded; an
// error names the file and what the system said of it, and nothing is left running.
func (r *reaper) start(p program) (*group, error) {
	if err := p.check(); err != nil {
		return nil, err
	}
	g := &group{r: r, marker: envGroup + "=" + rand.Text(), leaderDone: make(chan struct{}), done: make(chan struct{})}
	p.Env = append(slices.Clone(p.Env), g.marker)
	orders, err := memfile.Write("zdt-orders", encodeOrders(p))
	if err != nil {
		return nil, fmt.Errorf("write the orders of %s: %w", p.Path, err)
	}
	defer unix.Close(orders)
	var report [2]int
	if err := unix.Pipe2(report[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		return nil, fmt.Errorf("open a pipe to %s: %w", p.Path, err)
	}
	from := os.NewFile(uintptr(report[0]), "report")
	defer from.Close()
	var null int
	if slices.Contains(p.Stdio[:], -1) {
		if null, err = unix.Open(os.DevNull, unix.O_RDWR|unix.O_CLOEXEC, 0); err != nil {
			unix.Close(report[1])
			return nil, fmt.Errorf("open %s: %w", os.DevNull, err)
		}
		defer unix.Close(null)
	}
	files := make([]uintptr, 0, len(p.FDs)+5)
	for _, fd := range append(p.Stdio[:], p.FDs...) {
		if fd == -1 {
			fd = null
		}
		files = append(files, uintptr(fd))
	}
	files = append(files, uintptr(orders), uintptr(report[1]))
	if stopped := r.do(func() { err = r.fork(g, files, len(p.FDs)) }); stopped != nil {
		err = stopped
	}
	unix.Close(report[1])
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", p.Path, err)
	}
	if err := readReport(from); err != nil {
		g.end()
		return nil, err
	}
	return g, nil
}

// fork starts the shim and enters it into the table. By the name of
// /proc/self/exe the kernel finds the file this process runs, also after another zdt
// was put in its place: the shim and who gives it orders are always the same.
func (r *reaper) fork(g *group, files []uintptr, sockets int) error {
	g.pidfd = -1
	pid, err := syscall.ForkExec("/proc/self/exe", []string{"zdt", shimWord, strconv.Itoa(sockets)}, &syscall.ProcAttr{
		Files: files,
		Env:   []string{"GOMAXPROCS=1"}, // of the shim; it has no use for more threads
		Sys:   &syscall.SysProcAttr{Setpgid: true, PidFD: &g.pidfd},
	})
	if err != nil {
		return fmt.Errorf("execute the helper once more: %w", err)
	}
	if g.pidfd < 0 {
		// The child is not reaped, it is this goroutine that does it.
		if g.pidfd, err = unix.PidfdOpen(pid, 0); err != nil {
			syscall.Kill(pid, syscall.SIGKILL)
			syscall.Wait4(pid, nil, 0, nil)
			return fmt.Errorf("hold on to process %d: %w", pid, err)
		}
	}
	g.leader = pid
	r.leaders[pid] = g
	return nil
}

// readReport waits until the exec has succeeded, when the last holder of the pipe closes
// it without a word, or has not.
func readReport(from *os.File) error {
	from.SetReadDeadline(time.Now().Add(execTimeout))
	b, err := io.ReadAll(io.LimitReader(from, 1<<16))
	if err != nil {
		return fmt.Errorf("wait for the program to be executed: %w", err)
	}
	if len(b) == 0 {
		return nil
	}
	f, err := decodeShimFailure(b)
	if err != nil {
		return err
	}
	return f.asError()
}
