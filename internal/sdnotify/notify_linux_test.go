package sdnotify

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// listen is systemd's end. It reads nothing by itself.
func listen(t *testing.T) (*net.UnixConn, Notifier) {
	t.Helper()
	dir, err := os.MkdirTemp("", "zdt") // short enough for a socket
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	conn.SetDeadline(time.Now().Add(2 * Timeout))
	t.Cleanup(func() { conn.Close(); os.RemoveAll(dir) })
	return conn, Notifier{Socket: path}
}

// receive reads one datagram. The caller owns the descriptors.
func receive(t *testing.T, conn *net.UnixConn) (text string, fds []int) {
	t.Helper()
	data, oob := make([]byte, 4096), make([]byte, unix.CmsgSpace(253*4))
	n, oobn, _, _, err := conn.ReadMsgUnix(data, oob)
	if err != nil {
		t.Fatal(err)
	}
	cmsgs, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range cmsgs {
		if got, err := unix.ParseUnixRights(&c); err == nil {
			fds = append(fds, got...)
		}
	}
	return string(data[:n]), fds
}

func TestMessages(t *testing.T) {
	conn, n := listen(t)
	for want, send := range map[string]func() error{
		"WATCHDOG=1\nSTATUS=x": func() error { return n.Send("WATCHDOG=1", "STATUS=x") },
		"STATUS=x":             func() error { return n.Hint("x") },
		"READY=1\nSTATUS=x":    func() error { return n.Ready("x") },
		"MAINPID=7\nREADY=1\nNOTIFYACCESS=all\nWATCHDOG=1\nSTATUS=x": func() error { return n.MainPID(7, "x") },
		"NOTIFYACCESS=main\nSTATUS=x":                                func() error { return n.Sole("x") },
		"FDSTORE=1\nFDNAME=none":                                     func() error { return n.SendFDs([]string{"FDSTORE=1", "FDNAME=none"}) },
	} {
		if err := send(); err != nil {
			t.Errorf("%q: %v", want, err)
			continue
		}
		if got, fds := receive(t, conn); got != want || len(fds) > 0 {
			t.Errorf("systemd reads %q with descriptors %v, want %q", got, fds, want)
		}
	}
}

func TestNobodyListens(t *testing.T) {
	var none Notifier
	for _, err := range []error{none.Send("X=1"), none.SendFDs([]string{"X=1"}, 0), none.Hint("x"), none.Ready("x"), none.Barrier(), none.Reclaim(1, "x")} {
		if err != nil {
			t.Errorf("without systemd: %v", err)
		}
	}
	gone := Notifier{Socket: filepath.Join(t.TempDir(), "none")}
	for _, err := range []error{gone.Send("X=1"), gone.SendFDs([]string{"X=1"}, 0), gone.Hint("x"), gone.Barrier()} {
		if !errors.Is(err, unix.ENOENT) {
			t.Errorf("without the socket: %v", err)
		}
	}
}

func TestSendFDs(t *testing.T) {
	conn, n := listen(t)
	var pipe [2]int
	if err := unix.Pipe2(pipe[:], unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pipe[0])
	err := n.SendFDs([]string{"FDSTORE=1", "FDNAME=conn"}, pipe[1], pipe[1])
	unix.Close(pipe[1])
	if err != nil {
		t.Fatal(err)
	}
	text, fds := receive(t, conn)
	if text != "FDSTORE=1\nFDNAME=conn" || len(fds) != 2 {
		t.Errorf("%q with %v", text, fds)
	}
	for _, fd := range fds {
		if _, err := unix.Write(fd, []byte("x")); err != nil {
			t.Error(err)
		}
		unix.Close(fd)
	}
	got := make([]byte, 8)
	if k, err := unix.Read(pipe[0], got); err != nil || string(got[:k]) != "xx" {
		t.Errorf("through the descriptors came %q, %v", got[:k], err)
	}
	if err := n.SendFDs([]string{"FDSTORE=1"}, slices.Repeat([]int{0}, 254)...); err == nil {
		t.Error("more descriptors than the kernel passes")
	}
}

// The barrier is passed when systemd has closed the descriptor, not before.
func TestBarrier(t *testing.T) {
	conn, n := listen(t)
	passed := make(chan error, 1)
	go func() { passed <- n.Barrier() }()
	text, fds := receive(t, conn)
	if text != "BARRIER=1" || len(fds) != 1 {
		t.Fatalf("%q with %v", text, fds)
	}
	select {
	case err := <-passed:
		t.Errorf("passed while systemd has the descriptor: %v", err)
	case <-time.After(20 * time.Millisecond):
	}
	unix.Close(fds[0])
	if err := <-passed; err != nil {
		t.Error(err)
	}
}

// systemd reads nothing while it reloads. A status text is not worth waiting for.
func TestHintDoesNotBlock(t *testing.T) {
	_, n := listen(t)
	begun := time.Now()
	var err error
	for err == nil { // net.unix.max_dgram_qlen, and then some
		err = n.Hint("reads nobody")
	}
	if took := time.Since(begun); !errors.Is(err, os.ErrDeadlineExceeded) || took > Timeout/2 {
		t.Errorf("%v, after %v", err, took)
	}
}
