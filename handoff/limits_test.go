package handoff

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/zdt-dev/zdt/internal/wire"
)

// The limits of a real kernel, which are those of a process or of a user: each
// of these tests goes on in a process of its own.

const envLimited = "ZDT_TEST_LIMITED"

// limited runs the test that calls it in a process of its own, as another user
// if credential says so, with files from descriptor 3 on. It returns what that
// process had to report. In that process it returns "" at once.
func limited(t *testing.T, credential *syscall.Credential, files ...*os.File) (report string) {
	t.Helper()
	if os.Getenv(envLimited) == t.Name() {
		return ""
	}
	// Not by its path, which another user might not reach.
	cmd := exec.Command("/proc/self/exe", "-test.run=^"+t.Name()+"$", "-test.v", "-test.count=1")
	cmd.Env = append(os.Environ(), envLimited+"="+t.Name(), "TMPDIR=/tmp")
	cmd.Dir = "/"
	cmd.ExtraFiles = files
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: credential}
	out, err := cmd.CombinedOutput()
	if credential != nil && (errors.Is(err, unix.EPERM) || errors.Is(err, unix.EINVAL)) {
		t.Skipf("root here may not become another user: %v", err)
	}
	if err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	for line := range strings.SplitSeq(string(out), "\n") {
		if text, ok := strings.CutPrefix(line, "REPORT "); ok {
			report += text + "\n"
		}
	}
	if report == "" {
		t.Errorf("nothing reported:\n%s", out)
	}
	return report
}

// setFileLimit changes how many descriptors this process may have.
func setFileLimit(t *testing.T, n uint64) {
	t.Helper()
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: n, Max: n}); err != nil {
		t.Fatal(err)
	}
}

// A receiver takes as many connections as it has descriptors for: those of a
// batch that is being taken do not count twice. And when descriptors do not come
// through, what has come is taken.
func TestReceiverLimits(t *testing.T) {
	if os.Getenv(envLimited) == t.Name() {
		receiveLimited(t)
		return
	}
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	from, err := wire.NewLink(fds[0])
	if err != nil {
		t.Fatal(err)
	}
	defer from.Close()
	theirs := os.NewFile(uintptr(fds[1]), "wire")
	defer theirs.Close()
	ended := make(chan string)
	go func() { ended <- limited(t, nil, theirs) }()
	v := newVisitor(t)
	send := func(batch uint64, n int) wire.Message {
		t.Helper()
		m := memory(t, manifestOf(n))
		defer unix.Close(m)
		fds := []int{m}
		for range n {
			fds = append(fds, v.fd)
		}
		if err := from.SendFiles(wire.Message{Type: wire.Move, Batch: batch, Count: n}, fds...); err != nil {
			t.Fatal(err)
		}
		answer, err := from.Receive()
		if err != nil {
			t.Fatal(err)
		}
		if answer.Count+len(answer.Refused) != n {
			t.Errorf("%d taken and %d refused of %d", answer.Count, len(answer.Refused), n)
		}
		return answer
	}
	// 400 descriptors, an eighth of them left free.
	if a := send(1, maxBatch); a.Count != maxBatch {
		t.Errorf("with room for all: %d taken, %v", a.Count, a.Refused[0])
	}
	// Now they run out in the middle.
	a := send(2, maxBatch)
	if a.Count < 30 || a.Count > 98 {
		t.Errorf("with room for some: %d taken, %v", a.Count, a.Refused[0])
	}
	last := send(3, 10)
	if last.Count > 2 {
		t.Errorf("without room: %d taken", last.Count)
	}
	from.Close()
	var open, taken, after int
	report := <-ended
	if _, err := fmt.Sscanf(report, "open %d taken %d after %d", &open, &taken, &after); err != nil {
		t.Fatalf("%q: %v", report, err)
	}
	if want := maxBatch + a.Count + last.Count; taken != want || after > open {
		t.Errorf("%s, want %d taken and no more open than before", report, want)
	}
	v.speaks("sender")
	if err := v.serves(v.server, "sender"); err != nil {
		t.Error(err)
	}
}

