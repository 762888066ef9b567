package guest

import (
	"context"
	"crypto/rand"
	_ "embed"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

//go:embed boot.sh
var bootScript string

const (
	defaultBoots   = 4
	defaultTimeout = 60 * time.Second // a boot takes one second alone, and much longer among many on two cores
	stopTimeout    = 5 * time.Second

	// notifyName is an abstract socket in the guest's own network namespace: no path, nothing to remove, no clash.
	notifyName = "@zdt-guest/notify"

	// sigPoweroff is SIGRTMIN+4 as the C library counts: "power off" to a systemd that is PID 1.
	sigPoweroff = unix.Signal(34 + 4)
)

// Config says which guest to start. Only Image is required.
type Config struct {
	Image   Image
	Store   Store         // where the images are; the zero value stands for [DefaultDir]
	Boots   int           // guests of this machine that may be booting at the same time; 0 stands for 4
	Timeout time.Duration // bound on the boot itself; 0 stands for a minute
	// Keep lets the guest outlive Close and this process, for a person to look at. Nothing ends it but that person.
	Keep bool
}

// Guest is a running systemd. Its methods may be called from several goroutines; Close comes last.
type Guest struct {
	image  Image
	keep   bool
	cgroup string   // on the host
	pid    int      // of PID 1, on the host
	pidfd  *os.File // of PID 1: a handle on its namespaces and for signals, immune to pid reuse
	out    *os.File // what PID 1 wrote before journald ran
	ended  chan struct{}
	procs  sync.WaitGroup // goroutines that wait for processes started by Spawn

	disk *os.File // what an earlier guest had written, to begin with; nil: nothing

	netJobs chan job       // to threads that stay in the guest's network namespace
	threads sync.WaitGroup // those threads
	closing chan struct{}  // closed by Close

	close    sync.Once
	closeErr error
}

// Start boots a guest and returns when its systemd has finished the boot. It needs root. ctx bounds Start alone; the
// guest lives until Close, or until this process ends.
func Start(ctx context.Context, cfg Config) (*Guest, error) {
	g, err := start(ctx, cfg, nil)
	if err != nil {
		return nil, fmt.Errorf("boot %s guest: %w", cfg.Image, err)
	}
	return g, nil
}

func start(ctx context.Context, cfg Config, disk *os.File) (*Guest, error) {
	if cfg.Store.Dir == "" {
		cfg.Store.Dir = DefaultDir()
	}
	if cfg.Boots == 0 {
		cfg.Boots = defaultBoots
	}
	if cfg.Timeout == 0 {
		cfg.Timeout = defaultTimeout
	}
	root, err := cfg.Store.Ensure(ctx, cfg.Image)
	if err != nil {
		return nil, err
	}
	// The slot is held for the boot only, which is what costs; held for life, tests with two guests each could
	// deadlock.
	unlock, err := lockSlot(ctx, cfg.Store.Dir, cfg.Boots)
	if err != nil {
		return nil, fmt.Errorf("wait for a boot slot: %w", err)
	}
	defer unlock()
	ctx, cancel := context.WithTimeout(ctx, cfg.Timeout)
	defer cancel()

	g := newGuest(cfg)
	g.disk = disk
	if err := g.makeCgroup(); err != nil {
		return nil, fmt.Errorf("make cgroup: %w", err)
	}
	scratch := filepath.Join(cfg.Store.Dir, "mnt") // only ever a mount point, in namespaces of which no two are the same
	if err := os.MkdirAll(scratch, 0o700); err != nil {
		return nil, errors.Join(err, g.abandon())
	}
	gate, err := g.startInit(root, scratch)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("start its first process: %w", err), g.abandon())
	}
	err = g.awaitBoot(ctx, gate)
	gate.Close()
	if err != nil {
		early := g.earlyOutput()
		g.keep = false
		_ = g.signal(unix.SIGKILL) // asking politely takes a systemd that listens
		return nil, errors.Join(err, g.Close(), early)
	}
	return g, nil
}

func newGuest(cfg Config) *Guest {
	return &Guest{
		image:   cfg.Image,
		keep:    cfg.Keep,
		ended:   make(chan struct{}),
		netJobs: make(chan job),
		closing: make(chan struct{}),
	}
}

// makeCgroup gives the guest a cgroup of its own; without it all guests would share the host's /system.slice. It also
// sweeps what killed processes left behind.
func (g *Guest) makeCgroup() error {
	root, err := cgroupRoot()
	if err != nil {
		return err
	}
	me, err := self()
	if err != nil {
		return err
	}
	sweepCgroups(root, me)
	dir := filepath.Join(root, me.cgroupName(randomID()))
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	g.cgroup = dir
	return nil
}

// abandon removes the cgroup of a guest that never had a process.
func (g *Guest) abandon() error { return removeCgroup(g.cgroup) }

