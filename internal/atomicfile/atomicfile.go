// Package atomicfile replaces a file so that a reader, a crash or a power cut
// sees either the whole old content or the whole new content.
//
// The order is the one that POSIX file systems need: write a temporary file in
// the same directory, fsync it (otherwise the rename may reach the disk before
// the data does), rename it over the old name, fsync the directory (otherwise
// the rename itself may be lost).
//
// A crash can leave a temporary file behind, named as IsTemp recognises. Its
// removal is left to the owner of the directory, who knows when nobody writes.
package atomicfile

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// A Step runs one labelled side effect. It exists so that a test can make
// exactly one of them fail, or crash the process in front of it.
type Step func(label string, f func() error) error

// Run is the Step used outside of tests: it runs f and puts the label in front
// of its error.
func Run(label string, f func() error) error {
	if err := f(); err != nil {
		return fmt.Errorf("%s: %w", label, err)
	}
	return nil
}

const (
	tempPrefix = "."
	tempSuffix = ".tmp"
)

// Write replaces the file at path. The mode is set whatever the umask says.
// The directory must exist and must not be writable for anybody less trusted
// than the caller; its path is resolved as open(2) does.
func Write(path string, data []byte, perm os.FileMode) error {
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer dir.Close()
	return WriteAt(dir, filepath.Base(path), data, perm, Run)
}

// WriteAt replaces the file name in the open directory dir, which stays the
// caller's. The name must be a single path element. On error the old content
// is in place and no temporary file is left, with one exception: when only the
// last step, "fsync directory", fails, the new content is visible but may not
// survive a power cut. Writing it again is then the remedy.
func WriteAt(dir *os.File, name string, data []byte, perm os.FileMode, step Step) (err error) {
	if !IsName(name) {
		return fmt.Errorf("%q is not a file name", name)
	}
	tmp, err := TempName(name)
	if err != nil {
		return err
	}
	dfd := int(dir.Fd())

	var f *os.File
	if err := step("create", func() error {
		// O_EXCL: the name is ours, so never write into what somebody put there.
		fd, err := unix.Openat(dfd, tmp, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
		if err != nil {
			return err
		}
		f = os.NewFile(uintptr(fd), filepath.Join(dir.Name(), tmp))
		return nil
	}); err != nil {
		return err
	}
	renamed := false
	defer func() {
		if err != nil && !renamed {
			if rmErr := unix.Unlinkat(dfd, tmp, 0); rmErr != nil {
				err = errors.Join(err, fmt.Errorf("remove %s: %w", tmp, rmErr))
			}
		}
	}()

	err = step("write", func() error { _, err := f.Write(data); return err })
	if err == nil {
		err = step("chmod", func() error { return f.Chmod(perm) })
	}
	if err == nil {
		err = step("fsync", f.Sync)
	}
	// Some file systems (NFS, quotas) report a failed write only here.
	if closeErr := f.Close(); err == nil && closeErr != nil {
		err = fmt.Errorf("close: %w", closeErr)
	}
	if err != nil {
		return err
	}
	if err := step("rename", func() error { return unix.Renameat(dfd, tmp, dfd, name) }); err != nil {
		return err
	}
	renamed = true
	return step("fsync directory", dir.Sync)
}

// TempName returns a fresh temporary name for a later rename to name.
func TempName(name string) (string, error) {
	var b [8]byte
	if _, err := rand.Read(b[:]); err != nil {
		return "", err
	}
	return tempPrefix + name + "." + hex.EncodeToString(b[:]) + tempSuffix, nil
}

// IsTemp tells whether file is a temporary name that TempName made for name.
func IsTemp(file, name string) bool {
	rest, ok := strings.CutPrefix(file, tempPrefix+name+".")
	if !ok {
		return false
	}
	id, ok := strings.CutSuffix(rest, tempSuffix)
	if !ok || len(id) != 16 {
		return false
	}
	_, err := hex.DecodeString(id)
	return err == nil
}

// IsName tells whether s is a single path element that names an entry of a
// directory, so that it cannot lead out of it.
func IsName(s string) bool {
	return s != "" && s != "." && s != ".." && !strings.ContainsAny(s, "/\x00")
}