func receiveLimited(t *testing.T) {
	setFileLimit(t, 400)
	l, err := wire.NewLink(3)
	if err != nil {
		t.Fatal(err)
	}
	h := bareHandoff(t, Options{})
	h.taking.Store(true)
	came := make(chan net.Conn, 400)
	h.OnConn("line/1", func(c net.Conn, _ json.RawMessage) { came <- c })
	l.Taker = h.receive
	before := openFDs()
	l.Pump(make(chan wire.Message), make(chan struct{}))
	taken := 0
	eventually(t, "all have been served", func() bool {
		for {
			select {
			case c := <-came:
				c.Close()
				taken++
			default:
				open, _, _ := h.tracker.snapshot()
				return len(open) == 0
			}
		}
	})
	fmt.Printf("REPORT open %d taken %d after %d\n", before, taken, openFDs())
	l.Close()
	h.Close()
}

// A user without privileges has a limit of descriptors in flight, whoever of
// its processes has sent them. While it is reached nothing moves and everything
// is served; afterwards the connections move.
func TestTooManyInFlight(t *testing.T) {
	if os.Getenv(envLimited) != t.Name() {
		var nobody *syscall.Credential
		if os.Getuid() == 0 { // root has no such limit
			nobody = &syscall.Credential{Uid: 64_777, Gid: 64_777, NoSetGroups: true}
		}
		report := limited(t, nobody)
		if strings.Contains(report, "skipped") {
			t.Skip(report)
		}
		if !strings.Contains(report, "refused") || !strings.Contains(report, "moved 20") {
			t.Errorf("%q", report)
		}
		return
	}
	setFileLimit(t, 200)
	// Other sockets of the same user, with more on their way than one may have.
	hold, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	many := make([]int, 200)
	for range 2 {
		if err := unix.Sendmsg(hold[0], []byte("x"), unix.UnixRights(many...), nil, 0); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Sendmsg(hold[0], []byte("x"), unix.UnixRights(0), nil, 0); !errors.Is(err, unix.ETOOMANYREFS) {
		fmt.Println("REPORT skipped:", err)
		t.Skipf("the kernel does not mind: %v", err)
	}
	fmt.Println("REPORT refused")
	r := newHarbour(t)
	sender := bareHandoff(t, Options{})
	defer sender.Close()
	var visitors []*visitor
	for range 20 {
		v := newVisitor(t)
		visitors = append(visitors, v)
		tracked, err := sender.Track(v.server, Codec{Protocol: "line/1"})
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			defer tracked.Close()
			buf := make([]byte, 100)
			for {
				n, err := tracked.Read(buf)
				if err != nil {
					return
				}
				fmt.Fprintf(tracked, "sender: %s", buf[:n])
				tracked.Boundary(0)
			}
		}()
	}
	m := newMover(sender.tracker, quiet(), []wire.Take{{Protocol: "line/1"}}, batchesTo(r.from))
	m.look()
	go m.run()
	acks := make(chan struct{})
	go func() {
		defer close(acks)
		for {
			msg, err := r.from.Receive()
			if err != nil {
				return
			}
			m.acknowledged(msg)
		}
	}()
	ask := func(v *visitor, who string) error {
		fmt.Fprint(v.client, "hello")
		buf := make([]byte, 100)
		n, err := v.client.Read(buf)
		if err != nil || string(buf[:n]) != who+": hello" {
			return fmt.Errorf("%q, %w", buf[:n], err)
		}
		return nil
	}
	for range 3 {
		for i, v := range visitors {
			if err := ask(v, "sender"); err != nil {
				t.Errorf("connection %d: %v", i, err)
			}
		}
	}
	unix.Close(hold[1]) // with everything that was on its way
	for range visitors {
		c := <-r.came
		go func() {
			defer c.Close()
			buf := make([]byte, 100)
			for {
				n, err := c.Read(buf)
				if err != nil {
					return
				}
				fmt.Fprintf(c, "receiver: %s", buf[:n])
			}
		}()
	}
	for i, v := range visitors {
		if err := ask(v, "receiver"); err != nil && !errors.Is(err, io.EOF) {
			t.Errorf("connection %d: %v", i, err)
		}
	}
	_, _, moved := sender.tracker.snapshot()
	fmt.Println("REPORT moved", moved)
	m.halt()
	r.to.Close()
	<-acks
}
