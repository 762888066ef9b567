package release

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// Sentinels for states that a caller acts upon. They arrive wrapped.
var (
	// ErrNoCurrent: nothing has been committed yet.
	ErrNoCurrent = errors.New("no current release")
	// ErrNoPrevious: no committed release before the current one is left.
	ErrNoPrevious = errors.New("no earlier committed release")
	// ErrNoRelease: no release of that ID exists.
	ErrNoRelease = errors.New("no such release")
	// ErrNoTxn: no upgrade is open.
	ErrNoTxn = errors.New("no open transaction")
	// ErrBusy: another process changes the set of releases, and was not waited for.
	ErrBusy = errors.New("another process stages or deletes releases")
	// ErrUntrusted: a path can be changed by somebody who must not be able to,
	// or leads through a symbolic link.
	ErrUntrusted = errors.New("not trusted")
	// ErrDamaged: a file of the store cannot be understood, or a release is not
	// what its name says.
	ErrDamaged = errors.New("damaged")
)

// Error is an error with advice. The advice is data, so that only package cmd
// decides how it is shown; get it by errors.As, or through the interface
// { Hint() string }.
type Error struct {
	Err  error
	Help string // what to do next, one sentence without a full stop
}

func (e *Error) Error() string { return e.Err.Error() }

func (e *Error) Unwrap() error { return e.Err }

// Hint returns what the operator can do next.
func (e *Error) Hint() string { return e.Help }

func hint(err error, format string, args ...any) error {
	return &Error{Err: err, Help: fmt.Sprintf(format, args...)}
}

// ChecksumError tells that a file is not the one that was asked for.
type ChecksumError struct {
	Path      string
	Want, Got string // SHA-256, hex
}

func (e *ChecksumError) Error() string {
	return fmt.Sprintf("sha256 of %q is %s, want %s", e.Path, e.Got, e.Want)
}

// Hint returns what the operator can do next.
func (e *ChecksumError) Hint() string {
	return "the file is incomplete or another one; fetch it again, or correct the expected checksum"
}

// SchemaError tells that a record was written by a newer zdt.
type SchemaError struct {
	What       string // "transaction", "release"
	Got, Known int
}

func (e *SchemaError) Error() string {
	return fmt.Sprintf("%s record has schema %d, this zdt knows up to %d", e.What, e.Got, e.Known)
}

// Hint returns what the operator can do next.
func (e *SchemaError) Hint() string {
	return "a newer zdt wrote it; use that version"
}

// withSpaceHint adds advice to errors that say that the disk is full.
func withSpaceHint(err error, dir string) error {
	switch {
	case errors.Is(err, syscall.ENOSPC):
		return hint(err, "the file system of %s is full (or out of inodes, see df -i); zdt prune %s deletes old releases, --dry-run shows which", dir, filepath.Base(dir))
	case errors.Is(err, syscall.EDQUOT):
		return hint(err, "the disk quota for %s is used up; raise it, or delete old releases with zdt prune %s", dir, filepath.Base(dir))
	case errors.Is(err, syscall.EFBIG):
		return hint(err, "the file size limit (ulimit -f, LimitFSIZE=) is too low for a file in %s", dir)
	case errors.Is(err, syscall.EROFS):
		return hint(err, "the file system of %s is mounted read-only", dir)
	}
	return withRightsHint(err)
}

// withRightsHint adds advice to errors that say that somebody else may do this.
func withRightsHint(err error) error {
	if errors.Is(err, fs.ErrPermission) && os.Geteuid() != 0 {
		return hint(err, "run it as root; zdt --user is for services of your own user manager")
	}
	return err
}
