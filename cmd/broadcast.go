package cmd

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/zdt-dev/zdt/release"
	"github.com/zdt-dev/zdt/upgrade"
)

// A broadcast is the file in which the zdt that works on a service tells others how far it is: the lines of -o ndjson,
// behind one that says who writes. It is below /run and for root alone, ends with the report, and goes when the
// next transaction of the service begins. Nothing depends on it but zdt wait and zdt attach.
type broadcast struct {
	file *os.File
	left int // bytes for what a phase says on the way
}

// broadcastHead is the first line of a broadcast.
type broadcastHead struct {
	Schema  string       `json:"schema"` // zdt.running/1
	Service string       `json:"service"`
	TxID    string       `json:"txid"`
	Runner  release.Proc `json:"runner"`
}

// broadcastMost bounds what is told of phases that go on: a bake of a day has a lot to say.
const broadcastMost = 256 << 10

// Broadcasts is the directory of the broadcasts; the dot keeps it apart from services.
func (p Paths) Broadcasts() string { return filepath.Join(p.Runtime, ".updates") }

// Broadcast is the file of one transaction.
func (p Paths) Broadcast(service, txid string) string {
	return filepath.Join(p.Broadcasts(), service+"."+txid)
}

// newBroadcast opens the broadcast of this process. Without one (no space, no rights) nobody can watch, and all else goes on.
func newBroadcast(p Paths, service, txid string) *broadcast {
	if p.Root != "" || txid == "" {
		return nil
	}
	runner, err := release.ProcOf(os.Getpid())
	if err != nil || os.MkdirAll(filepath.Dir(p.Broadcasts()), 0o755) != nil {
		return nil
	}
	if err := os.Mkdir(p.Broadcasts(), 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return nil
	}
	// A service may own a directory beside it, but not this one's parent.
	fi, err := os.Lstat(p.Broadcasts())
	if err != nil || !fi.IsDir() || fi.Mode().Perm()&0o022 != 0 || fi.Sys().(*syscall.Stat_t).Uid != uint32(os.Geteuid()) {
		return nil
	}
	sweepBroadcasts(p, service)
	file, err := os.OpenFile(p.Broadcast(service, txid), os.O_WRONLY|os.O_CREATE|os.O_EXCL|os.O_APPEND, 0o600)
	if err != nil {
		return nil
	}
	b := &broadcast{file: file, left: broadcastMost}
	b.line(broadcastHead{"zdt.running/1", service, txid, runner})
	return b
}

// sweepBroadcasts removes those of the service whose writers are gone.
func sweepBroadcasts(p Paths, service string) {
	files, _ := filepath.Glob(p.Broadcast(escapeGlob(service), "*"))
	for _, path := range files {
		if !release.ValidTxID(strings.TrimPrefix(filepath.Base(path), service+".")) {
			continue // of a service whose name goes on with a dot
		}
		r, err := openBroadcast(path)
		if err != nil {
			continue // just created, and nothing in it yet
		}
		if !r.head.Runner.Alive() {
			os.Remove(path)
		}
		r.close()
	}
}

// escapeGlob makes a pattern of s that matches s alone.
func escapeGlob(s string) string {
	return strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`).Replace(s)
}

func (b *broadcast) update(u upgrade.Update) {
	if u.State == upgrade.Running && b.left <= 0 {
		return
	}
	b.left -= b.line(updateDoc{"zdt.update/1", u})
}
func (b *broadcast) tick(time.Time) {}
func (b *broadcast) done()          {}

// end writes the last line and closes the file.
func (b *broadcast) end(doc any) {
	b.line(doc)
	b.file.Close()
}

// line writes one line at once, and returns its length: a reader that sees half of it reads on later.
func (b *broadcast) line(doc any) int {
	var buf bytes.Buffer
	if printJSON(&buf, doc, false) != nil {
		return 0
	}
	n, _ := b.file.Write(buf.Bytes())
	return n
}

// broadcastReader reads a broadcast while it is written.
type broadcastReader struct {
	file *os.File
	head broadcastHead
	rest []byte // of a line that has not ended
}

// broadcastLineMost bounds a line: a report quotes the candidate's log.
const broadcastLineMost = 2 << 20

// openBroadcast opens a broadcast. The error is fs.ErrNotExist where there is none, or none yet.
func openBroadcast(path string) (*broadcastReader, error) {
	file, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	r := &broadcastReader{file: file}
	line, err := r.next()
	if err == nil {
		err = decodeLine(line, "zdt.running/1", &r.head)
	}
	if err != nil {
		file.Close()
		if errors.Is(err, io.EOF) {
			err = os.ErrNotExist
		}
		return nil, err
	}
	return r, nil
}

func (r *broadcastReader) close() { r.file.Close() }

// next is the next whole line; io.EOF means that there is none at present.
func (r *broadcastReader) next() ([]byte, error) {
	for {
		if line, rest, ok := bytes.Cut(r.rest, []byte{'\n'}); ok {
			r.rest = rest
			return line, nil
		}
		if len(r.rest) > broadcastLineMost {
			return nil, errors.New("a line without end")
		}
		buf := make([]byte, 32<<10)
		n, err := r.file.Read(buf)
		r.rest = append(r.rest, buf[:n]...)
		if n == 0 {
			return nil, err
		}
	}
}
