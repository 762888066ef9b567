package handoff

import (
	"os"
	"os/exec"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/zdt-dev/zdt/handoff/control"
	"github.com/zdt-dev/zdt/internal/wire"
)

// launchSpec is everything needed to execute a candidate.
type launchSpec struct {
	service   string // for what it logs
	exe, dir  string
	argv, env []string
	fds       []int // the sockets; they stay the caller's
	extra     []int // the control and the takeover socket, as far as there are any; they stay the caller's
}

// candidate is a started process, seen from the incumbent. Its two goroutines
// end with the process: one reads the link, one waits. One that asked over the
// takeover socket has the first alone; see newcomer.
type candidate struct {
	process  *os.Process // nil: it asked
	pid      int         // 0 in another pid namespace
	link     *wire.Link
	messages chan wire.Message // closed when the process closed its end
	exited   chan control.Exit // one value
	stop     chan struct{}     // closed when nobody reads messages any more
	started  time.Time
	readyAt  time.Time
	exe      string
	// sharesControl: a newcomer that answers on this generation's control socket after the commit.
	sharesControl bool
	// spare is set when the service stops with the candidate as its main
	// process: what it leaves running is systemd's to end.
	spare atomic.Bool
}

// taker gets the connections that an undone candidate gives back.
func startCandidate(spec launchSpec, taker func(*wire.Link, wire.Message)) (*candidate, error) {
	started := time.Now()
	process, link, err := launch(spec)
	if err != nil {
		return nil, err
	}
	c := &candidate{
		process: process, pid: process.Pid, link: link, started: started, exe: spec.exe,
		messages: make(chan wire.Message), exited: make(chan control.Exit, 1), stop: make(chan struct{}),
	}
	link.Taker = taker
	go link.Pump(c.messages, c.stop)
	go func() {
		// What it has started holds copies of the sockets and might go on to
		// accept. It goes with it; before the reaping, while the number of the
		// group cannot be anybody else's.
		if awaitEnd(process.Pid) && !c.spare.Load() {
			killGroup(process.Pid)
		}
		state, err := process.Wait()
		c.exited <- exitOf(state, err)
	}()
	return c, nil
}

// signal sends through the pidfd; a candidate that is gone is no error. A
// newcomer is told over the link.
func (c *candidate) signal(sig os.Signal) {
	if c.newcomer() {
		c.dismiss(sig == os.Kill)
		return
	}
	c.process.Signal(sig)
}

// release closes the incumbent's end and lets the reader go.
func (c *candidate) release() {
	close(c.stop)
	c.link.Close()
}

// startPath is the absolute path this process was started by. systemd passes
// the path of ExecStart= as argv[0]; through its symlink the successor of a
// bare SIGUSR2 is found. A program found in PATH or started from a relative
// path is resolved once, while the working directory is still the starter's.
func startPath(argv0 string) (string, error) {
	if filepath.IsAbs(argv0) {
		return argv0, nil
	}
	if p, err := exec.LookPath(argv0); err == nil {
		return filepath.Abs(p)
	}
	return os.Executable()
}
