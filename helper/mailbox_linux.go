package helper

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// mailbox is the NOTIFY_SOCKET of one generation. Each has its own, so that what a
// generation says is its own whichever process of it speaks, and a flood of one
// keeps nobody else from being heard.
//
// One goroutine reads, and holds one notice at a time: while nobody takes that, the
// kernel's queue fills up and the sender has to wait.
type mailbox struct {
	path     string // as in NOTIFY_SOCKET: a file, or @name for an abstract one
	file     *os.File
	inode    fileID // what path was when it was bound; zero for an abstract one
	messages chan notice
	stop     chan struct{} // closed by halt
	done     chan struct{} // closed when the goroutine has ended; nil until listen
	left     *notice       // what the goroutine held when it was told to stop; read after done
	last     atomic.Bool   // set by finish: what waits is the last

	mu      sync.Mutex
	counts  mailCounts
	dropped string // which datagram was dropped last, and why
}

// mailCounts counts the datagrams that came to a mailbox.
type mailCounts struct {
	Delivered uint64
	Strangers uint64 // of a process that may not speak for the generation
	Malformed uint64 // no notice
	Truncated uint64 // too long, or descriptors were lost on the way
}

const (
	// mailBurst datagrams are taken as fast as they come, mailPause is between those
	// after that: what goes on to systemd keeps all services of the host busy.
	mailBurst = 1000
	mailPause = time.Millisecond

	// mailFDs is how many descriptors the kernel lets a datagram carry (SCM_MAX_FD).
	mailFDs = 253
)

// openMailbox binds the socket: notify-GENERATION.sock in dir, or notify-7-3.sock for the numbers 7 and 3, for
// this user alone, or an abstract one when dir is empty. The name of an abstract socket is no secret, /proc/net/unix has it, and
// everybody in the network namespace may send to it; in either case it is
// the sender's credentials that count. Nothing is read until listen.
func openMailbox(dir string, numbers ...int) (*mailbox, error) {
	path := ""
	if dir == "" {
		var name [16]byte
		rand.Read(name[:]) // never fails since Go 1.24
		path = "@zdt-notify-" + hex.EncodeToString(name[:])
	} else {
		name := "notify"
		for _, n := range numbers {
			name += "-" + strconv.Itoa(n)
		}
		path = filepath.Join(dir, name+".sock")
	}
	fd, err := bindMailbox(path)
	if err != nil {
		return nil, fmt.Errorf("open notification socket %q: %w", path, err)
	}
	m, err := adoptMailbox(fd, path)
	if err != nil {
		return nil, err
	}
	return m, nil
}

// adoptMailbox takes over a bound socket, of openMailbox or of a detached mailbox. fd is the mailbox's
// afterwards, whatever comes.
func adoptMailbox(fd int, path string) (*mailbox, error) {
	// Go's poller takes a file that it is given non-blocking.
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("adopt notification socket %q: %w", path, err)
	}
	m := &mailbox{
		path:     path,
		file:     os.NewFile(uintptr(fd), path),
		messages: make(chan notice),
		stop:     make(chan struct{}),
	}
	if !strings.HasPrefix(path, "@") {
		m.inode, _ = identify(path)
	}
	return m, nil
}

// Path is the value of NOTIFY_SOCKET.
func (m *mailbox) Path() string { return m.path }

// Messages are the notices of those who may send them, in their order. Whoever takes one owns its descriptors.
// The channel is closed when the mailbox is, or detached.
func (m *mailbox) Messages() <-chan notice { return m.messages }

// Counts tells what came so far.
func (m *mailbox) Counts() mailCounts {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.counts
}

// Dropped says which datagram was dropped last and why; empty when none was.
func (m *mailbox) Dropped() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.dropped
}

// listen begins to read for the generation, whose leader has been started. What
// it said since waits in the socket. Once only.
func (m *mailbox) listen(b band) error {
	raw, err := m.file.SyscallConn()
	if err != nil {
		return fmt.Errorf("listen to %q: %w", m.path, err)
	}
	m.done = make(chan struct{})
	go m.run(raw, b)
	return nil
}

