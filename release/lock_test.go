package release

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// holdChild takes the lock in args[0], says so, and dies with its stdin.
func holdChild(args []string) {
	l, err := Acquire(context.Background(), args[0], Holder{TxID: testTxID(7), Phase: PhaseBake, Who: Who{UID: 42}}, 0)
	if err != nil {
		fmt.Println(err)
		os.Exit(2)
	}
	fmt.Println("held")
	_, _ = io.Copy(io.Discard, os.Stdin)
	_ = l.Release()
	os.Exit(0)
}

// startHolder returns when another process holds the lock at path.
func startHolder(t *testing.T, path string) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	do(t, err)
	cmd := exec.Command(self, path)
	cmd.Env = append(os.Environ(), roleEnv+"=hold")
	_, err = cmd.StdinPipe() // open until Wait
	do(t, err)
	out, err := cmd.StdoutPipe()
	do(t, err)
	do(t, cmd.Start())
	t.Cleanup(func() {
		if cmd.ProcessState == nil {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		}
	})
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil || line != "held\n" {
		t.Fatalf("holder says %q, %v", line, err)
	}
	return cmd
}

func TestLock(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "lock", "zdt", "web.lock")
	if h, ok, err := ReadHolder(path); ok || err != nil {
		t.Errorf("holder = %+v, %t, %v", h, ok, err)
	}
	l, err := Acquire(t.Context(), path, Holder{TxID: testTxID(1), Phase: PhasePreflight, Who: Who{UID: 5, User: "ann"}}, 0)
	if err != nil {
		t.Fatal(err)
	}
	for p, mode := range map[string]fs.FileMode{path: 0o600, filepath.Dir(path): 0o755} {
		if fi, err := os.Stat(p); err != nil || fi.Mode().Perm() != mode {
			t.Errorf("%s: %v, %v", p, fi.Mode(), err)
		}
	}
	// Also within one process: goroutines exclude each other.
	_, err = Acquire(t.Context(), path, Holder{}, 0)
	var held *HeldError
	if !errors.As(err, &held) || held.Holder.PID != os.Getpid() || held.Holder.TxID != testTxID(1) || held.Hint() == "" {
		t.Errorf("second: %v", err)
	}
	if !strings.Contains(err.Error(), "ann") || !strings.Contains(err.Error(), "phase preflight") {
		t.Errorf("message: %v", err)
	}
	do(t, l.SetPhase(PhaseBake))
	if h, ok, err := ReadHolder(path); err != nil || !ok || h.Phase != PhaseBake || h.Who.User != "ann" || h.Since.IsZero() {
		t.Errorf("holder = %+v, %t, %v", h, ok, err)
	}
	do(t, l.Release())
	if h, ok, err := ReadHolder(path); ok || err != nil {
		t.Errorf("after release: %+v, %t, %v", h, ok, err)
	}
	if _, err := os.Stat(path); err != nil {
		t.Errorf("the file must stay: %v", err)
	}
	l, err = Acquire(t.Context(), path, Holder{}, 0)
	do(t, err)
	do(t, l.Release())
}

func TestLockOfAnotherProcess(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "web.lock")
	cmd := startHolder(t, path)
	_, err := Acquire(t.Context(), path, Holder{}, 20*time.Millisecond)
	var held *HeldError
	if !errors.As(err, &held) || held.Holder.PID != cmd.Process.Pid || held.Holder.Phase != PhaseBake || held.Holder.Who.UID != 42 {
		t.Errorf("error = %v", err)
	}
	// The context ends the waiting, and is told apart from waiting in vain.
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Acquire(ctx, path, Holder{}, -1); !errors.Is(err, context.Canceled) || !errors.As(err, &held) {
		t.Errorf("cancelled: %v", err)
	}

	// kill -9: the kernel frees the lock, what it had written is not believed.
	do(t, cmd.Process.Signal(syscall.SIGKILL))
	_ = cmd.Wait()
	if data, err := os.ReadFile(path); err != nil || len(data) == 0 {
		t.Errorf("file = %q, %v", data, err)
	}
	if h, ok, err := ReadHolder(path); ok || err != nil {
		t.Errorf("dead holder = %+v, %t, %v", h, ok, err)
	}
	l, err := Acquire(t.Context(), path, Holder{TxID: "x"}, 0)
	do(t, err)
	if h, ok, err := ReadHolder(path); err != nil || !ok || h.PID != os.Getpid() {
		t.Errorf("holder = %+v, %t, %v", h, ok, err)
	}
	do(t, l.Release())
}

