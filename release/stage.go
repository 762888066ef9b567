package release

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/zdt-dev/zdt/internal/atomicfile"
)

const (
	programMode = 0o555
	copyChunk   = 1 << 20 // bytes between two looks at the context
	// tempPrefix starts the name of a directory that is being made or deleted.
	// ValidID never accepts it.
	tempPrefix = ".tmp-"
)

// StageOptions say what is expected of a source.
type StageOptions struct {
	// SHA256 is the checksum that the content must have, hex, optionally with
	// "sha256:" in front. Empty: any content will do.
	SHA256 string
}

// Stage copies the program in the file src into a release of its own and
// returns it. When it returns without an error the release is on the disk, with
// the content that was hashed; when it returns an error nothing is left behind.
//
// The source is opened once, following a symbolic link as open(2) does, and
// everything is read through that one descriptor. It must be a regular file
// that nobody is writing to. Its mode does not matter, the copy gets 0555;
// set-uid bits and file capabilities are not taken over.
//
// Staging content that is there already returns the earlier release, after its
// content was checked, and changes nothing: so a file that failed can be tried
// again as it is. Callers that go on to use the release should hold the
// service's lock, or Prune may take it away in between.
func (s *Store) Stage(ctx context.Context, src string, o StageOptions) (Release, error) {
	r, err := s.stage(ctx, src, o)
	if err != nil {
		return Release{}, fmt.Errorf("stage %q: %w", src, withSpaceHint(err, s.dir))
	}
	return r, nil
}

func (s *Store) stage(ctx context.Context, src string, o StageOptions) (Release, error) {
	if s.program == "" {
		return Release{}, errors.New("the store was opened without the name of the program")
	}
	var want string
	if o.SHA256 != "" {
		var err error
		if want, err = parseSum(o.SHA256); err != nil {
			return Release{}, err
		}
	}
	do := s.steps("stage")

	var in *source
	if err := do("open source", func() (err error) { in, err = openSource(ctx, src); return err }); err != nil {
		return Release{}, err
	}
	defer in.Close()

	var unlock func()
	if err := do("lock", func() (err error) { unlock, err = s.lock(ctx); return err }); err != nil {
		return Release{}, err
	}
	defer unlock()
	releases, err := s.openReleases(true)
	if err != nil {
		return Release{}, err
	}
	defer releases.Close()
	if err := checkExecutable(releases); err != nil {
		return Release{}, err
	}
	if err := do("sweep", func() error { return sweep(releases) }); err != nil {
		return Release{}, err
	}

	r, err := s.findStaged(ctx, releases, in, want)
	if err != nil {
		return Release{}, err
	}
	if r.ID != "" {
		// It may stem from a run that died between the rename and this.
		return r, do("fsync releases", releases.Sync)
	}
	return s.copyIn(ctx, releases, in, want)
}

// findStaged returns the release that already holds the content of in, or a
// zero Release. To spare a new version the second reading, the source is only
// hashed when a release of the same size exists.
func (s *Store) findStaged(ctx context.Context, releases *os.File, in *source, want string) (Release, error) {
	list, err := s.list(releases)
	if err != nil {
		return Release{}, err
	}
	var sum string
	for _, r := range list {
		if r.Damage != nil || r.Program != s.program || r.Size != in.size {
			continue
		}
		if sum == "" {
			if sum, err = in.hash(ctx); err != nil {
				return Release{}, err
			}
			if want != "" && sum != want {
				return Release{}, &ChecksumError{Path: in.path, Want: want, Got: sum}
			}
		}
		// A release that was tampered with must not swallow a good file.
		if r.SHA256 == sum && s.verify(ctx, releases, r) == nil {
			return r, nil
		}
	}
	return Release{}, ctx.Err()
}

// copyIn makes a new release of in.
func (s *Store) copyIn(ctx context.Context, releases *os.File, in *source, want string) (_ Release, err error) {
	do := s.steps("stage")
	tmp, err := tempDirName()
	if err != nil {
		return Release{}, err
	}
	var d *os.File
	if err := do("make temporary directory", func() (err error) {
		d, err = makeTemp(releases, tmp)
		return err
	}); err != nil {
		return Release{}, err
	}
	defer d.Close()
	at := tmp // the name of d within releases
	defer func() {
		if err == nil {
			return
		}
		// Out of the way by one rename first, so that a crash in the middle
		// of the removal leaves rubbish that is recognised, not half a release.
		if at != tmp {
			// ENOENT: the rename has failed indeed, d still has its first name.
			mvErr := unix.Renameat(int(releases.Fd()), at, int(releases.Fd()), tmp)
			if mvErr != nil && !errors.Is(mvErr, unix.ENOENT) {
				err = errors.Join(err, fmt.Errorf("move %s away: %w", at, mvErr))
				return
			}
		}
		if rmErr := removeAllAt(releases, tmp); rmErr != nil {
			err = errors.Join(err, rmErr)
		}
	}()

	sum, err := s.copyProgram(ctx, d, in)
	if err != nil {
		return Release{}, err
	}
	if want != "" && sum != want {
		return Release{}, &ChecksumError{Path: in.path, Want: want, Got: sum}
	}
	if err := do("re-hash", func() error { return verifyProgram(ctx, d, s.program, sum) }); err != nil {
		return Release{}, err
	}

	stagedAt := s.now().UTC().Truncate(time.Second)
	id, err := freeID(releases, stagedAt, sum)
	if err != nil {
		return Release{}, err
	}
	r := Release{
		Schema:   releaseSchema,
		ID:       id,
		Program:  s.program,
		SHA256:   sum,
		Size:     in.size,
		Source:   in.path,
		StagedAt: stagedAt,
		Build:    readBuild(in.f),
		Dropped:  in.dropped(),
		Path:     filepath.Join(releases.Name(), id, s.program),
	}
	data, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return Release{}, err
	}
	// Its last step syncs d and with it the program's name.
	if err := atomicfile.WriteAt(d, recordFile, append(data, '\n'), 0o444, s.steps("stage: "+recordFile)); err != nil {
		return Release{}, fmt.Errorf("%s: %w", recordFile, err)
	}
	at = id // whatever the answer is: that of a file server can get lost
	if err := do("rename", func() error {
		// Without RENAME_NOREPLACE, which NFS lacks: a directory can only
		// replace an empty one, and freeID has seen that there is none.
		return unix.Renameat(int(releases.Fd()), tmp, int(releases.Fd()), id)
	}); err != nil {
		return Release{}, err
	}
	if err := do("fsync releases", releases.Sync); err != nil {
		return Release{}, err
	}
	return r, nil
}

