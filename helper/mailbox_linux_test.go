package helper

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/zdt-dev/zdt/internal/sdnotify"
)

func newMailbox(t *testing.T, dir string, b band) *mailbox {
	t.Helper()
	m, err := openMailbox(dir, 7)
	if err != nil {
		t.Fatal(err)
	}
	if err := m.listen(b); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		select {
		case <-m.stop: // closed or detached
		default:
			m.Close()
		}
	})
	return m
}

func myself() band { return band{Leader: os.Getpid()} }

func next(t *testing.T, m *mailbox) notice {
	t.Helper()
	select {
	case n, open := <-m.Messages():
		if !open {
			t.Fatal("the mailbox is closed")
		}
		return n
	case <-time.After(patience):
		t.Fatalf("no message; %+v; %s", m.Counts(), m.Dropped())
		return notice{}
	}
}

func tell(t *testing.T, m *mailbox, assignments ...string) {
	t.Helper()
	if err := (sdnotify.Notifier{Socket: m.Path()}).Send(assignments...); err != nil {
		t.Fatal(err)
	}
}

// pipe returns a descriptor to send away, and hungUp, which tells that no copy of it is open.
func pipe(t *testing.T) (fd int, hungUp func() bool) {
	t.Helper()
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(p[0]) })
	return p[1], func() bool {
		n, err := unix.Read(p[0], make([]byte, 1))
		return n == 0 && err == nil
	}
}

// countFDs counts this process's descriptors.
func countFDs(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

// leaksNothing runs f and checks that it leaves no goroutine and no descriptor.
func leaksNothing(t *testing.T, f func(t *testing.T)) {
	t.Helper()
	t.Run("first", f) // whatever is opened once
	goroutines, fds := runtime.NumGoroutine(), countFDs(t)
	t.Run("second", f)
	eventually(t, "goroutines and descriptors are as before", func() bool {
		return runtime.NumGoroutine() <= goroutines && countFDs(t) <= fds
	})
}

func TestMailboxDelivers(t *testing.T) {
	dir := t.TempDir()
	before := unix.Umask(0)
	m, err := openMailbox(dir, 7)
	unix.Umask(before)
	if err != nil {
		t.Fatal(err)
	}
	if want := filepath.Join(dir, "notify-7.sock"); m.Path() != want {
		t.Errorf("path %q, want %q", m.Path(), want)
	}
	if info, err := os.Stat(m.Path()); err != nil || info.Mode() != os.ModeSocket|0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	// Said before anybody listens.
	tell(t, m, "STATUS=starting")
	fd, hungUp := pipe(t)
	if err := (sdnotify.Notifier{Socket: m.Path()}).SendFDs([]string{"FDSTORE=1", "FDNAME=x"}, fd, fd); err != nil {
		t.Fatal(err)
	}
	unix.Close(fd)
	if err := m.listen(myself()); err != nil {
		t.Fatal(err)
	}
	tell(t, m, "READY=1", "UNKNOWN=1")

	first, second, third := next(t, m), next(t, m), next(t, m)
	if v, _ := first.first("STATUS"); v != "starting" || first.PID != os.Getpid() || int(first.UID) != os.Getuid() || len(first.FDs) != 0 {
		t.Errorf("first: %+v", first)
	}
	if !second.says("FDSTORE", "1") || len(second.FDs) != 2 {
		t.Errorf("second: %+v", second)
	}
	for _, fd := range second.FDs {
		if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC == 0 {
			t.Errorf("descriptor %d: flags %#x, %v", fd, flags, err)
		}
		if hungUp() {
			t.Error("not the descriptor that was sent")
		}
		unix.Close(fd)
	}
	if !hungUp() {
		t.Error("a descriptor is left open")
	}
	if want := []variable{{"READY", "1"}, {"UNKNOWN", "1"}}; !slices.Equal(third.Vars, want) {
		t.Errorf("third: %q", third.Vars)
	}
	if got, want := m.Counts(), (mailCounts{Delivered: 3}); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
	if err := m.Close(); err != nil {
		t.Error(err)
	}
	if _, open := <-m.Messages(); open {
		t.Error("messages after Close")
	}
	if _, err := os.Lstat(m.Path()); !os.IsNotExist(err) {
		t.Errorf("after Close: %v", err)
	}
}

func TestMailboxWithoutDirectory(t *testing.T) {
	m, other := newMailbox(t, "", myself()), newMailbox(t, "", myself())
	if !strings.HasPrefix(m.Path(), "@") || m.Path() == other.Path() {
		t.Errorf("paths %q and %q", m.Path(), other.Path())
	}
	tell(t, m, "READY=1")
	if n := next(t, m); !n.says("READY", "1") {
		t.Errorf("%+v", n)
	}
}

func TestMailboxDropsWhatIsNoNotice(t *testing.T) {
	m := newMailbox(t, "", myself())
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: m.Path(), Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	raw, err := conn.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var hangUps []func() bool
	for _, data := range []string{"", "hello", "READY=1\x00STATUS=x", strings.Repeat("A=1\n", noticeLimit/4) + "x", strings.Repeat("x", 64<<10)} {
		fd, hungUp := pipe(t)
		hangUps = append(hangUps, hungUp)
		raw.Write(func(s uintptr) bool {
			err = unix.Sendmsg(int(s), []byte(data), unix.UnixRights(fd), nil, 0)
			return err != unix.EAGAIN
		})
		if err != nil {
			t.Fatal(err)
		}
		unix.Close(fd)
	}
	tell(t, m, "READY=1")
	if n := next(t, m); !n.says("READY", "1") || len(n.FDs) != 0 {
		t.Errorf("%+v", n)
	}
	if got, want := m.Counts(), (mailCounts{Delivered: 1, Malformed: 3, Truncated: 2}); got != want {
		t.Errorf("%+v, want %+v; %s", got, want, m.Dropped())
	}
	for i, hungUp := range hangUps {
		if !hungUp() {
			t.Errorf("the descriptor of message %d is open", i)
		}
	}
}

// A helper short of descriptors gets some of those that were sent: the message is
// not to be taken for whole, and those are not to stay.
func TestMailboxShortOfDescriptors(t *testing.T) {
	if !alone(t) {
		return
	}
	m := newMailbox(t, "", myself())
	fd, hungUp := pipe(t)
	fds := slices.Repeat([]int{fd}, 40)
	open := countFDs(t)
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	// The limit is for the number of a descriptor; the test has no holes in them to speak of.
	few := limit
	few.Cur = uint64(open + 10)
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &few); err != nil {
		t.Fatal(err)
	}
	if err := (sdnotify.Notifier{Socket: m.Path()}).SendFDs([]string{"FDSTORE=1"}, fds...); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the message is dropped", func() bool { return m.Counts() == mailCounts{Truncated: 1} })
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	unix.Close(fd)
	if !hungUp() {
		t.Error("some of the descriptors are open")
	}
	if !strings.Contains(m.Dropped(), "descriptors were lost") {
		t.Error(m.Dropped())
	}
	tell(t, m, "READY=1")
	next(t, m)
}

