// Probe is the service of unitgen's system tests. Started by a generated unit
// it reports what arrived (arguments, environment, sockets) and tries, within
// the unit's sandbox, each thing a handoff needs. A file "mode" beside it makes it
// fail with the exit status in there. As "handoff" it is what ExecReload= runs.
package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// report is what the test reads from report.json in the runtime directory.
type report struct {
	Args    []string
	Env     []string
	Handoff string // "ok", or what did not work
}

func main() {
	var err error
	switch {
	case os.Getenv("PROBE_CHILD") != "":
		err = child()
	case len(os.Args) == 2 && os.Args[1] == "handoff":
		err = reload()
	case len(os.Args) == 2 && os.Args[1] == "stop": // ExecStop=; systemd knows how to stop the probe
	default:
		err = serve()
	}
	if err != nil {
		fmt.Println("probe:", err)
		os.Exit(1)
	}
}

// serve is the service.
func serve() error {
	fmt.Println("probe starts")
	if mode, err := os.ReadFile(filepath.Join(filepath.Dir(os.Args[0]), "mode")); err == nil {
		status, err := strconv.Atoi(strings.TrimSpace(string(mode)))
		if err != nil {
			return err
		}
		os.Exit(status)
	}
	dir := os.Getenv("RUNTIME_DIRECTORY")
	r := report{Args: os.Args, Env: os.Environ(), Handoff: "ok"}
	if err := tryHandoff(); err != nil {
		r.Handoff = err.Error()
	}
	data, err := json.Marshal(r)
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "report.json"), data, 0o644); err != nil {
		return err
	}

	control, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: filepath.Join(dir, "control.sock"), Net: "unixpacket"})
	if err != nil {
		return err
	}
	usr2 := make(chan os.Signal, 1)
	signal.Notify(usr2, syscall.SIGUSR2)
	go answerControl(control, usr2)
	for i := range atoi(os.Getenv("LISTEN_FDS")) {
		ln, err := net.FileListener(os.NewFile(uintptr(3+i), "listener"))
		if err != nil {
			continue // a datagram socket
		}
		go answer(ln)
	}

	term := make(chan os.Signal, 1)
	signal.Notify(term, syscall.SIGTERM)
	if err := notify("READY=1"); err != nil {
		return err
	}
	<-term
	return nil
}

// answer tells every client who is there.
func answer(ln net.Listener) {
	for {
		c, err := ln.Accept()
		if err != nil {
			return
		}
		fmt.Fprintf(c, "served by %d\n", os.Getpid())
		c.Close()
	}
}

// answerControl tells who asks, and whether SIGUSR2 has come.
func answerControl(ln *net.UnixListener, usr2 <-chan os.Signal) {
	for {
		c, err := ln.AcceptUnix()
		if err != nil {
			return
		}
		raw, err := c.SyscallConn()
		if err != nil {
			return
		}
		var cred *unix.Ucred
		raw.Control(func(fd uintptr) { cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
		signalled := "no SIGUSR2"
		select {
		case <-usr2:
			signalled = "SIGUSR2"
		case <-time.After(100 * time.Millisecond):
		}
		if err == nil {
			fmt.Fprintf(c, "uid %d, %s", cred.Uid, signalled)
		}
		c.Close()
	}
}

// reload is ExecReload=: signal the main process, ask it over its control socket.
func reload() error {
	pid := atoi(os.Getenv("MAINPID"))
	pidfd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return fmt.Errorf("pidfd_open %d: %w", pid, err)
	}
	if err := unix.PidfdSendSignal(pidfd, unix.SIGUSR2, nil, 0); err != nil {
		return fmt.Errorf("signal %d: %w", pid, err)
	}
	c, err := net.Dial("unixpacket", filepath.Join(os.Getenv("RUNTIME_DIRECTORY"), "control.sock"))
	if err != nil {
		return err
	}
	buf := make([]byte, 100)
	n, err := c.Read(buf)
	if err != nil {
		return err
	}
	if want := fmt.Sprintf("uid %d, SIGUSR2", os.Getuid()); string(buf[:n]) != want {
		return fmt.Errorf("%q, want %q", buf[:n], want)
	}
	return nil
}

// tryHandoff starts another process of the same file, signals it through a
// pidfd, and gets a descriptor back from it.
func tryHandoff() error {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("socketpair: %w", err)
	}
	defer unix.Close(pair[0])
	pidfd := -1
	proc, err := os.StartProcess(os.Args[0], os.Args[:1], &os.ProcAttr{
		Env:   []string{"PROBE_CHILD=1"},
		Files: []*os.File{os.Stdin, os.Stdout, os.Stderr, os.NewFile(uintptr(pair[1]), "pair")},
		Sys:   &syscall.SysProcAttr{PidFD: &pidfd},
	})
	unix.Close(pair[1])
	if err != nil {
		return fmt.Errorf("start: %w", err)
	}
	if pidfd < 0 {
		return errors.New("no pidfd of the child")
	}
	if err := readable(pair[0]); err != nil {
		return fmt.Errorf("wait for the child: %w", err)
	}
	if _, err := unix.Read(pair[0], make([]byte, 10)); err != nil {
		return err
	}
	if err := unix.PidfdSendSignal(pidfd, unix.SIGUSR2, nil, 0); err != nil {
		return fmt.Errorf("pidfd_send_signal: %w", err)
	}
	if err := readable(pair[0]); err != nil {
		return fmt.Errorf("wait for the answer: %w", err)
	}
	buf, oob := make([]byte, 10), make([]byte, 100)
	n, m, _, _, err := unix.Recvmsg(pair[0], buf, oob, unix.MSG_CMSG_CLOEXEC)
	if err != nil || m == 0 || !bytes.Equal(buf[:n], []byte("fd")) {
		return fmt.Errorf("recvmsg: %q with %d bytes of control: %v", buf[:n], m, err)
	}
	state, err := proc.Wait()
	if err != nil || !state.Success() {
		return fmt.Errorf("child: %v, %v", state, err)
	}
	if _, err := os.Stat(fmt.Sprintf("/proc/%d/status", os.Getpid())); err != nil {
		return err
	}
	return nil
}

func readable(fd int) error {
	n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 10_000)
	if err == nil && n == 0 {
		err = errors.New("nothing came")
	}
	return err
}

func child() error {
	usr2 := make(chan os.Signal, 1)
	signal.Notify(usr2, syscall.SIGUSR2)
	if _, err := unix.Write(3, []byte("up")); err != nil {
		return err
	}
	<-usr2
	return unix.Sendmsg(3, []byte("fd"), unix.UnixRights(3), nil, 0)
}

func notify(text string) error {
	c, err := net.Dial("unixgram", os.Getenv("NOTIFY_SOCKET"))
	if err != nil {
		return err
	}
	defer c.Close()
	_, err = c.Write([]byte(text))
	return err
}

func atoi(s string) int { n, _ := strconv.Atoi(s); return n }