func (m *mailbox) run(raw syscall.RawConn, b band) {
	defer close(m.done)
	defer close(m.messages)
	var buf [noticeLimit]byte // a longer one has MSG_TRUNC
	oob := make([]byte, unix.CmsgSpace(unix.SizeofUcred)+unix.CmsgSpace(4)+unix.CmsgSpace(4*mailFDs))
	due := time.Now() // of a datagram if they came evenly
	over := 0         // datagrams since finish
	for {
		got, err := receive(raw, buf[:], oob)
		if err != nil && m.last.Load() && over < mailBurst {
			over++
			got, err = receiveWaiting(raw, buf[:], oob)
		}
		if err != nil {
			return // closed, or halt's deadline, or finish's and nothing is left
		}
		if n, ok := m.open(got, b); ok {
			select {
			case m.messages <- n:
			case <-m.stop:
				m.left = &n
				return
			}
		}
		now := time.Now()
		if earliest := now.Add(-mailBurst * mailPause); due.Before(earliest) {
			due = earliest
		}
		if due = due.Add(mailPause); due.After(now) {
			select {
			case <-time.After(due.Sub(now)):
			case <-m.stop:
				return
			}
		}
	}
}

// open makes a notice of a letter, unless that is to be dropped: then its descriptors are closed and it is counted.
func (m *mailbox) open(l letter, b band) (notice, bool) {
	if l.from.PIDFD >= 0 {
		defer unix.Close(l.from.PIDFD)
	}
	vars, count, err := []variable(nil), &m.counts.Truncated, error(nil)
	switch {
	case l.flags&unix.MSG_TRUNC != 0:
		err = errNoticeLong
	case l.flags&unix.MSG_CTRUNC != 0:
		// The kernel says no more than this when the helper is short of descriptors.
		err = errors.New("descriptors were lost")
	default:
		if count, err = &m.counts.Strangers, b.admit(l.from); err == nil {
			count = &m.counts.Malformed
			vars, err = parseNotice(l.data)
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if err == nil {
		m.counts.Delivered++
		return notice{PID: l.from.PID, UID: l.from.UID, Vars: vars, FDs: l.fds}, true
	}
	closeAll(l.fds)
	*count++
	m.dropped = fmt.Sprintf("a message of process %d %v", l.from.PID, err)
	return notice{}, false
}

// finish has the goroutine deliver what is in the socket now, and end: the generation is
// gone and says no more. It does not wait for that; Messages is closed then. Others may send
// all the time, and are not listened to for longer than mailBurst.
func (m *mailbox) finish() {
	m.last.Store(true)
	m.file.SetReadDeadline(time.Now())
}

// halt ends the goroutine and waits for it.
func (m *mailbox) halt() {
	close(m.stop)
	m.file.SetReadDeadline(time.Now())
	if m.done != nil {
		<-m.done
	}
}

// Close ends the reading and removes the socket, unless its name is another's by
// now. What is unread is lost.
func (m *mailbox) Close() error {
	m.halt()
	if m.left != nil {
		closeAll(m.left.FDs)
	}
	err := m.file.Close()
	if m.inode != (fileID{}) {
		if now, statErr := identify(m.path); statErr == nil && now == m.inode {
			err = errors.Join(err, os.Remove(m.path))
		}
	}
	if err != nil {
		return fmt.Errorf("close notification socket %q: %w", m.path, err)
	}
	return nil
}

// detach ends the reading and keeps the socket, for the helper that is executed in this one's
// place: fd, close-on-exec and the caller's, is for its adoptMailbox. last is what was read and not
// taken, at most one; all after it is still in the socket. The mailbox is of no use afterwards.
func (m *mailbox) detach() (fd int, last []notice, err error) {
	m.halt()
	defer m.file.Close()
	if m.left != nil {
		last = append(last, *m.left)
	}
	raw, err := m.file.SyscallConn()
	if err == nil {
		controlErr := raw.Control(func(s uintptr) { fd, err = unix.FcntlInt(s, unix.F_DUPFD_CLOEXEC, 0) })
		err = errors.Join(controlErr, err)
	}
	if err != nil {
		return -1, last, fmt.Errorf("keep notification socket %q: %w", m.path, err)
	}
	return fd, last, nil
}
