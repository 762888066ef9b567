package release

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/zdt-dev/zdt/internal/atomicfile"
)

const (
	releasesDir = "releases"
	currentLink = "current"
	recordFile  = "release.json"
	// manifestFile lists the files of a release that is a whole directory.
	manifestFile = "release.manifest"
	lockFile     = ".lock"
)

// Options configure a Store.
type Options struct {
	// Program is the name under which a release holds its program: the base
	// name in ExecStart=, so that current/<Program> always exists whatever the
	// operator's file was called. Only Stage needs it.
	Program string
}

// A Store holds the releases and the records of one service. Its methods may be
// called from several goroutines and several processes; which of them need the
// service's lock says the package comment.
type Store struct {
	dir     string // absolute, as given
	program string
	root    *os.File // dir itself

	// The edge to the outside, replaced by tests only.
	step atomicfile.Step
	now  func() time.Time
}

// Open opens the store in dir, an absolute path such as /var/lib/zdt/NAME.
// The caller must Close it. If there is none the error is fs.ErrNotExist, if
// somebody else could have changed it ErrUntrusted.
func Open(dir string, o Options) (*Store, error) { return open(dir, o, false) }

// Create opens the store in dir and makes what is missing of it.
func Create(dir string, o Options) (*Store, error) { return open(dir, o, true) }

func open(dir string, o Options, create bool) (*Store, error) {
	if o.Program != "" {
		if err := checkProgram(o.Program); err != nil {
			return nil, err
		}
	}
	root, err := openTrusted(dir, create)
	if err != nil {
		return nil, fmt.Errorf("open release store %s: %w", dir, withSpaceHint(err, dir))
	}
	s := &Store{
		dir:     filepath.Clean(dir),
		program: o.Program,
		root:    root,
		step:    func(_ string, f func() error) error { return f() },
		now:     time.Now,
	}
	if create {
		// Part of the layout from the start, so that a reader need not wonder.
		rel, err := s.openReleases(true)
		if err != nil {
			root.Close()
			return nil, fmt.Errorf("open release store %s: %w", dir, withSpaceHint(err, dir))
		}
		rel.Close()
	}
	return s, nil
}

// Close releases the descriptor of the store's directory.
func (s *Store) Close() error { return s.root.Close() }

// Dir returns the directory of the store.
func (s *Store) Dir() string { return s.dir }

// CurrentPath returns the path of the program through the current link, the
// one that belongs into ExecStart=.
func (s *Store) CurrentPath() string { return filepath.Join(s.dir, currentLink, s.program) }

// isReserved tells whether the name, in the directory of a release, is the store's own.
func isReserved(name string) bool {
	own := []string{recordFile, manifestFile, failedFile, pinnedFile}
	return slices.ContainsFunc(own, func(n string) bool { return name == n || atomicfile.IsTemp(name, n) })
}

func checkProgram(name string) error {
	if !atomicfile.IsName(name) || isReserved(name) {
		return fmt.Errorf("%q cannot be the name of a program", name)
	}
	return nil
}

// openReleases opens the directory of the releases; the caller owns it.
func (s *Store) openReleases(create bool) (*os.File, error) {
	path := filepath.Join(s.dir, releasesDir)
	d, err := openDirAt(int(s.root.Fd()), releasesDir, path)
	if errors.Is(err, fs.ErrNotExist) && create {
		if err := makeDir(int(s.root.Fd()), releasesDir); err != nil {
			return nil, fmt.Errorf("create %s: %w", path, err)
		}
		d, err = openDirAt(int(s.root.Fd()), releasesDir, path)
	}
	return checkedDir(d, path, err)
}

// openRelease opens the directory of one release; the caller owns it.
func (s *Store) openRelease(releases *os.File, id string) (*os.File, error) {
	path := filepath.Join(releases.Name(), id)
	d, err := openDirAt(int(releases.Fd()), id, path)
	return checkedDir(d, path, err)
}

// checkedDir passes on the result of openDirAt if the directory is trusted.
// ENOTDIR is what O_DIRECTORY|O_NOFOLLOW makes of a symbolic link.
func checkedDir(d *os.File, path string, err error) (*os.File, error) {
	if errors.Is(err, unix.ELOOP) || errors.Is(err, unix.ENOTDIR) {
		return nil, untrusted(path, "is not a directory")
	}
	if err != nil {
		return nil, err
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(d.Fd()), &st); err != nil {
		d.Close()
		return nil, fmt.Errorf("stat %s: %w", path, err)
	}
	if err := checkDir(path, &st, true); err != nil {
		d.Close()
		return nil, err
	}
	return d, nil
}

