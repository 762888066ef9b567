package helper

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/zdt-dev/zdt/handoff/control"
	"github.com/zdt-dev/zdt/internal/netfd"
)

// queueOf is the socket that a worker accepts from.
func queueOf(t *testing.T, pid int) string {
	t.Helper()
	to, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/3", pid))
	if err != nil {
		t.Fatal(err)
	}
	return to
}

// Each worker has a queue of its own, which its next worker gets: what waits in it is not lost, where
// the kernel moves nothing (tcp_migrate_req, in the network namespace of this test, as it is by default).
func TestQueues(t *testing.T) {
	if b, _ := os.ReadFile("/proc/sys/net/ipv4/tcp_migrate_req"); strings.TrimSpace(string(b)) == "1" {
		t.Skip("the kernel moves connections between sockets")
	}
	const workers = 3
	s := crewOf(t, workers, stageConfig{ReusePort: true})
	st := s.awaitCrew(1)
	if !st.Sockets[0].ReusePort {
		t.Errorf("sockets %+v", st.Sockets)
	}
	before := pids(st)
	var queues []string
	for _, pid := range before {
		queues = append(queues, queueOf(t, pid))
	}
	if n := len(slices.Compact(slices.Sorted(slices.Values(queues)))); n != workers {
		t.Fatalf("queues %q", queues)
	}
	stopped := before[1:]
	for _, pid := range stopped {
		s.signal(pid, unix.SIGSTOP)
	}
	for _, pid := range stopped { // from then on they accept nothing more; what they have accepted dies with them
		eventually(t, fmt.Sprintf("all threads of %d stand still", pid), func() bool { return standsStill(pid) })
	}
	var clients []net.Conn
	for range 60 { // about two thirds of which wait
		conn, err := net.Dial("tcp", s.addr)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		fmt.Fprint(conn, "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
		clients = append(clients, conn)
	}
	s.signal(s.pid(), unix.SIGUSR2)
	st = s.await("rolled", func(st control.Status) bool {
		return st.Generation == 2 && st.Workers.Left == 0 && st.Workers.Ready == workers
	})
	answers := map[string]int{}
	for _, conn := range clients {
		conn.SetDeadline(time.Now().Add(patience))
		lines := bufio.NewScanner(conn)
		last := ""
		for lines.Scan() {
			last = lines.Text()
		}
		if lines.Err() != nil || last == "" {
			t.Errorf("answer %q, %v", last, lines.Err())
		}
		answers[last]++
	}
	for i, pid := range pids(st) {
		if q := queueOf(t, pid); q != queues[i] {
			t.Errorf("worker %d has %s, before %s", i+1, q, queues[i])
		}
		if i > 0 && answers[fmt.Sprint(pid)] == 0 {
			t.Errorf("worker %d had nothing in its queue: %v", i+1, answers)
		}
	}
	for _, pid := range stopped {
		s.signal(pid, unix.SIGCONT)
	}
	s.awaitCrew(2)
}

// standsStill reports whether all threads of a process are stopped: a signal stops one after the other.
func standsStill(pid int) bool {
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
	for _, task := range tasks {
		b, err := os.ReadFile(task)
		if _, after, ok := strings.Cut(string(b), ") "); err != nil || !ok || !strings.HasPrefix(after, "T") {
			return false
		}
	}
	return err == nil && len(tasks) > 0
}

// What cannot be shared out is refused, with what to do.
func TestNoQueues(t *testing.T) {
	for name, reusePort := range map[string]bool{"shared": true, "not shared": false} {
		t.Run(name, func(t *testing.T) {
			fd, err := netfd.Bind(t.Context(), "tcp", "127.0.0.1:0", reusePort)
			if err != nil {
				t.Fatal(err)
			}
			self, err := os.Executable()
			if err != nil {
				t.Fatal(err)
			}
			file := os.NewFile(uintptr(fd), "http")
			defer file.Close()
			inherit := func(cmd *exec.Cmd) {
				cmd.ExtraFiles = []*os.File{file}
				cmd.Env = append(cmd.Env, "LISTEN_FDS=1", "LISTEN_FDNAMES=http")
				cmd.Path, cmd.Args = "/bin/sh", []string{"sh", "-c", `LISTEN_PID=$$ exec "$0" role:helper`, self}
			}
			s := enter(t, stageConfig{ReusePort: true, Workers: 2}, inherit)
			if reusePort {
				if st := s.awaitCrew(1); st.Sockets[0].Origin != "systemd" || !st.Sockets[0].ReusePort {
					t.Errorf("sockets %+v", st.Sockets)
				}
				return
			}
			s.awaitExit("exited 1")
			if b, _ := os.ReadFile(s.path("stderr")); !strings.Contains(string(b), "needs ReusePort=yes; bind it here with --listen") {
				t.Errorf("it says %s", b)
			}
		})
	}
}

// All addresses of IPv4 and all of IPv6 may be two sockets of one port, as nginx has them.
func TestBindBothFamilies(t *testing.T) {
	k := newKeeper(Options{})
	defer func() {
		for _, s := range k.sockets {
			netfd.Close(s.FD)
		}
	}()
	if err := k.bind(Listen{Name: "a", Network: "tcp", Address: "0.0.0.0:0"}); err != nil {
		t.Fatal(err)
	}
	_, port, err := net.SplitHostPort(k.sockets[0].Address)
	if err != nil || !strings.HasPrefix(k.sockets[0].Address, "0.0.0.0:") {
		t.Fatalf("%+v, %v", k.sockets, err)
	}
	if err := k.bind(Listen{Name: "b", Network: "tcp", Address: "[::]:" + port}); err != nil {
		t.Fatal(err)
	}
	if only, err := unix.GetsockoptInt(k.sockets[1].FD, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY); err != nil || only != 1 {
		t.Errorf("IPV6_V6ONLY is %d, %v", only, err)
	}
	if err := k.bind(Listen{Name: "c", Network: "tcp", Address: ":" + port}); err == nil {
		t.Error("the port is bound a third time")
	}
	slices.Reverse(k.sockets) // systemd's store has its own order
	for _, l := range []Listen{{Name: "a", Network: "tcp", Address: "0.0.0.0:" + port}, {Name: "b", Network: "tcp", Address: "[::]:" + port}} {
		if err := k.bind(l); err != nil || len(k.sockets) != 2 {
			t.Errorf("%+v, which was inherited: %v, %+v", l, err, k.sockets)
		}
	}
}