func TestLockWait(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "web.lock")
	var inside atomic.Int32
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			l, err := Acquire(t.Context(), path, Holder{}, time.Minute)
			if err != nil {
				t.Error(err)
				return
			}
			if n := inside.Add(1); n != 1 {
				t.Errorf("%d hold the lock", n)
			}
			inside.Add(-1)
			if err := l.Release(); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
}

// A lock must not live on in the processes that its holder starts.
func TestLockIsNotInherited(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "web.lock")
	l, err := Acquire(t.Context(), path, Holder{}, 0)
	do(t, err)
	fd := int(l.f.Fd())
	if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC == 0 {
		t.Errorf("flags %#x, %v", flags, err)
	}
	// A duplicate stands for a child between its fork and its exec.
	dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	do(t, err)
	defer unix.Close(dup)
	do(t, l.Release())
	l, err = Acquire(t.Context(), path, Holder{}, 0)
	do(t, err)
	do(t, l.Release())
}

// flock(1) in a script of the operator excludes zdt too, without saying who it is.
func TestLockOfAStranger(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "web.lock")
	for _, content := range []string{"", "held by backup.sh\n"} {
		writeFile(t, path, content, 0o600)
		f, err := os.Open(path)
		do(t, err)
		do(t, unix.Flock(int(f.Fd()), unix.LOCK_EX))
		_, err = Acquire(t.Context(), path, Holder{}, 0)
		var held *HeldError
		if !errors.As(err, &held) || held.Holder.PID != 0 || !strings.Contains(err.Error(), "another process") {
			t.Errorf("error = %v", err)
		}
		f.Close()
	}
}

func TestLockPlanted(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	victim := filepath.Join(t.TempDir(), "victim")
	writeFile(t, victim, "precious", 0o600)
	path := filepath.Join(dir, "web.lock")
	for name, plant := range map[string]func() error{
		"symlink":  func() error { return os.Symlink(victim, path) },
		"dangling": func() error { return os.Symlink(victim+"2", path) },
		"fifo":     func() error { return unix.Mkfifo(path, 0o600) },
		"open":     func() error { return errors.Join(os.WriteFile(path, nil, 0o600), os.Chmod(path, 0o666)) },
	} {
		do(t, plant())
		if _, err := Acquire(t.Context(), path, Holder{}, 0); !errors.Is(err, ErrUntrusted) {
			t.Errorf("%s: acquire: %v", name, err)
		}
		if _, _, err := ReadHolder(path); !errors.Is(err, ErrUntrusted) {
			t.Errorf("%s: read: %v", name, err)
		}
		do(t, os.Remove(path))
	}
	if data, err := os.ReadFile(victim); err != nil || string(data) != "precious" {
		t.Errorf("victim: %q, %v", data, err)
	}
	if _, err := os.Stat(victim + "2"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("made a file through a link: %v", err)
	}
}

// Whoever looks while the holder goes from phase to phase finds him each time: to find nobody means that he is gone.
func TestHolderIsSeenAllTheTime(t *testing.T) {
	path := filepath.Join(t.TempDir(), "web.lock")
	l, err := Acquire(t.Context(), path, Holder{TxID: testTxID(1), Phase: PhaseBake}, 0)
	do(t, err)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			if err := l.SetPhase([]Phase{PhaseBake, PhasePreflight, PhaseExit}[i%3]); err != nil {
				t.Error(err)
			}
		}
	})
	for range 20000 {
		h, ok, err := ReadHolder(path)
		if err != nil || !ok || h.TxID != testTxID(1) {
			t.Errorf("%+v, %t, %v", h, ok, err)
			break
		}
	}
	close(stop)
	wg.Wait()
	do(t, l.Release())
}
