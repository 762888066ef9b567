package release

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// A treeWriter makes the files of a release below a directory that nobody else
// can write to. It never goes through a link: what an archive calls a
// directory must be one that the writer has made.
type treeWriter struct {
	root    *os.File
	entries map[string]*entry
	size    int64
	dropped bool // there were file capabilities
	buf     []byte
	hash    hash.Hash

	parent     *os.File // the directory of the last entry, kept open
	parentPath string
}

func newTreeWriter(root *os.File) *treeWriter {
	return &treeWriter{root: root, entries: make(map[string]*entry), buf: make([]byte, copyChunk), hash: sha256.New()}
}

// close gives back the descriptor of the last directory.
func (w *treeWriter) close() {
	if w.parent != nil {
		w.parent.Close()
		w.parent = nil
	}
}

// add notes an entry that does not exist yet, and the directories above it.
func (w *treeWriter) add(e *entry) error {
	if old := w.entries[e.path]; old != nil {
		return errors.New("is there twice")
	}
	if len(w.entries) >= maxEntries {
		return fmt.Errorf("is one too many: at most %d files and directories are possible", maxEntries)
	}
	if dir := path.Dir(e.path); dir != "." {
		if err := w.dir(dir); err != nil {
			return err
		}
	}
	if err := w.enter(path.Dir(e.path)); err != nil {
		return err
	}
	w.entries[e.path] = e
	return nil
}

// dir makes a directory and those above it, unless they are there.
func (w *treeWriter) dir(p string) error {
	if old := w.entries[p]; old != nil {
		if old.kind != kindDir {
			return fmt.Errorf("needs %q to be a directory, and it is none", p)
		}
		return nil
	}
	if err := w.add(&entry{path: p, kind: kindDir}); err != nil {
		return err
	}
	name := path.Base(p)
	if err := unix.Mkdirat(int(w.parent.Fd()), name, 0o700); err != nil {
		return err
	}
	d, err := openDirAt(int(w.parent.Fd()), name, p)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Chmod(0o755) // whatever the umask says
}

// enter opens the directory p, "." for the root.
func (w *treeWriter) enter(p string) error {
	if w.parent != nil && w.parentPath == p {
		return nil
	}
	w.close()
	at, err := openDirAt(int(w.root.Fd()), ".", w.root.Name())
	if err != nil {
		return err
	}
	for _, name := range splitPath(p) {
		next, err := openDirAt(int(at.Fd()), name, filepath.Join(at.Name(), name))
		at.Close()
		if err != nil {
			return err
		}
		at = next
	}
	w.parent, w.parentPath = at, p
	return nil
}