// startInit starts the process that becomes systemd, in new namespaces and behind a gate: it does nothing before a
// line is written to gate, and ends when gate is closed without.
func (g *Guest) startInit(root, scratch string) (gate *os.File, err error) {
	cgroup, err := os.Open(g.cgroup)
	if err != nil {
		return nil, err
	}
	defer cgroup.Close()
	memfd, err := unix.MemfdCreate("zdt-guest-output", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("memfd_create: %w", err)
	}
	g.out = os.NewFile(uintptr(memfd), "guest output")
	r, w, err := os.Pipe()
	if err != nil {
		return nil, errors.Join(err, g.out.Close())
	}
	defer r.Close()

	pidfd := -1
	args := []string{"-c", bootScript, "boot.sh", root, scratch, randomID() + randomID(), notifyName}
	files := []*os.File{r}
	if g.disk != nil {
		id := randomID() + randomID()
		args = append(args, fmt.Sprintf("%s-%s-%s-%s-%s", id[:8], id[8:12], id[12:16], id[16:20], id[20:]))
		files = append(files, g.disk)
	}
	cmd := exec.Command("/bin/sh", args...)
	cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C"}
	cmd.Dir = "/"
	cmd.Stdout, cmd.Stderr = g.out, g.out
	cmd.ExtraFiles = files
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Setsid:     true, // Ctrl-C in a terminal is for the test process, which then ends the guest in order
		Cloneflags: syscall.CLONE_NEWPID | syscall.CLONE_NEWUTS | syscall.CLONE_NEWIPC | syscall.CLONE_NEWNET,
		// The cgroup namespace's root is the cgroup the process is in when the namespace is made, so this one has to
		// be made after the move. Go makes all mounts private when it unshares the mount namespace.
		Unshareflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWCGROUP,
		UseCgroupFD:  true,
		CgroupFD:     int(cgroup.Fd()),
		PidFD:        &pidfd,
	}
	if !g.keep {
		cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	}
	started := make(chan error)
	go func() {
		// PDEATHSIG comes when the thread that started the child ends, not the process: so this goroutine keeps its
		// thread for as long as the guest lives.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			_ = cmd.Wait() // "signal: interrupt" is a clean power-off of a pid namespace
			close(g.ended)
		}
	}()
	if err := <-started; err != nil {
		return nil, errors.Join(err, w.Close(), g.out.Close())
	}
	g.pid = cmd.Process.Pid
	g.pidfd = os.NewFile(uintptr(pidfd), "guest pidfd")
	return w, nil
}

// awaitBoot opens the gate and waits until systemd says that its boot has finished. systemd tells the manager of a
// container so, like a service its own manager (since v233).
func (g *Guest) awaitBoot(ctx context.Context, gate *os.File) error {
	var notify *net.UnixConn
	err := g.Do(func() (err error) {
		notify, err = net.ListenUnixgram("unixgram", &net.UnixAddr{Name: notifyName, Net: "unixgram"})
		return err
	})
	if err != nil {
		return fmt.Errorf("listen for its READY: %w", err)
	}
	ready := make(chan error, 1)
	go func() { ready <- readUntilReady(notify) }()
	defer func() {
		notify.Close() // ends the goroutine
		<-ready
	}()
	if _, err := io.WriteString(gate, "go\n"); err != nil {
		return fmt.Errorf("open the gate: %w", err)
	}
	select {
	case err := <-ready:
		ready <- err
		return err
	case <-g.ended:
		return errors.New("PID 1 ended during the boot")
	case <-ctx.Done():
		return fmt.Errorf("wait for the boot to finish: %w", ctx.Err())
	}
}

func readUntilReady(conn net.Conn) error {
	buf := make([]byte, 4096)
	for {
		n, err := conn.Read(buf)
		if err != nil {
			return err
		}
		for line := range strings.Lines(string(buf[:n])) {
			if strings.TrimSpace(line) == "READY=1" {
				return nil
			}
		}
	}
}

// earlyOutput returns what the set-up and systemd printed, as an error to show beside the one at hand.
func (g *Guest) earlyOutput() error {
	data := make([]byte, 16<<10)
	n, _ := g.out.ReadAt(data, 0)
	if n == 0 {
		return nil
	}
	return fmt.Errorf("its output so far:\n%s", lastLines(string(data[:n]), 30))
}

// Close powers the guest off, kills what is left of it after five seconds, and removes its cgroups. When it returns,
// no process and no mount of the guest exists. A kept guest is left alone. Close may be called more than once.
func (g *Guest) Close() error {
	g.close.Do(func() {
		if g.keep {
			return
		}
		g.closeErr = g.stop()
	})
	return g.closeErr
}

func (g *Guest) stop() error {
	close(g.closing)
	g.threads.Wait()
	timeout := time.NewTimer(stopTimeout)
	defer timeout.Stop()
	// A systemd that is not up yet ignores this; then the kill below has to do.
	_ = g.signal(sigPoweroff)
	select {
	case <-g.ended:
	case <-timeout.C:
		if err := g.signal(unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("kill guest: %w", err)
		}
		// PID 1 of a namespace ends after all others have ended and were reaped.
		<-g.ended
	}
	g.procs.Wait()
	g.pidfd.Close()
	g.out.Close()
	if err := removeCgroup(g.cgroup); err != nil {
		return fmt.Errorf("remove cgroup of guest: %w", err)
	}
	return nil
}

func (g *Guest) signal(sig unix.Signal) error {
	return unix.PidfdSendSignal(int(g.pidfd.Fd()), sig, nil, 0)
}

// Image returns the image the guest was booted from.
func (g *Guest) Image() Image { return g.image }

// PID returns the host's pid of the guest's PID 1.
func (g *Guest) PID() int { return g.pid }

// Ended is closed when the guest's PID 1 has ended, whoever ended it.
func (g *Guest) Ended() <-chan struct{} { return g.ended }

// NSEnter returns the command line with which a person on the host gets a shell in the guest.
func (g *Guest) NSEnter() string { return fmt.Sprintf("nsenter -t %d -a bash -l", g.pid) }

func randomID() string {
	var b [8]byte
	rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}