// Get returns the release of that ID. A release that is there but not usable
// is returned with an error that is ErrDamaged or ErrUntrusted.
func (s *Store) Get(id string) (Release, error) {
	if !ValidID(id) {
		return Release{}, fmt.Errorf("release %q: %w", id, ErrNoRelease)
	}
	rel, err := s.openReleases(false)
	if errors.Is(err, fs.ErrNotExist) {
		return Release{}, fmt.Errorf("release %s: %w", id, ErrNoRelease)
	}
	if err != nil {
		return Release{}, err
	}
	defer rel.Close()
	return s.get(rel, id)
}

func (s *Store) get(releases *os.File, id string) (Release, error) {
	d, err := s.openRelease(releases, id)
	if errors.Is(err, fs.ErrNotExist) {
		return Release{}, fmt.Errorf("release %s: %w", id, ErrNoRelease)
	}
	if err != nil {
		return Release{ID: id, Damage: err}, fmt.Errorf("release %s: %w", id, err)
	}
	defer d.Close()
	r, err := readRelease(d, id)
	if err != nil {
		err = fmt.Errorf("release %s: %w", id, err)
		r = Release{ID: id, Damage: err}
		_ = readMarks(d, &r) // as far as they can be read: a pin counts all the same
		return r, err
	}
	return r, nil
}

// List returns the releases, oldest first by ID. One that is not usable is in
// the list, with Damage set.
func (s *Store) List() ([]Release, error) {
	rel, err := s.openReleases(false)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer rel.Close()
	return s.list(rel)
}

func (s *Store) list(releases *os.File) ([]Release, error) {
	names, err := readNames(releases)
	if err != nil {
		return nil, err
	}
	var list []Release
	for _, name := range names {
		if !ValidID(name) {
			continue
		}
		r, err := s.get(releases, name)
		if errors.Is(err, ErrNoRelease) {
			continue // pruned while we looked
		}
		list = append(list, r)
	}
	slices.SortFunc(list, func(a, b Release) int { return strings.Compare(a.ID, b.ID) })
	return list, nil
}

// releaseOf returns the ID of the release that the file at path lies in, "" if it
// lies in none. The path may lead through the current link, and through others.
func (s *Store) releaseOf(path string) string {
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		return ""
	}
	dir, err := filepath.EvalSymlinks(filepath.Join(s.dir, releasesDir))
	if err != nil {
		return ""
	}
	rest, inside := strings.CutPrefix(real, dir+"/")
	id, _, inside2 := strings.Cut(rest, "/")
	if !inside || !inside2 || !ValidID(id) {
		return ""
	}
	return id
}

// Verify reads the program again and tells whether it still is what the release
// says: the content, the mode, the owner. The error then is ErrDamaged or
// ErrUntrusted.
func (s *Store) Verify(ctx context.Context, r Release) error {
	if !ValidID(r.ID) {
		return fmt.Errorf("release %q: %w", r.ID, ErrNoRelease)
	}
	rel, err := s.openReleases(false)
	if err != nil {
		return err
	}
	defer rel.Close()
	return s.verify(ctx, rel, r)
}

func (s *Store) verify(ctx context.Context, releases *os.File, r Release) error {
	d, err := s.openRelease(releases, r.ID)
	if err != nil {
		return err
	}
	defer d.Close()
	if r.Tree != nil {
		if err := checkMain(d, r); err != nil {
			return err
		}
		return verifyTree(ctx, d, r.SHA256)
	}
	return readProgram(ctx, d, r.Program, r.SHA256, nil)
}

// readNames lists a directory from its start, also when it was listed before.
func readNames(d *os.File) ([]string, error) {
	if _, err := d.Seek(0, 0); err != nil {
		return nil, err
	}
	return d.Readdirnames(-1)
}

// lock excludes other processes, and other goroutines, that change the set of
// releases. It is not the service's lock: staging may run while an upgrade
// does, and holds it no longer than a copy takes.
func (s *Store) lock(ctx context.Context) (unlock func(), err error) {
	return s.lockWithin(ctx, -1)
}

// lockWithin waits so long, without bound if that is negative. Then the error is ErrBusy.
func (s *Store) lockWithin(ctx context.Context, wait time.Duration) (unlock func(), err error) {
	// 0600: flock(2) asks for no write access, so whoever may open the file
	// could keep it locked for ever.
	f, err := openLockFile(s.root, lockFile)
	if err != nil {
		return nil, err
	}
	if err := flockWait(ctx, f, wait); err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			err = ErrBusy
		}
		return nil, err
	}
	return func() { unlockClose(f) }, nil
}

// steps returns the store's step function for the verb op: its labels begin
// with op, its errors do not, because the caller says op with its object.
func (s *Store) steps(op string) atomicfile.Step {
	return func(label string, f func() error) error {
		if err := s.step(op+": "+label, f); err != nil {
			return fmt.Errorf("%s: %w", label, err)
		}
		return nil
	}
}
