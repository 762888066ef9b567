package handoff

import (
	"net"
	"strconv"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// fakeSystemd is the receiving end of sd_notify(3): it keeps the main process
// as systemd does with NotifyAccess=main and answers barriers.
type fakeSystemd struct {
	path string
	conn *net.UnixConn
	done chan struct{}

	mu       sync.Mutex
	main     int
	all_     bool // NOTIFYACCESS=all, as systemd ≥ 254
	messages []notification
	deaf     bool // answers no barrier
	held     []int
}

type notification struct {
	pid      int
	text     string
	accepted bool
}

func startSystemd(t *testing.T, path string) *fakeSystemd {
	t.Helper()
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	raw, err := conn.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_PASSCRED, 1) })
	if err != nil {
		t.Fatal(err)
	}
	f := &fakeSystemd{path: path, conn: conn, done: make(chan struct{})}
	go f.run()
	t.Cleanup(func() {
		conn.Close()
		<-f.done
		for _, fd := range f.held {
			unix.Close(fd)
		}
	})
	return f
}

func (f *fakeSystemd) run() {
	defer close(f.done)
	buf, oob := make([]byte, 4096), make([]byte, 4096)
	for {
		n, oobn, _, _, err := f.conn.ReadMsgUnix(buf, oob)
		if err != nil {
			return
		}
		f.handle(string(buf[:n]), oob[:oobn])
	}
}

func (f *fakeSystemd) handle(text string, oob []byte) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var pid int
	var fds []int
	messages, _ := unix.ParseSocketControlMessage(oob)
	for _, m := range messages {
		if cred, err := unix.ParseUnixCredentials(&m); err == nil {
			pid = int(cred.Pid)
		}
		if got, err := unix.ParseUnixRights(&m); err == nil {
			fds = append(fds, got...)
		}
	}
	accepted := f.all_ || pid == f.main
	f.messages = append(f.messages, notification{pid, text, accepted})
	for line := range strings.SplitSeq(text, "\n") {
		key, value, _ := strings.Cut(line, "=")
		switch {
		case !accepted:
		case key == "MAINPID":
			if n, err := strconv.Atoi(value); err == nil && unix.Kill(n, 0) == nil {
				f.main = n
			}
		case key == "NOTIFYACCESS":
			f.all_ = value == "all"
		}
	}
	// Barriers are answered whoever asks, as systemd does.
	if text == "BARRIER=1" && f.deaf {
		f.held = append(f.held, fds...)
		return
	}
	for _, fd := range fds {
		unix.Close(fd)
	}
}

func (f *fakeSystemd) setMain(pid int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.main = pid
}

func (f *fakeSystemd) mainPID() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.main
}

func (f *fakeSystemd) all() []notification {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]notification(nil), f.messages...)
}
