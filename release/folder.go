package release

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"
)

// copyFolder copies what is in the directory in to w. Nothing is reached
// through a link, so whoever can write there cannot make it read anything else.
func (in *source) copyFolder(ctx context.Context, w *treeWriter) error {
	return copyDir(ctx, w, in.f, "", 0)
}

func copyDir(ctx context.Context, w *treeWriter, d *os.File, prefix string, depth int) error {
	var before, after unix.Stat_t
	if err := unix.Fstat(int(d.Fd()), &before); err != nil {
		return err
	}
	if depth > maxDepth {
		return fmt.Errorf("%s lies more than %d directories deep", strconv.Quote(prefix), maxDepth)
	}
	list, err := openDirAt(int(d.Fd()), ".", d.Name()) // with an offset of its own
	if err != nil {
		return err
	}
	defer list.Close()
	found, err := list.ReadDir(-1)
	if err != nil {
		return err
	}
	slices.SortFunc(found, func(a, b fs.DirEntry) int { // so that the same error is told again
		if a.Name() < b.Name() {
			return -1
		}
		return 1
	})
	for _, f := range found {
		if err := ctx.Err(); err != nil {
			return err
		}
		p, err := entryPath(path.Join(prefix, f.Name()))
		if err == nil {
			err = copyEntry(ctx, w, d, f.Name(), p, depth)
		}
		if err != nil {
			var known *entryError
			if !errors.As(err, &known) {
				err = &entryError{path.Join(prefix, f.Name()), err}
			}
			return err
		}
	}
	if err := unix.Fstat(int(d.Fd()), &after); err != nil {
		return err
	}
	if before.Mtim != after.Mtim || before.Ctim != after.Ctim {
		return errChanged()
	}
	return nil
}

// entryError names the file once, however deep it is.
type entryError struct {
	path string
	err  error
}

func (e *entryError) Error() string {
	return strconv.Quote(printableText(e.path, maxComment)) + ": " + e.err.Error()
}
func (e *entryError) Unwrap() error { return e.err }

func copyEntry(ctx context.Context, w *treeWriter, d *os.File, name, p string, depth int) error {
	var st unix.Stat_t
	if err := unix.Fstatat(int(d.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		sub, err := openDirAt(int(d.Fd()), name, filepath.Join(d.Name(), name))
		if err != nil {
			return err
		}
		defer sub.Close()
		if err := w.dir(p); err != nil {
			return err
		}
		return copyDir(ctx, w, sub, p, depth+1)
	case unix.S_IFLNK:
		buf := make([]byte, unix.PathMax)
		n, err := unix.Readlinkat(int(d.Fd()), name, buf)
		if err != nil {
			return err
		}
		return w.link(p, string(buf[:n]))
	case unix.S_IFREG:
		in, err := openSourceAt(ctx, int(d.Fd()), name, unix.O_NOFOLLOW)
		if err != nil {
			return err
		}
		defer in.Close()
		if in.kind != sourceFile { // replaced meanwhile
			return errChanged()
		}
		if in.st.Mode&0o6000 != 0 {
			return errSetuid(int64(in.st.Mode))
		}
		w.dropped = w.dropped || len(in.dropped()) > 0
		if _, err := in.f.Seek(0, io.SeekStart); err != nil {
			return err
		}
		if err := w.file(ctx, p, in.st.Mode&0o111 != 0, in.f, in.size); err != nil {
			return err
		}
		return in.unchanged()
	}
	return errors.New("is a device, a pipe or a socket; only files, directories and links are possible")
}
