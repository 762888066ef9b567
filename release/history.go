package release

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

const (
	historyFile   = "history.ndjson"
	historySchema = 1
)

// A Kind says what an upgrade was asked for as.
type Kind string

const (
	KindInit     Kind = "init"     // the first release, imported by zdt init
	KindUpgrade  Kind = "upgrade"  // zdt upgrade
	KindRollback Kind = "rollback" // zdt rollback
)

// Conns counts the connections that the incumbent had at the end.
type Conns struct {
	Moved   int `json:"moved"`   // handed to the candidate, alive
	Drained int `json:"drained"` // finished in peace
	Cut     int `json:"cut"`     // closed with work under way
}

// An Entry is one line of the history: one finished upgrade.
type Entry struct {
	Schema int    `json:"schema"`
	TxID   string `json:"txid"`
	Kind   Kind   `json:"kind"`
	From   string `json:"from,omitempty"` // release IDs; From is empty the first time
	To     string `json:"to,omitempty"`
	// FromRecovered: From was made of the running process, see Recover. It has served, and was never committed.
	FromRecovered bool `json:"from_recovered,omitempty"`
	// Committed: To became the current release and stayed it. Everything that
	// asks for an earlier good release goes by this, not by the words.
	Committed bool      `json:"committed"`
	Outcome   string    `json:"outcome"` // a stable word, as in the report of package upgrade
	ExitCode  int       `json:"exit_code"`
	Started   time.Time `json:"started"`
	Ended     time.Time `json:"ended"`
	Who       Who       `json:"who"`
	Why       string    `json:"why,omitempty"`    // what the operator said, -m
	Conns     *Conns    `json:"conns,omitempty"`  // nil if nobody counted
	Reason    string    `json:"reason,omitempty"` // why it did not commit, a stable word
	// AcceptedRisks are the IDs of blockers that it was begun in spite of.
	AcceptedRisks []string `json:"accepted_risks,omitempty"`
}

// History is what could be read of the history file.
type History struct {
	Entries []Entry // newest last
	Damage  []Damage
}

// Damage is a line of the history that cannot be understood.
type Damage struct {
	Line int // counted from 1
	// Torn: the last line, without its end. A crash in the middle of a write
	// leaves it, and it takes the upgrade's verdict with it.
	Torn bool
	Err  error
}

// AppendHistory adds one line and makes it durable. The schema is filled in.
// The caller holds the service's lock.
func (s *Store) AppendHistory(e Entry) error {
	if err := s.appendHistory(e); err != nil {
		return fmt.Errorf("record %s in history: %w", e.TxID, withSpaceHint(err, s.dir))
	}
	return nil
}

func (s *Store) appendHistory(e Entry) (err error) {
	do := s.steps("history")
	if !ValidTxID(e.TxID) {
		return fmt.Errorf("%q is not the ID of a transaction", e.TxID)
	}
	e.Schema = historySchema
	data, err := json.Marshal(e)
	if err != nil {
		return err
	}
	if len(data) >= maxRecord {
		return fmt.Errorf("entry has %d bytes, at most %d are allowed", len(data), maxRecord)
	}
	var f *os.File
	var created bool
	if err := do("open", func() (err error) { f, created, err = s.openHistory(); return err }); err != nil {
		return err
	}
	defer func() {
		if closeErr := f.Close(); err == nil {
			err = closeErr
		}
	}()
	size, torn, err := tail(f)
	if err != nil {
		return err
	}
	// After a torn line begin a new one: only one record is lost, not two.
	var line []byte
	if torn {
		line = append(line, '\n')
	}
	line = append(append(line, data...), '\n')

	var n int
	err = do("write", func() (err error) { n, err = f.Write(line); return err })
	if err == nil {
		err = do("fsync", f.Sync)
	}
	if err != nil {
		// Take back half a line (disk full), and a whole one whose caller is
		// about to hear that it was not written.
		if n > 0 {
			err = errors.Join(err, f.Truncate(size))
		}
		return err
	}
	if created {
		return do("fsync directory", s.root.Sync)
	}
	return nil
}

func (s *Store) openHistory() (f *os.File, created bool, err error) {
	path := filepath.Join(s.dir, historyFile)
	const flags = unix.O_RDWR | unix.O_APPEND | unix.O_NOFOLLOW | unix.O_NONBLOCK | unix.O_CLOEXEC
	fd, err := unix.Openat(int(s.root.Fd()), historyFile, flags, 0)
	if errors.Is(err, unix.ENOENT) {
		created = true
		fd, err = unix.Openat(int(s.root.Fd()), historyFile, flags|unix.O_CREAT|unix.O_EXCL, 0o644)
	}
	if errors.Is(err, unix.ELOOP) {
		return nil, false, untrusted(path, "is a symbolic link")
	}
	if err != nil {
		return nil, false, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	f = os.NewFile(uintptr(fd), path)
	err = checkFile(f)
	if err == nil && created {
		err = f.Chmod(0o644) // whatever the umask says: zdt history needs no root
	}
	if err != nil {
		f.Close()
		return nil, false, err
	}
	return f, created, nil
}

// tail returns the size of f and whether it ends within a line.
func tail(f *os.File) (size int64, torn bool, err error) {
	fi, err := f.Stat()
	if err != nil || fi.Size() == 0 {
		return 0, false, err
	}
	var last [1]byte
	if _, err := f.ReadAt(last[:], fi.Size()-1); err != nil {
		return 0, false, err
	}
	return fi.Size(), last[0] != '\n', nil
}

// History reads the history; it is empty if there is none yet. Lines that
// cannot be understood are counted in Damage and do not hide the others.
func (s *Store) History() (History, error) {
	f, err := openFileAt(s.root, historyFile)
	if errors.Is(err, fs.ErrNotExist) {
		return History{}, nil
	}
	if err != nil {
		return History{}, fmt.Errorf("read history: %w", err)
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return History{}, fmt.Errorf("read history: %w", err)
	}
	if fi.Size() > math.MaxInt32 {
		return History{}, fmt.Errorf("read history: %s has %d bytes: %w", f.Name(), fi.Size(), ErrDamaged)
	}
	// As much as there is now: a line that is being added is not a torn one.
	data := make([]byte, fi.Size())
	n, err := f.ReadAt(data, 0)
	if err != nil && err != io.EOF { // EOF: a writer has just taken back its line
		return History{}, fmt.Errorf("read history: byte %d: %w", n, err)
	}
	return parseHistory(data[:n]), nil
}

func parseHistory(data []byte) History {
	var h History
	for n := 1; len(data) > 0; n++ {
		line, rest, ended := bytes.Cut(data, []byte{'\n'})
		data = rest
		if len(bytes.TrimSpace(line)) == 0 {
			continue
		}
		e, err := parseEntry(line)
		switch {
		case err == nil:
			// Also without its end: only the newline is missing.
			h.Entries = append(h.Entries, e)
		default:
			h.Damage = append(h.Damage, Damage{Line: n, Torn: !ended, Err: err})
		}
	}
	return h
}

// parseEntry accepts newer schemas: fields are only ever added, and an old zdt
// that shows most of a line beats one that shows none.
func parseEntry(line []byte) (Entry, error) {
	var e Entry
	if err := json.Unmarshal(line, &e); err != nil {
		return Entry{}, fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	if e.Schema < 1 || e.TxID == "" {
		return Entry{}, fmt.Errorf("no entry of a history: %w", ErrDamaged)
	}
	return e, nil
}
