package release

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/zdt-dev/zdt/internal/atomicfile"
)

// stageTree makes a release of an archive or a directory, or finds the one with
// the same content.
func (g *staging) stageTree(ctx context.Context) (Release, error) {
	if g.in.kind == sourceDir {
		if g.Require.Needed() {
			return Release{}, hint(fmt.Errorf("%w (RequireSignature=%s), and a directory cannot be", ErrUnsigned, g.Require), "make a tar of it and sign that")
		}
		return g.copyTree(ctx, nil, nil)
	}
	// Nothing is unpacked before it is what was asked for.
	archive := &Archive{Format: g.in.format, Size: g.in.size}
	var sig *Signature
	if err := g.steps("stage")("hash archive", func() (err error) {
		sig, err = g.verified(ctx, func(f func(io.Reader) error) error {
			if _, err := g.in.f.Seek(0, io.SeekStart); err != nil {
				return err
			}
			archive.SHA256, err = hashFile(ctx, g.in.f, f)
			return err
		})
		return err
	}); err != nil {
		return Release{}, err
	}
	if g.want != "" && archive.SHA256 != g.want {
		return Release{}, &ChecksumError{Path: g.in.path, Want: g.want, Got: archive.SHA256}
	}
	old, err := g.findTree(ctx, func(r Release) bool {
		return r.Archive != nil && r.Archive.SHA256 == archive.SHA256 && r.Tree.Asked == g.Exec
	})
	if err != nil {
		return Release{}, err
	}
	if old.ID != "" {
		return g.foundTree(old, sig)
	}
	if err := g.unsigned(); err != nil {
		return Release{}, err
	}
	return g.copyTree(ctx, archive, sig)
}

// copyTree copies the source, or unpacks the archive, into a new release. Other
// archives, or a directory, may have given the same content before.
func (g *staging) copyTree(ctx context.Context, archive *Archive, sig *Signature) (_ Release, err error) {
	do := g.steps("stage")
	b, err := g.begin()
	if err != nil {
		return Release{}, err
	}
	defer func() { err = b.end(err) }()

	w := newTreeWriter(b.d)
	defer w.close()
	if err := do("copy", func() error { return g.fill(ctx, w, archive) }); err != nil {
		return Release{}, err
	}
	if err := do("source unchanged", g.in.unchanged); err != nil {
		return Release{}, err
	}
	tree, err := g.arrange(b, w.entries)
	if err != nil {
		return Release{}, err
	}
	manifest := encodeManifest(tree.all)
	sum := digest(manifest)
	if archive == nil && g.want != "" && sum != g.want {
		return Release{}, &ChecksumError{Path: g.in.path, Want: g.want, Got: sum}
	}
	if err := do("fsync tree", func() error { return syncTree(ctx, b.d, len(tree.all)) }); err != nil {
		return Release{}, err
	}
	if err := do("settle", func() error { return settleTree(ctx, b.d, tree.main) }); err != nil {
		return Release{}, err
	}
	if err := do("re-hash", func() error {
		got, err := scanTree(ctx, b.d)
		if err == nil && string(encodeManifest(got)) != string(manifest) {
			err = fmt.Errorf("%w: %s", ErrDamaged, differing(manifest, encodeManifest(got)))
		}
		return err
	}); err != nil {
		return Release{}, err
	}
	old, err := g.findTree(ctx, func(r Release) bool { return r.SHA256 == sum })
	if err != nil {
		return Release{}, err
	}
	if old.ID != "" {
		if err := removeAllAt(g.releases, b.tmp); err != nil {
			return Release{}, err
		}
		return g.foundTree(old, sig)
	}
	r := g.describe(sum)
	r.Schema, r.Size, r.Archive, r.Signature = treeSchema, w.size, archive, sig
	r.Tree = &Tree{Exec: tree.main, Asked: g.Exec, Entries: len(tree.all)}
	if w.dropped {
		r.Dropped = []string{"security.capability"}
	}
	if f, err := openMain(b.d, tree.main); err == nil {
		r.Build = readBuild(f)
		f.Close()
	}
	if err := atomicfile.WriteAt(b.d, manifestFile, manifest, 0o444, g.steps("stage: "+manifestFile)); err != nil {
		return Release{}, fmt.Errorf("%s: %w", manifestFile, err)
	}
	return b.publish(r)
}

// fill copies the source, which is a directory if archive is nil.
func (g *staging) fill(ctx context.Context, w *treeWriter, archive *Archive) error {
	defer w.close()
	if archive == nil {
		return g.in.copyFolder(ctx, w)
	}
	sum, err := g.in.unpack(ctx, w)
	if err == nil && sum != archive.SHA256 {
		err = errChanged()
	}
	return err
}

// foundTree is again for a tree.
func (g *staging) foundTree(r Release, sig *Signature) (Release, error) {
	d, err := g.openRelease(g.releases, r.ID)
	if err != nil {
		return Release{}, err
	}
	defer d.Close()
	return g.again(r, d, sig)
}

// arranged is a tree whose main program can be started by the unit.
type arranged struct {
	all  map[string]*entry
	main string
}

