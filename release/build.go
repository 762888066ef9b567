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

// A building is a release that is being made, under a name that is none.
type building struct {
	g   *staging
	tmp string   // its name within releases
	at  string   // under which it is there: tmp, until it is published
	d   *os.File // it
}

func (g *staging) begin() (*building, error) {
	tmp, err := tempDirName()
	if err != nil {
		return nil, err
	}
	b := &building{g: g, tmp: tmp, at: tmp}
	err = g.steps("stage")("make temporary directory", func() (err error) {
		b.d, err = makeTemp(g.releases, tmp)
		return err
	})
	if err != nil {
		return nil, err
	}
	return b, nil
}

// end closes the directory and, if err says that it came to nothing, removes it.
func (b *building) end(err error) error {
	defer b.d.Close()
	if err == nil {
		return nil
	}
	fd := int(b.g.releases.Fd())
	// Out of the way by one rename first, so that a crash in the middle
	// of the removal leaves rubbish that is recognised, not half a release.
	if b.at != b.tmp {
		// ENOENT: the rename has failed indeed, d still has its first name.
		mvErr := unix.Renameat(fd, b.at, fd, b.tmp)
		if mvErr != nil && !errors.Is(mvErr, unix.ENOENT) {
			return errors.Join(err, fmt.Errorf("move %s away: %w", b.at, mvErr))
		}
	}
	if rmErr := removeAllAt(b.g.releases, b.tmp); rmErr != nil {
		err = errors.Join(err, rmErr)
	}
	return err
}

// publish writes the record of r and gives the directory its name.
func (b *building) publish(r Release) (Release, error) {
	do := b.g.steps("stage")
	fd := int(b.g.releases.Fd())
	var err error
	if r.ID, err = freeID(b.g.releases, r.StagedAt, r.SHA256); err != nil {
		return Release{}, err
	}
	r.Path = filepath.Join(b.g.releases.Name(), r.ID, r.Program)
	// Its last step syncs d and with it the program's name.
	if err := b.g.writeRecord(b.d, r); err != nil {
		return Release{}, err
	}
	b.at = r.ID // whatever the answer is: that of a file server can get lost
	if err := do("rename", func() error {
		// Without RENAME_NOREPLACE, which NFS lacks: a directory can only
		// replace an empty one, and freeID has seen that there is none.
		return unix.Renameat(fd, b.tmp, fd, r.ID)
	}); err != nil {
		return Release{}, err
	}
	if err := do("fsync releases", b.g.releases.Sync); err != nil {
		return Release{}, err
	}
	r.New = true
	return r, nil
}

// writeRecord writes release.json into the directory of the release.
func (g *staging) writeRecord(d *os.File, r Release) error {
	data, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	if len(data) >= maxRecord {
		return fmt.Errorf("%s has %d bytes, at most %d are allowed", recordFile, len(data), maxRecord)
	}
	if err := atomicfile.WriteAt(d, recordFile, append(data, '\n'), 0o444, g.steps("stage: "+recordFile)); err != nil {
		return fmt.Errorf("%s: %w", recordFile, err)
	}
	return nil
}

// freeID returns an ID that no entry of releases has. It counts on by seconds
// if the same content was staged this second and is unusable by now. IDs sort by when releases were staged: one of the
// future, from a clock that was set back since, is not to be the newest until that time has come, so it counts on from there.
func freeID(releases *os.File, t time.Time, sum string) (string, error) {
	names, err := readNames(releases)
	if err != nil {
		return "", err
	}
	for _, name := range names {
		if !ValidID(name) {
			continue
		}
		if staged, err := time.Parse(idTime, name[:len(idTime)]); err == nil && staged.After(t) {
			t = staged.Add(time.Second)
		}
	}
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
func sweep(ctx context.Context, releases *os.File) error {
	names, err := readNames(releases)
	if err != nil {
		return err
	}
	for _, n := range names {
		if strings.HasPrefix(n, tempPrefix) {
			if err := removeAll(ctx, releases, n); err != nil {
				return err
			}
		}
	}
	return nil
}
