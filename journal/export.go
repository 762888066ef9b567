package journal

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"iter"
	"math"
	"strconv"
	"strings"
	"time"
)

// Bounds of one entry read. Anybody can log fields of hundreds of megabytes
// (core dumps once did); what exceeds the bounds is read over, not kept.
const (
	maxReadValue  = 64 << 10 // one value
	maxReadEntry  = 1 << 20  // names and values of one entry
	maxReadFields = 1024     // fields of one entry
)

// ErrFormat: the stream is not in the journal export format. Nothing more can
// be read from it, since there is no way to find the next entry.
var ErrFormat = errors.New("not the journal export format")

// Entry is one entry of the journal.
type Entry struct {
	Cursor   string    // names the entry's place; opaque
	Realtime time.Time // when journald received it; zero if the stream does not say
	// Monotonic is the same by CLOCK_MONOTONIC of that boot: the distance of two entries, whatever was done to the clock.
	Monotonic time.Duration
	Fields    []Field // in the stream's order, without the address fields (two leading underscores)

	// Cut reports that the entry was larger than a reader keeps, so that
	// values were shortened or fields left out.
	Cut bool
}

// Get returns the value of the first field called name, or "".
func (e Entry) Get(name string) string {
	for _, f := range e.Fields {
		if f.Name == name {
			return f.Value
		}
	}
	return ""
}

// All returns all values of a field; clients may repeat one.
func (e Entry) All(name string) []string {
	var values []string
	for _, f := range e.Fields {
		if f.Name == name {
			values = append(values, f.Value)
		}
	}
	return values
}

// one returns the value of a field that is there exactly once.
func (e Entry) one(name string) (string, bool) {
	values := e.All(name)
	if len(values) != 1 {
		return "", false
	}
	return values[0], true
}

// Reader parses the journal export format, as written by journalctl -o
// export, without trusting any length in it.
type Reader struct {
	r   *bufio.Reader
	err error
}

// NewReader returns a Reader of r, which stays the caller's.
func NewReader(r io.Reader) *Reader { return &Reader{r: bufio.NewReaderSize(r, 32<<10)} }

// Next returns the next entry. The error is io.EOF at an orderly end,
// io.ErrUnexpectedEOF when the stream ended within an entry (its beginning is
// dropped: half of an entry may lack the field that matters), wraps ErrFormat
// for what is not the format, and is the underlying reader's otherwise. It
// sticks.
func (r *Reader) Next() (Entry, error) {
	if r.err != nil {
		return Entry{}, r.err
	}
	e, err := r.next()
	if err != nil {
		r.err = err
		return Entry{}, err
	}
	return e, nil
}

// Entries returns the remaining entries. The last pair has an error unless
// the stream ended in order.
func (r *Reader) Entries() iter.Seq2[Entry, error] {
	return func(yield func(Entry, error) bool) {
		for {
			e, err := r.Next()
			if err == io.EOF || !yield(e, err) || err != nil {
				return
			}
		}
	}
}

func (r *Reader) next() (Entry, error) {
	var e Entry
	size, began := 0, false
	for {
		line, long, err := r.line()
		if err != nil {
			if err == io.EOF && (began || line != "") {
				err = io.ErrUnexpectedEOF
			}
			return e, err
		}
		if line == "" {
			if began {
				return e, nil
			}
			continue // more than one blank line between entries is legal
		}
		began = true
		name, value, text := strings.Cut(line, "=")
		if !readableName(name) {
			return e, fmt.Errorf("%w: field name %.80q", ErrFormat, name)
		}
		if !text {
			if value, long, err = r.binary(); err != nil {
				return e, err
			}
		}
		if len(value) > maxReadValue {
			value, long = value[:maxReadValue], true
		}
		if strings.HasPrefix(name, "__") {
			e.address(name, value)
			continue
		}
		size += len(name) + len(value)
		if e.Cut = e.Cut || long; size > maxReadEntry || len(e.Fields) >= maxReadFields {
			e.Cut = true
			continue
		}
		e.Fields = append(e.Fields, Field{strings.Clone(name), value})
	}
}

// address takes the fields that say where an entry is and not what it says.
func (e *Entry) address(name, value string) {
	switch name {
	case "__CURSOR":
		e.Cursor = value
	case "__REALTIME_TIMESTAMP":
		if us, err := strconv.ParseInt(value, 10, 64); err == nil && us >= 0 {
			e.Realtime = time.UnixMicro(us)
		}
	case "__MONOTONIC_TIMESTAMP":
		if us, err := strconv.ParseInt(value, 10, 64); err == nil && us >= 0 && us < math.MaxInt64/1000 {
			e.Monotonic = time.Duration(us) * time.Microsecond
		}
	}
}

// line reads up to a newline and returns it without. Of a longer line than
// any value it keeps the beginning and reports it as long.
func (r *Reader) line() (s string, long bool, err error) {
	var b []byte
	for {
		part, err := r.r.ReadSlice('\n')
		if room := maxName*2 + 1 + maxReadValue - len(b); len(part) > room {
			part, long = part[:room], true
		}
		b = append(b, part...)
		if err == bufio.ErrBufferFull {
			continue
		}
		if err != nil {
			return string(b), long, err
		}
		if n := len(b); n > 0 && b[n-1] == '\n' {
			b = b[:n-1]
		}
		return string(b), long, nil
	}
}

// binary reads the length, the value and the newline behind it.
func (r *Reader) binary() (value string, long bool, err error) {
	var head [8]byte
	if _, err := io.ReadFull(r.r, head[:]); err != nil {
		return "", false, midEntry(err)
	}
	size := binary.LittleEndian.Uint64(head[:])
	if size > 1<<40 { // journald's own limit is 768 MiB
		return "", false, fmt.Errorf("%w: a value of %d bytes", ErrFormat, size)
	}
	keep := min(size, maxReadValue)
	var b strings.Builder // grows with what arrives, not with what is promised
	if _, err := io.CopyN(&b, r.r, int64(keep)); err != nil {
		return "", false, midEntry(err)
	}
	if _, err := io.CopyN(io.Discard, r.r, int64(size-keep)); err != nil {
		return "", false, midEntry(err)
	}
	end, err := r.r.ReadByte()
	if err != nil {
		return "", false, midEntry(err)
	}
	if end != '\n' {
		return "", false, fmt.Errorf("%w: no newline after a value of %d bytes", ErrFormat, size)
	}
	return b.String(), size > keep, nil
}

func midEntry(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// readableName accepts what journald stores: protected names included, a
// little longer than it takes from clients.
func readableName(name string) bool {
	if name == "" || len(name) > maxName*2 || name[0] >= '0' && name[0] <= '9' {
		return false
	}
	for i := 0; i < len(name); i++ {
		if c := name[i]; !(c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '_') {
			return false
		}
	}
	return true
}