// copyProgram copies in into the directory d and returns the SHA-256 of the
// bytes it has read.
func (s *Store) copyProgram(ctx context.Context, d *os.File, in *source) (sum string, err error) {
	do := s.steps("stage")
	var out *os.File
	if err := do("create file", func() error {
		fd, err := unix.Openat(int(d.Fd()), s.program, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
		if err != nil {
			return err
		}
		out = os.NewFile(uintptr(fd), filepath.Join(d.Name(), s.program))
		return nil
	}); err != nil {
		return "", err
	}
	defer func() {
		if out != nil {
			err = errors.Join(err, out.Close())
		}
	}()

	if err := do("reserve space", func() error {
		// Tells now, not after minutes, that the disk is full.
		err := retry(func() error { return unix.Fallocate(int(out.Fd()), 0, 0, in.size) })
		if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOSYS) {
			return nil
		}
		return err
	}); err != nil {
		return "", err
	}
	if err := do("copy", func() (err error) { sum, err = in.copyTo(ctx, out); return err }); err != nil {
		return "", err
	}
	if err := do("source unchanged", in.unchanged); err != nil {
		return "", err
	}
	if err := do("chmod", func() error { return out.Chmod(programMode) }); err != nil {
		return "", err
	}
	if err := do("fsync file", out.Sync); err != nil {
		return "", err
	}
	f := out
	out = nil
	if err := do("close file", f.Close); err != nil {
		f.Close()
		return "", err
	}
	return sum, do("settle", func() error { return settle(ctx, d, s.program) })
}

// checkExecutable refuses a store whose programs the kernel would not run.
func checkExecutable(releases *os.File) error {
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(releases.Fd()), &st); err != nil {
		return err
	}
	if st.Flags&unix.ST_NOEXEC != 0 {
		return hint(fmt.Errorf("%s is on a file system mounted noexec", releases.Name()),
			"mount it with exec, or a file system of its own on /var/lib/zdt")
	}
	return nil
}

// freeID returns an ID that no entry of releases has. It counts on by seconds
// if the same content was staged this second and is unusable by now.
func freeID(releases *os.File, t time.Time, sum string) (string, error) {
	for range 100 {
		id := newID(t, sum)
		var st unix.Stat_t
		err := unix.Fstatat(int(releases.Fd()), id, &st, unix.AT_SYMLINK_NOFOLLOW)
		if errors.Is(err, fs.ErrNotExist) {
			return id, nil
		}
		if err != nil {
			return "", err
		}
		t = t.Add(time.Second)
	}
	return "", fmt.Errorf("no free name for content %s in %s", sum[:12], releases.Name())
}

func tempDirName() (string, error) {
	var b [8]byte
	if _, err := rand.Read(b[:]); err != nil {
		return "", err
	}
	return tempPrefix + hex.EncodeToString(b[:]), nil
}

// makeTemp makes the directory name in releases and opens it. It leaves
// nothing behind when it fails.
func makeTemp(releases *os.File, name string) (*os.File, error) {
	if err := unix.Mkdirat(int(releases.Fd()), name, 0o700); err != nil {
		return nil, err
	}
	d, err := openDirAt(int(releases.Fd()), name, filepath.Join(releases.Name(), name))
	if err == nil {
		// The service user must get to the program, whatever the umask says.
		if err = d.Chmod(0o755); err == nil {
			return d, nil
		}
		d.Close()
	}
	return nil, errors.Join(err, removeAllAt(releases, name))
}

// sweep removes what earlier calls have left that did not come to their end.
// The caller holds the store's lock, so no such call is alive.
func sweep(releases *os.File) error {
	names, err := readNames(releases)
	if err != nil {
		return err
	}
	for _, n := range names {
		if strings.HasPrefix(n, tempPrefix) {
			if err := removeAllAt(releases, n); err != nil {
				return err
			}
		}
	}
	return nil
}
