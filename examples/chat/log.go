package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

// message is one message of the room, and one line of its log.
type message struct {
	Seq  int64  `json:"seq"` // 1, 2, 3 … without a gap
	Text string `json:"text"`
}

// line is what a client gets to see.
func (m message) line() string { return fmt.Sprintf("%d %s", m.Seq, m.Text) }

// roomLog is the room as a file, one JSON document a line. It is a file because
// during an upgrade the members sit in two processes: both append and both
// follow, and the order of the lines is the order of the room for everybody.
//
// Who appends holds a flock(2), reads what others appended before, and so knows
// the next number. Who only reads needs no lock: a line counts once its newline
// is there.
//
// The file has two times keep bytes at most: when it would grow beyond, the newest
// lines, of keep bytes, go to a new file that takes its name, and readers notice
// that the inode is another. It is not synced: messages survive the processes, not
// a crash of the machine.
//
// A roomLog is not safe for concurrent use.
type roomLog struct {
	path string
	keep int64
	lock *os.File // of its own, since the log's inode changes
	file *os.File
	read int64 // bytes of file
	last int64 // number of the last message read
}

// openLog opens or creates the log. Beside it lies a lock file.
func openLog(path string, keep int64) (*roomLog, error) {
	lock, err := os.OpenFile(path+".lock", os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open the room's lock: %w", err)
	}
	return &roomLog{path: path, keep: keep, lock: lock}, nil
}

func (l *roomLog) close() error {
	err := l.lock.Close()
	if l.file != nil {
		err = errors.Join(err, l.file.Close())
	}
	return err
}

// next returns what was appended since the last call, by whomever.
func (l *roomLog) next() ([]message, error) {
	changed, err := l.reopen()
	if err != nil || !changed {
		return nil, err
	}
	// The first read takes two times keep at most, the others what has come since.
	b, err := io.ReadAll(io.NewSectionReader(l.file, l.read, 1<<62))
	if err != nil {
		return nil, fmt.Errorf("read the room's log: %w", err)
	}
	var fresh []message
	for {
		line, rest, whole := bytes.Cut(b, []byte("\n"))
		if !whole {
			return fresh, nil
		}
		var m message
		if err := json.Unmarshal(line, &m); err != nil {
			return fresh, fmt.Errorf("read the room's log %s at byte %d: %w", l.path, l.read, err)
		}
		b = rest
		l.read += int64(len(line)) + 1
		if m.Seq > l.last { // else it was read from the file before this one
			l.last = m.Seq
			fresh = append(fresh, m)
		}
	}
}

// reopen follows the name to another file. It reports false when there is
// nothing to read.
func (l *roomLog) reopen() (changed bool, err error) {
	named, err := os.Stat(l.path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, fmt.Errorf("find the room's log: %w", err)
	}
	if l.file != nil && named != nil {
		mine, err := l.file.Stat()
		if err != nil {
			return false, fmt.Errorf("find the room's log: %w", err)
		}
		if os.SameFile(named, mine) {
			return named.Size() > l.read, nil
		}
	}
	file, err := os.OpenFile(l.path, os.O_RDWR|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		return false, fmt.Errorf("open the room's log: %w", err)
	}
	if l.file != nil {
		l.file.Close() // nothing in it is left to be written
	}
	l.file, l.read = file, 0
	return true, nil
}

// append gives text the next number. It returns the messages that have come
// since the last call of next, with this one at the end.
func (l *roomLog) append(text string) ([]message, error) {
	if err := flock(l.lock, unix.LOCK_EX); err != nil {
		return nil, fmt.Errorf("lock the room: %w", err)
	}
	defer flock(l.lock, unix.LOCK_UN)
	fresh, err := l.next()
	if err != nil {
		return fresh, err
	}
	m := message{l.last + 1, text}
	line, err := json.Marshal(m)
	if err != nil {
		return fresh, err
	}
	line = append(line, '\n')
	if l.read+int64(len(line)) > 2*l.keep {
		if err := l.trim(); err != nil {
			return fresh, err
		}
	}
	// A writer that was killed may have left a part of a line. We hold the lock,
	// so nobody is still at it.
	err = l.file.Truncate(l.read)
	if err == nil {
		_, err = l.file.Write(line)
	}
	if err != nil {
		return fresh, fmt.Errorf("append to the room's log: %w", err)
	}
	l.read += int64(len(line))
	l.last = m.Seq
	return append(fresh, m), nil
}

// trim replaces the file by one with its newest lines, of keep bytes at most.
// The caller holds the lock and has read everything.
func (l *roomLog) trim() error {
	from := max(0, l.read-l.keep)
	tail := make([]byte, l.read-from)
	if _, err := l.file.ReadAt(tail, from); err != nil {
		return fmt.Errorf("trim the room's log: %w", err)
	}
	if from > 0 {
		// The first line is cut, or looks as if it were.
		_, tail, _ = bytes.Cut(tail, []byte("\n"))
	}
	temporary := l.path + ".new"
	if err := os.WriteFile(temporary, tail, 0o600); err != nil {
		return fmt.Errorf("trim the room's log: %w", err)
	}
	if err := os.Rename(temporary, l.path); err != nil {
		return fmt.Errorf("trim the room's log: %w", err)
	}
	if _, err := l.reopen(); err != nil {
		return err
	}
	l.read = int64(len(tail))
	return nil
}

// flock waits for the lock. Appending takes microseconds, and the kernel
// releases the lock of a process that dies.
func flock(f *os.File, how int) error {
	for {
		if err := unix.Flock(int(f.Fd()), how); err != unix.EINTR {
			return err
		}
	}
}
