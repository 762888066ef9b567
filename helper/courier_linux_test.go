package helper

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/zdt-dev/zdt/internal/sdnotify"
)

// fakeManager is systemd, as far as its notification socket goes. It reads when it is told to.
type fakeManager struct {
	*net.UnixConn
	sdnotify.Notifier
}

func newFakeManager(t *testing.T) fakeManager {
	t.Helper()
	path := filepath.Join(t.TempDir(), "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return fakeManager{conn, sdnotify.Notifier{Socket: path}}
}

// next reads a message: its text and its descriptors.
func (m fakeManager) next(t *testing.T) (string, []int) {
	t.Helper()
	var buf, oob [4096]byte
	m.SetReadDeadline(time.Now().Add(patience))
	n, oobn, _, _, err := m.ReadMsgUnix(buf[:], oob[:])
	if err != nil {
		t.Fatal(err)
	}
	var fds []int
	if messages, _ := unix.ParseSocketControlMessage(oob[:oobn]); len(messages) == 1 {
		fds, _ = unix.ParseUnixRights(&messages[0])
	}
	return strings.ReplaceAll(string(buf[:n]), "\n", " "), fds
}

// silent checks that nothing came.
func (m fakeManager) silent(t *testing.T) {
	t.Helper()
	m.SetReadDeadline(time.Now())
	if n, err := m.Read(make([]byte, 4096)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("%d bytes, %v", n, err)
	}
}

// choke fills the manager's queue, so that it takes nothing until it reads.
func (m fakeManager) choke(t *testing.T) (messages int) {
	t.Helper()
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: m.Socket, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for {
		conn.SetWriteDeadline(time.Now().Add(50 * time.Millisecond))
		if _, err := conn.Write([]byte("CHOKE=1")); err != nil {
			return messages
		}
		messages++
	}
}

func TestCourierKeepsOrder(t *testing.T) {
	leaksNothing(t, func(t *testing.T) {
		manager := newFakeManager(t)
		c := startCourier(manager.Notifier)
		fd, hungUp := pipe(t)
		c.say("READY=1", "STATUS=up")
		c.pass(message{Assignments: []string{"FDSTORE=1", "FDNAME=x"}, FDs: []int{fd}})
		c.pass(message{})
		for i := range 100 {
			c.pass(message{Assignments: []string{fmt.Sprintf("WATCHDOG_USEC=%d", i)}})
		}
		want := []string{"READY=1 STATUS=up", "FDSTORE=1 FDNAME=x"}
		for i := range 100 {
			want = append(want, fmt.Sprintf("WATCHDOG_USEC=%d", i))
		}
		for _, want := range want {
			got, fds := manager.next(t)
			if got != want || (len(fds) > 0) != strings.HasPrefix(want, "FDSTORE") {
				t.Errorf("%q with descriptors %v, want %q", got, fds, want)
			}
			closeAll(fds)
		}
		c.Close()
		if !hungUp() {
			t.Error("the courier keeps the descriptor")
		}
		manager.silent(t)
		if lost, err := c.Lost(); lost != 0 {
			t.Errorf("lost %d: %v", lost, err)
		}
	})
}

// The app's barrier opens when systemd has processed what came before, not earlier.
func TestCourierBarrier(t *testing.T) {
	manager := newFakeManager(t)
	c := startCourier(manager.Notifier)
	defer c.Close()

	// Nothing was passed on: systemd has nothing to do with it.
	fd, hungUp := pipe(t)
	c.barrier(fd)
	eventually(t, "the first barrier opens", hungUp)

	c.pass(message{Assignments: []string{"WATCHDOG=1"}})
	fd, hungUp = pipe(t)
	c.barrier(fd)
	if got, _ := manager.next(t); got != "WATCHDOG=1" {
		t.Errorf("got %q", got)
	}
	got, fds := manager.next(t)
	if got != "BARRIER=1" || len(fds) != 1 {
		t.Fatalf("got %q with %v", got, fds)
	}
	// Order, and that all before was dealt with here.
	another, anotherHungUp := pipe(t)
	c.barrier(another)
	eventually(t, "a barrier with nothing since opens", anotherHungUp)
	if hungUp() {
		t.Error("the barrier opened before systemd came to it")
	}
	closeAll(fds)
	eventually(t, "the second barrier opens", hungUp)
	manager.silent(t)
}

// While systemd reads nothing the helper goes on, and does not grow.
func TestCourierWedged(t *testing.T) {
	if testing.Short() {
		t.Skip("waits for a timeout")
	}
	t.Parallel()
	manager := newFakeManager(t)
	manager.choke(t)
	c := startCourier(manager.Notifier)
	var hangUps []func() bool
	began := time.Now()
	for range 4 {
		fd, hungUp := pipe(t)
		hangUps = append(hangUps, hungUp)
		fds := []int{fd}
		for len(fds) < mailFDs {
			one, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
			if err != nil {
				t.Fatal(err)
			}
			fds = append(fds, one)
		}
		c.pass(message{Assignments: []string{"FDSTORE=1"}, FDs: fds})
	}
	for range 2 * courierLimit {
		c.pass(message{Assignments: []string{"WATCHDOG=1"}})
	}
	c.say("READY=1")
	if took := time.Since(began); took > time.Second {
		t.Errorf("it took %v", took)
	}
	c.mu.Lock()
	waiting := len(c.queue)
	c.mu.Unlock()
	if waiting > courierLimit+1 {
		t.Errorf("%d wait", waiting)
	}
	if lost, err := c.Lost(); lost == 0 || !errors.Is(err, errCourierFull) {
		t.Errorf("lost %d: %v", lost, err)
	}
	if !hangUps[3]() {
		t.Error("descriptors that were refused are open")
	}
	c.Close()
	if took := time.Since(began); took > 3*sdnotify.Timeout {
		t.Errorf("Close took %v", took)
	}
	for i, hungUp := range hangUps {
		if !hungUp() {
			t.Errorf("descriptors of message %d are open", i)
		}
	}
	fd, hungUp := pipe(t)
	c.barrier(fd)
	if _, err := c.Lost(); !hungUp() || !errors.Is(err, errCourierClosed) {
		t.Errorf("a barrier after Close: %v", err)
	}
}

// What the helper says itself gets there even when the app says too much.
func TestCourierCatchesUp(t *testing.T) {
	manager := newFakeManager(t)
	choked := manager.choke(t)
	c := startCourier(manager.Notifier)
	defer c.Close()
	for range 2 * courierLimit {
		c.pass(message{Assignments: []string{"WATCHDOG=1"}})
	}
	c.say("STATUS=here")
	for range choked {
		manager.next(t)
	}
	for {
		if got, _ := manager.next(t); got == "STATUS=here" {
			return
		}
	}
}

func TestCourierWithoutSystemd(t *testing.T) {
	leaksNothing(t, func(t *testing.T) {
		c := startCourier(sdnotify.Notifier{})
		fd, hungUp := pipe(t)
		c.pass(message{Assignments: []string{"FDSTORE=1"}, FDs: []int{fd}})
		barrier, barrierHungUp := pipe(t)
		c.barrier(barrier)
		c.say("READY=1")
		c.Close()
		if !hungUp() || !barrierHungUp() {
			t.Error("descriptors are open")
		}
		if lost, err := c.Lost(); lost != 0 {
			t.Errorf("lost %d: %v", lost, err)
		}
	})
}

func TestPromises(t *testing.T) {
	manager := newFakeManager(t)
	var p promises
	fd, hungUp := pipe(t)
	p.add(message{})
	p.add(message{Assignments: []string{"FDSTOREREMOVE=1", "FDNAME=x"}})
	p.add(message{Assignments: []string{"FDSTORE=1", "FDNAME=x"}, FDs: []int{fd}})
	c := startCourier(manager.Notifier)
	defer c.Close()
	p.keep(c)
	for _, want := range []string{"FDSTOREREMOVE=1 FDNAME=x", "FDSTORE=1 FDNAME=x"} {
		got, fds := manager.next(t)
		closeAll(fds)
		if got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
	eventually(t, "nobody has the descriptor", hungUp)
	if len(p.list) != 0 || p.fds != 0 {
		t.Errorf("%+v is left", p)
	}

	// Of one that is aborted nothing is left.
	fd, hungUp = pipe(t)
	p.add(message{Assignments: []string{"FDSTORE=1"}, FDs: []int{fd}})
	p.drop()
	if !hungUp() || len(p.list) != 0 || p.fds != 0 {
		t.Errorf("%+v is left", p)
	}

	// And too much is refused.
	for range 64 {
		if !p.add(message{Assignments: []string{"RESTART_RESET=1"}}) {
			t.Fatal("refused")
		}
	}
	fd, hungUp = pipe(t)
	if p.add(message{Assignments: []string{"FDSTORE=1"}, FDs: []int{fd}}) || !hungUp() {
		t.Error("too many messages")
	}
	p.drop()
	if p.add(message{Assignments: []string{"FDSTORE=1"}, FDs: slices.Repeat([]int{-1}, mailFDs+1)}) {
		t.Error("too many descriptors")
	}
}

// From the app to systemd, the whole way.
func TestNoticesArrive(t *testing.T) {
	manager := newFakeManager(t)
	m := newMailbox(t, t.TempDir(), myself())
	c := startCourier(manager.Notifier)
	defer c.Close()
	app := sdnotify.Notifier{Socket: m.Path()}
	hear := func(r role) decision {
		d := relay(next(t, m), standing{Role: r})
		closeAll(d.Close)
		c.pass(d.Now)
		if d.Barrier >= 0 {
			c.barrier(d.Barrier)
		}
		return d
	}

	fd, hungUp := pipe(t)
	if err := app.SendFDs([]string{"STOPPING=1", "FDSTORE=1", "FDNAME=state", "STATUS=saved"}, fd); err != nil {
		t.Fatal(err)
	}
	unix.Close(fd)
	if d := hear(roleServing); d.Status != "saved" {
		t.Errorf("%+v", d)
	}
	barrier := make(chan error)
	go func() { barrier <- app.Barrier() }()
	hear(roleServing)
	got, fds := manager.next(t)
	if got != "FDSTORE=1 FDNAME=state" || len(fds) != 1 || hungUp() {
		t.Errorf("systemd got %q, %v", got, fds)
	}
	closeAll(fds)
	if !hungUp() {
		t.Error("somebody keeps the descriptor")
	}
	if got, fds = manager.next(t); got != "BARRIER=1" {
		t.Errorf("systemd got %q, %v", got, fds)
	}
	select {
	case err := <-barrier:
		t.Errorf("the barrier opened early: %v", err)
	default:
	}
	closeAll(fds)
	if err := <-barrier; err != nil {
		t.Error(err)
	}
}
