package operators

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// NewID is a name for a request that nobody can guess.
func NewID() (string, error) {
	var b [16]byte
	_, err := rand.Read(b[:])
	return hex.EncodeToString(b[:]), err
}

// ValidID tells whether s can be the ID of a request. It is safe as part of a file name.
func ValidID(s string) bool {
	if len(s) != 32 {
		return false
	}
	for _, c := range []byte(s) {
		if (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}

// A Post is the operator's side: what one user puts into the incoming directory, and takes back.
type Post struct {
	ID  string
	dir string // of the service's operators
	own []string
}

// NewPost begins to post to the directory at path. Withdraw ends it.
func NewPost(path string) (*Post, error) {
	id, err := NewID()
	return &Post{ID: id, dir: path}, err
}

// MayPost returns nil if this process may ask something of the operators' directory at path. The error is fs.ErrNotExist if
// the service has no operators, and fs.ErrPermission if the caller is not one.
func MayPost(path string) error {
	at := filepath.Join(path, incoming)
	if err := unix.Faccessat(unix.AT_FDCWD, at, unix.W_OK|unix.X_OK, unix.AT_EACCESS); err != nil {
		return &fs.PathError{Op: "write to", Path: at, Err: err}
	}
	return nil
}

// Answer is the path at which the request is answered.
func (p *Post) Answer() string { return filepath.Join(p.dir, answers, p.ID+answerSuffix) }

// Program copies a file for the request and returns its SHA-256, hex.
func (p *Post) Program(ctx context.Context, file string) (sum string, err error) {
	return p.copy(ctx, file, p.ID+programSuffix)
}

// Signature copies the detached signature for the request.
func (p *Post) Signature(ctx context.Context, file string) error {
	_, err := p.copy(ctx, file, p.ID+signatureSuffix)
	return err
}

func (p *Post) copy(ctx context.Context, file, name string) (sum string, err error) {
	in, err := os.OpenFile(file, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return "", err
	}
	defer in.Close()
	before, err := in.Stat()
	switch {
	case err != nil:
		return "", err
	case before.IsDir():
		return "", fmt.Errorf("%s is a directory: an operator gives a file, or a tar of the directory", file)
	case !before.Mode().IsRegular():
		return "", fmt.Errorf("%s is not a regular file", file)
	case before.Size() > MaxProgram:
		return "", fmt.Errorf("%s has %d bytes, at most %d are taken", file, before.Size(), int64(MaxProgram))
	}
	out, err := p.create(name)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	h := sha256.New()
	if _, err := io.Copy(io.MultiWriter(out, h), ctxReader{ctx, in}); err != nil {
		return "", err
	}
	if after, err := in.Stat(); err != nil || after.Size() != before.Size() || !after.ModTime().Equal(before.ModTime()) {
		return "", errors.Join(err, fmt.Errorf("%s changed while it was copied", file))
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// create makes a file that nobody else can write to, whatever the umask says.
func (p *Post) create(name string) (*os.File, error) {
	path := filepath.Join(p.dir, incoming, name)
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	p.own = append(p.own, path)
	return f, nil
}

// Send puts the request there.
func (p *Post) Send(r Request) error {
	data, err := r.Encode()
	if err != nil {
		return err
	}
	f, err := p.create(p.ID + draftSuffix)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	// Whole or not at all: a request is looked for at any time.
	path := filepath.Join(p.dir, incoming, p.ID+requestSuffix)
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	p.own = append(p.own, path)
	return nil
}

// Again prepares for another Send of what was answered with no more than "busy", under another ID.
func (p *Post) Again() error {
	id, err := NewID()
	if err != nil {
		return err
	}
	for _, suffix := range []string{programSuffix, signatureSuffix} {
		to := filepath.Join(p.dir, incoming, id+suffix)
		err := os.Rename(filepath.Join(p.dir, incoming, p.ID+suffix), to)
		if err == nil {
			p.own = append(p.own, to)
		} else if !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	p.ID = id
	return nil
}

// Recall takes the request back; false: it was taken already.
func (p *Post) Recall() bool {
	return os.Remove(filepath.Join(p.dir, incoming, p.ID+requestSuffix)) == nil
}

// Withdraw removes what is left of it.
func (p *Post) Withdraw() {
	for _, path := range p.own {
		os.Remove(path) // most of it was taken
	}
}