// arrange finds the main program and makes it reachable under the name by which
// the unit starts it. An archive whose files all lie in one directory, as in
// web-1.4.3/, loses it: the next version would have another path.
func (g *staging) arrange(b *building, all map[string]*entry) (arranged, error) {
	if len(all) == 0 {
		return arranged{}, errors.New("is empty")
	}
	if dir := soleDir(all); dir != "" && g.in.kind == sourceArchive {
		inner := below(all, dir)
		asked := g.Exec
		if asked == "" {
			asked = g.program
		}
		// Not where --exec, or the unit, names a path with it.
		if _, err := findProgram(all, "", asked); err != nil && len(inner) > 0 {
			for p := range inner {
				if _, err := entryPath(p); err != nil {
					return arranged{}, fmt.Errorf("%q %w", p, err)
				}
			}
			if err := b.strip(dir); err != nil {
				return arranged{}, err
			}
			all = inner
		}
	}
	if err := checkLinks(all); err != nil {
		return arranged{}, err
	}
	main, err := findProgram(all, g.program, g.Exec)
	if err != nil {
		return arranged{}, err
	}
	if all[main].size == 0 {
		return arranged{}, fmt.Errorf("%q, the program, is empty", main)
	}
	if !all[main].exec {
		if err := chmodMain(b.d, main); err != nil {
			return arranged{}, err
		}
		for _, e := range all { // its other names as well
			if e.kind == kindFile && sameFile(b.d, e.path, main) {
				e.exec = true
			}
		}
	}
	reached, _ := resolve(all, g.program)
	switch top := all[g.program]; {
	case top == nil:
		all[g.program] = &entry{path: g.program, kind: kindLink, target: main}
		if err := unix.Symlinkat(main, int(b.d.Fd()), g.program); err != nil {
			return arranged{}, err
		}
	case reached != main:
		return arranged{}, hint(fmt.Errorf("the unit starts %q, and that is there, but is not the program %q", g.program, main), "rename one of them")
	}
	return arranged{all, main}, nil
}

// strip makes the directory dir the release itself.
func (b *building) strip(dir string) error {
	fd := int(b.g.releases.Fd())
	tmp, err := tempDirName()
	if err != nil {
		return err
	}
	return b.g.steps("stage")("strip directory", func() error {
		if err := unix.Renameat(int(b.d.Fd()), dir, fd, tmp); err != nil {
			return err
		}
		old := b.tmp
		d, err := openDirAt(fd, tmp, filepath.Join(b.g.releases.Name(), tmp))
		if err != nil {
			return errors.Join(err, removeAllAt(b.g.releases, tmp))
		}
		b.d.Close()
		b.d, b.tmp, b.at = d, tmp, tmp
		return removeAllAt(b.g.releases, old)
	})
}

func chmodMain(d *os.File, p string) error {
	return unix.Fchmodat(int(d.Fd()), p, programMode, 0)
}

func sameFile(d *os.File, a, b string) bool {
	if a == b {
		return true
	}
	var x, y unix.Stat_t
	return unix.Fstatat(int(d.Fd()), a, &x, unix.AT_SYMLINK_NOFOLLOW) == nil &&
		unix.Fstatat(int(d.Fd()), b, &y, unix.AT_SYMLINK_NOFOLLOW) == nil && x.Dev == y.Dev && x.Ino == y.Ino
}

// manyEntries is where one sync of the file system is cheaper than one of each file.
const manyEntries = 2000

// syncTree makes the n files and directories below d durable. A syncfs(2) also
// writes what others have written and waits for that, so it is only taken for
// trees that would need minutes otherwise. Since Linux 5.8 it tells of failed writes.
func syncTree(ctx context.Context, d *os.File, n int) error {
	if n > manyEntries {
		return retry(func() error { return unix.Syncfs(int(d.Fd())) })
	}
	return syncEach(ctx, d)
}

func syncEach(ctx context.Context, d *os.File) error {
	list, err := openDirAt(int(d.Fd()), ".", d.Name()) // with an offset of its own
	if err != nil {
		return err
	}
	defer list.Close()
	entries, err := list.ReadDir(-1)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := ctx.Err(); err != nil {
			return err
		}
		if e.Type()&fs.ModeSymlink != 0 {
			continue // is in its directory
		}
		// What a reader may open can be synced.
		fd, err := unix.Openat(int(d.Fd()), e.Name(), unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			return &fs.PathError{Op: "open", Path: filepath.Join(d.Name(), e.Name()), Err: err}
		}
		f := os.NewFile(uintptr(fd), filepath.Join(d.Name(), e.Name()))
		if e.IsDir() {
			err = syncEach(ctx, f)
		} else {
			err = f.Sync()
		}
		f.Close()
		if err != nil {
			return err
		}
	}
	return d.Sync()
}

// settleTree returns when the main program can be executed, as settle does.
func settleTree(ctx context.Context, d *os.File, main string) error {
	syscall.ForkLock.Lock()
	syscall.ForkLock.Unlock() //nolint:staticcheck // empty on purpose
	f, err := openMain(d, main)
	if err != nil {
		return err
	}
	defer f.Close()
	return lease(ctx, f)
}

// findTree returns the first sound release for which is says so, or a zero Release.
func (g *staging) findTree(ctx context.Context, is func(Release) bool) (Release, error) {
	list, err := g.list(g.releases)
	if err != nil {
		return Release{}, err
	}
	for _, r := range list {
		if r.Damage == nil && r.Tree != nil && r.Program == g.program && is(r) && g.verify(ctx, g.releases, r) == nil {
			return r, nil
		}
	}
	return Release{}, ctx.Err()
}
