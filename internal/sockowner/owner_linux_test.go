package sockowner

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const patience = 20 * time.Second

// eventually waits until cond holds.
func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !cond(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain until %s", what)
		}
	}
}

// listen binds a socket that no poller has. Address is a host, whose port the kernel chooses, or a path.
func listen(t *testing.T, address string, options ...func(fd int) error) (fd int, bound string) {
	t.Helper()
	family, sa := unix.AF_UNIX, unix.Sockaddr(&unix.SockaddrUnix{Name: address})
	if ip := net.ParseIP(address); ip.To4() != nil {
		family, sa = unix.AF_INET, &unix.SockaddrInet4{Addr: [4]byte(ip.To4())}
	} else if ip != nil {
		family, sa = unix.AF_INET6, &unix.SockaddrInet6{Addr: [16]byte(ip)}
	}
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err == unix.EAFNOSUPPORT {
		t.Skip("no IPv6 here")
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	for _, option := range options {
		if err := option(fd); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Bind(fd, sa); err == unix.EADDRNOTAVAIL {
		t.Skip("no IPv6 here")
	} else if err != nil {
		t.Fatal(err)
	}
	if err := unix.Listen(fd, 128); err != nil {
		t.Fatal(err)
	}
	sa, err = unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return fd, fmt.Sprintf("%s:%d", net.IP(sa.Addr[:]), sa.Port)
	case *unix.SockaddrInet6:
		return fd, fmt.Sprintf("[%s]:%d", net.IP(sa.Addr[:]), sa.Port)
	}
	return fd, address
}

func dial(t *testing.T, network, address string) net.Conn {
	t.Helper()
	conn, err := net.Dial(network, address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// sleeper starts a process that holds no socket.
func sleeper(t *testing.T) int {
	t.Helper()
	cmd := exec.Command("cat")
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		stdin.Close()
		cmd.Wait()
	})
	return cmd.Process.Pid
}

func TestAwait(t *testing.T) {
	stranger := sleeper(t)
	for _, network := range []string{"tcp", "unix"} {
		t.Run(network, func(t *testing.T) {
			address := "127.0.0.1"
			if network == "unix" {
				address = t.TempDir() + "/s"
			}
			socket, bound := listen(t, address)
			conn := dial(t, network, bound)
			soon, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
			defer cancel()
			if whose, err := Family(os.Getpid()).Await(soon, conn, nil); whose != None || !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("nobody accepts: %v, %v", whose, err)
			}
			accepted, _, err := unix.Accept4(socket, unix.SOCK_CLOEXEC)
			if err != nil {
				t.Fatal(err)
			}
			for set, want := range map[*Set]Owner{
				{Leader: os.Getpid()}: Mine,
				{Leader: stranger, Members: func() []int { return []int{stranger, os.Getpid()} }}: Mine,
				{Leader: stranger}: Other,
			} {
				if whose, err := set.Await(t.Context(), conn, nil); whose != want || err != nil {
					t.Errorf("leader %d: %v, %v; want %v", set.Leader, whose, err, want)
				}
			}
			// A process descends from the one that started it.
			if whose, err := Family(stranger).Await(t.Context(), conn, nil); whose != Other || err != nil {
				t.Errorf("family of a stranger: %v, %v", whose, err)
			}
			unix.Close(accepted)
			if whose, err := Family(os.Getpid()).Await(t.Context(), conn, nil); whose == Mine || whose == Other {
				t.Errorf("closed: %v, %v", whose, err)
			}
		})
	}
}

// Who may only be told by what was sent gets something, once.
func TestAwaitDeferred(t *testing.T) {
	socket, bound := listen(t, "127.0.0.1", func(fd int) error {
		return unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_DEFER_ACCEPT, 10)
	})
	conn := dial(t, "tcp", bound)
	soon, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if whose, err := Family(os.Getpid()).Await(soon, conn, nil); whose != Deferred || err == nil {
		t.Errorf("not nudged: %v, %v", whose, err)
	}
	broken := errors.New("broken")
	if whose, err := Family(os.Getpid()).Await(t.Context(), conn, func() error { return broken }); whose != Deferred || err != broken {
		t.Errorf("a nudge that fails: %v, %v", whose, err)
	}
	nudges := 0
	accepted := make(chan int, 1)
	go func() {
		fd, _, err := unix.Accept4(socket, unix.SOCK_CLOEXEC)
		if err != nil {
			t.Error(err)
		}
		accepted <- fd
	}()
	whose, err := Family(os.Getpid()).Await(t.Context(), conn, func() error {
		nudges++
		_, err := conn.Write([]byte("x"))
		return err
	})
	unix.Close(<-accepted)
	if whose != Mine || err != nil || nudges != 1 {
		t.Errorf("%v, %v after %d nudges", whose, err, nudges)
	}
}

func TestMembers(t *testing.T) {
	table := []Process{
		{1, 0, 1}, {10, 1, 10},
		{20, 10, 20}, {21, 20, 20}, {22, 21, 22}, {23, 22, 23},
		{24, 10, 20}, // its parent is gone
		{30, 10, 30}, {31, 30, 30},
		{40, 40, 40}, // no such thing, and no loop for it
	}
	if got, want := Members(20, table), []int{20, 21, 24, 22, 23}; !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
	if got, want := Members(22, table), []int{22, 23}; !slices.Equal(got, want) {
		t.Errorf("not the leader of its group: %v, want %v", got, want)
	}
	if got := Members(0, table); got != nil {
		t.Errorf("nobody leads: %v", got)
	}
}

func TestTable(t *testing.T) {
	child := sleeper(t)
	want := Process{PID: child, Parent: os.Getpid(), Group: unix.Getpgrp()}
	if !slices.Contains(Table(), want) {
		t.Errorf("%v is not there", want)
	}
	if !Belongs(child, os.Getpid()) || !Belongs(child, unix.Getpgrp()) || !Belongs(child, child) || Belongs(os.Getpid(), child) || Belongs(1, child) || Belongs(1<<30, child) || Belongs(child, 0) || Belongs(0, 0) {
		t.Error("who belongs to whom")
	}
	for text, want := range map[string]Process{
		"7 (a) b) 1 2) S 5 6 7 8": {Parent: 5, Group: 6},
		"7 (a) S 5":               {},
		"7 (a) S x 6 7":           {},
		"":                        {},
	} {
		if got, ok := parseStat([]byte(text)); got.Group != want.Group || ok != (want != Process{}) {
			t.Errorf("%q: %v, %v", text, got, ok)
		}
	}
}

func FuzzParseStat(f *testing.F) {
	f.Add([]byte("1 (systemd) S 0 1 1 0"))
	f.Fuzz(func(t *testing.T, stat []byte) { parseStat(stat) })
}