func TestMailboxCloseWhileFull(t *testing.T) {
	leaksNothing(t, func(t *testing.T) {
		m := newMailbox(t, t.TempDir(), myself())
		fd, hungUp := pipe(t)
		for range 5 {
			if err := (sdnotify.Notifier{Socket: m.Path()}).SendFDs([]string{"FDSTORE=1"}, fd); err != nil {
				t.Fatal(err)
			}
		}
		unix.Close(fd)
		eventually(t, "a message waits to be taken", func() bool { return m.Counts().Delivered == 1 })
		if err := m.Close(); err != nil {
			t.Error(err)
		}
		if !hungUp() {
			t.Error("a descriptor is open")
		}
	})
}

func TestMailboxNeverListened(t *testing.T) {
	leaksNothing(t, func(t *testing.T) {
		m, err := openMailbox(t.TempDir(), 1)
		if err != nil {
			t.Fatal(err)
		}
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	})
}

// The helper that is executed in this one's place hears everything, in order.
func TestMailboxDetach(t *testing.T) {
	leaksNothing(t, func(t *testing.T) {
		m := newMailbox(t, t.TempDir(), myself())
		for i := range 5 {
			tell(t, m, fmt.Sprintf("STATUS=%d", i))
		}
		got := []notice{next(t, m)}
		eventually(t, "the second was read", func() bool { return m.Counts().Delivered == 2 })
		fd, last, err := m.detach()
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, last...)
		if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC == 0 {
			t.Errorf("descriptor: flags %#x, %v", flags, err)
		}
		tell(t, m, "STATUS=5")
		again, err := adoptMailbox(fd, m.Path())
		if err != nil {
			t.Fatal(err)
		}
		if err := again.listen(myself()); err != nil {
			t.Fatal(err)
		}
		for len(got) < 6 {
			got = append(got, next(t, again))
		}
		for i, n := range got {
			if v, _ := n.first("STATUS"); v != strconv.Itoa(i) {
				t.Errorf("message %d is %s", i, v)
			}
		}
		if err := again.Close(); err != nil {
			t.Error(err)
		}
		if _, err := os.Lstat(m.Path()); !os.IsNotExist(err) {
			t.Errorf("after Close: %v", err)
		}
	})
}

func TestMailboxFiles(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "notify-7.sock")

	// Of a helper that was killed.
	m, err := openMailbox(dir, 7)
	if err != nil {
		t.Fatal(err)
	}
	m.file.Close()
	m = newMailbox(t, dir, myself())
	tell(t, m, "READY=1")
	next(t, m)

	// Of one that lives.
	if _, err := openMailbox(dir, 7); err == nil || !strings.Contains(err.Error(), "listens there already") {
		t.Errorf("a second one: %v", err)
	}
	tell(t, m, "READY=1")
	next(t, m)

	// Somebody else's, by the time it is closed.
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := m.Close(); err != nil {
		t.Error(err)
	}
	if _, err := openMailbox(dir, 7); err == nil {
		t.Error("opened in the place of a file")
	}
	if b, err := os.ReadFile(path); err != nil || string(b) != "mine" {
		t.Errorf("the file has %q, %v", b, err)
	}
	if _, err := openMailbox("/"+strings.Repeat("x", 120), 1); err == nil || !strings.Contains(err.Error(), "shorter") {
		t.Errorf("a long path: %v", err)
	}
	if _, err := openMailbox(filepath.Join(dir, "missing"), 1); err == nil {
		t.Error("opened in a directory that is not there")
	}
}