// file makes a file of size bytes of r.
func (w *treeWriter) file(ctx context.Context, p string, exec bool, r io.Reader, size int64) error {
	if size < 0 || size > maxTreeSize-w.size {
		return fmt.Errorf("is too large: a release has at most %d GiB", maxTreeSize>>30)
	}
	e := &entry{path: p, kind: kindFile, exec: exec, size: size}
	if err := w.add(e); err != nil {
		return err
	}
	w.size += size
	fd, err := unix.Openat(int(w.parent.Fd()), path.Base(p), unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	out := os.NewFile(uintptr(fd), p)
	w.hash.Reset()
	err = w.copy(ctx, out, r, size)
	if err == nil {
		err = out.Chmod(fs.FileMode(fileMode(exec)))
	}
	if err == nil {
		// Begin with the writing, so that the blocks of all files are allocated in
		// few transactions of the file system and not one for each fsync.
		_ = unix.SyncFileRange(fd, 0, 0, unix.SYNC_FILE_RANGE_WRITE)
	}
	if closeErr := out.Close(); err == nil {
		err = closeErr
	}
	e.sum = hex.EncodeToString(w.hash.Sum(nil))
	return err
}

func (w *treeWriter) copy(ctx context.Context, out io.Writer, r io.Reader, size int64) error {
	for left := size; left > 0; {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := io.ReadFull(r, w.buf[:min(left, int64(len(w.buf)))])
		if err == io.EOF || err == io.ErrUnexpectedEOF {
			return fmt.Errorf("ends after %d of %d bytes: %w", size-left+int64(n), size, io.ErrUnexpectedEOF)
		}
		if err != nil {
			return err
		}
		w.hash.Write(w.buf[:n])
		if _, err := out.Write(w.buf[:n]); err != nil {
			return err
		}
		left -= int64(n)
	}
	return nil
}

func (w *treeWriter) link(p, target string) error {
	if err := checkTarget(target); err != nil {
		return err
	}
	if err := w.add(&entry{path: p, kind: kindLink, target: target}); err != nil {
		return err
	}
	return unix.Symlinkat(target, int(w.parent.Fd()), path.Base(p))
}

// hardLink makes another name of a file that is there already.
func (w *treeWriter) hardLink(p, to string) error {
	e := w.entries[to]
	if e == nil || e.kind != kindFile {
		return fmt.Errorf("is another name of %q, which is no file before it", to)
	}
	c := *e
	c.path = p
	if err := w.add(&c); err != nil {
		return err
	}
	// From the root: no element of a path in entries is a link.
	return unix.Linkat(int(w.root.Fd()), to, int(w.parent.Fd()), path.Base(p), 0)
}

// scanTree reads what is below the directory of a release: every file, and
// nothing through links. What is not as staging makes it is ErrDamaged or
// ErrUntrusted. The names the store uses itself are left out at the top.
func scanTree(ctx context.Context, d *os.File) (map[string]*entry, error) {
	s := treeScanner{ctx: ctx, entries: make(map[string]*entry), buf: make([]byte, copyChunk), hash: sha256.New()}
	if err := s.scan(d, "", 0); err != nil {
		return nil, err
	}
	return s.entries, nil
}

type treeScanner struct {
	ctx     context.Context
	entries map[string]*entry
	buf     []byte
	hash    hash.Hash
}

func (s *treeScanner) scan(d *os.File, prefix string, depth int) error {
	if depth > maxDepth {
		return fmt.Errorf("%s lies too deep: %w", d.Name(), ErrDamaged)
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
	for _, f := range found {
		name := f.Name()
		if prefix == "" && isReserved(name) {
			continue
		}
		if len(s.entries) > maxEntries {
			return fmt.Errorf("%s has too many files: %w", d.Name(), ErrDamaged)
		}
		p := path.Join(prefix, name)
		switch {
		case f.IsDir():
			sub, err := openDirAt(int(d.Fd()), name, filepath.Join(d.Name(), name))
			if sub, err = checkedDir(sub, filepath.Join(d.Name(), name), err); err != nil {
				return err
			}
			s.entries[p] = &entry{path: p, kind: kindDir}
			err = s.scan(sub, p, depth+1)
			sub.Close()
			if err != nil {
				return err
			}
		case f.Type()&fs.ModeSymlink != 0:
			buf := make([]byte, unix.PathMax)
			n, err := unix.Readlinkat(int(d.Fd()), name, buf)
			if err != nil {
				return &fs.PathError{Op: "read link", Path: filepath.Join(d.Name(), name), Err: err}
			}
			s.entries[p] = &entry{path: p, kind: kindLink, target: string(buf[:n])}
		default:
			if err := s.file(d, name, p); err != nil {
				return err
			}
		}
	}
	return nil
}

func (s *treeScanner) file(d *os.File, name, p string) error {
	f, err := openFileAt(d, name)
	if err != nil {
		return err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return err
	}
	e := &entry{path: p, kind: kindFile, exec: fi.Mode().Perm() == programMode, size: fi.Size()}
	if got := fi.Mode().Perm(); uint32(got) != fileMode(e.exec) {
		return fmt.Errorf("%s has mode %04o: %w", f.Name(), got, ErrDamaged)
	}
	s.hash.Reset()
	for {
		if err := s.ctx.Err(); err != nil {
			return err
		}
		n, err := f.Read(s.buf)
		s.hash.Write(s.buf[:n])
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
	}
	e.sum = hex.EncodeToString(s.hash.Sum(nil))
	s.entries[p] = e
	return nil
}

// verifyTree tells whether the directory of a release still has the content sum.
func verifyTree(ctx context.Context, d *os.File, sum string) error {
	entries, err := scanTree(ctx, d)
	if err != nil {
		return err
	}
	got := encodeManifest(entries)
	if digest(got) == sum {
		return nil
	}
	why := &ChecksumError{Path: d.Name(), Want: sum, Got: digest(got)}
	if want, err := readManifest(d); err == nil && digest(want) == sum {
		return fmt.Errorf("%w: %s: %w", ErrDamaged, differing(want, got), why)
	}
	return fmt.Errorf("%w: %w", ErrDamaged, why)
}

// readManifest reads the manifest beside the record.
func readManifest(d *os.File) ([]byte, error) {
	f, err := openFileAt(d, manifestFile)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, maxEntries*(maxPath+maxTarget)))
}

// openMain opens the main program of a release that is a directory. The path
// has no links; d belongs to root or the caller, as all that is in it.
func openMain(d *os.File, p string) (*os.File, error) {
	dir, name := path.Split(p)
	at := d
	for _, elem := range splitPath(dir) {
		next, err := openDirAt(int(at.Fd()), elem, filepath.Join(at.Name(), elem))
		next, err = checkedDir(next, filepath.Join(at.Name(), elem), err)
		if at != d {
			at.Close()
		}
		if errors.Is(err, fs.ErrNotExist) {
			err = fmt.Errorf("%w: %w", ErrDamaged, err)
		}
		if err != nil {
			return nil, err
		}
		at = next
	}
	if at != d {
		defer at.Close()
	}
	return openProgram(at, name)
}

// checkMain tells whether the name by which the unit starts a release that is a
// directory leads to its main program.
func checkMain(d *os.File, r Release) error {
	f, err := openMain(d, r.Tree.Exec)
	if err != nil {
		return err
	}
	defer f.Close()
	var want, got unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &want); err != nil {
		return err
	}
	if err := unix.Fstatat(int(d.Fd()), r.Program, &got, 0); err != nil {
		if errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("%s is not there: %w", filepath.Join(d.Name(), r.Program), ErrDamaged)
		}
		return &fs.PathError{Op: "stat", Path: filepath.Join(d.Name(), r.Program), Err: err}
	}
	if want.Dev != got.Dev || want.Ino != got.Ino {
		return fmt.Errorf("%s is not %s: %w", filepath.Join(d.Name(), r.Program), strings.TrimPrefix(f.Name(), d.Name()+"/"), ErrDamaged)
	}
	return nil
}
