package release

import (
	"errors"
	"fmt"
	"io"
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
	reportsDir   = "reports"
	reportSuffix = ".json"
	// maxReports bounds how many are kept, maxReport how long one may be: candidates fill them with their last words.
	maxReports = 50
	maxReport  = 1 << 20
)

// ErrNoReport: there is no report of that transaction, or not any more.
var ErrNoReport = errors.New("no report")

// WriteReport keeps the report of a transaction that is over, for whoever waits for its end, and makes it
// durable. What data is, is the caller's business; an earlier report of the same transaction is replaced, and the
// oldest ones go. No lock is needed. Reports quote the service's log, so only root can read them.
func (s *Store) WriteReport(txid string, data []byte) error {
	if err := s.writeReport(txid, data); err != nil {
		return fmt.Errorf("keep report of %s: %w", txid, withSpaceHint(err, s.dir))
	}
	return nil
}

func (s *Store) writeReport(txid string, data []byte) error {
	if !ValidTxID(txid) {
		return fmt.Errorf("%q is not the ID of a transaction", txid)
	}
	if len(data) > maxReport {
		return fmt.Errorf("it has %d bytes, at most %d are allowed", len(data), maxReport)
	}
	d, err := s.openReports(true)
	if err != nil {
		return err
	}
	defer d.Close()
	// Before the new one is written: on a full disk that may be what it takes.
	if err := pruneReports(d, maxReports-1, txid+reportSuffix); err != nil {
		return err
	}
	return atomicfile.WriteAt(d, txid+reportSuffix, data, 0o600, s.steps("report"))
}

// ReadReport returns what WriteReport was given, or ErrNoReport.
func (s *Store) ReadReport(txid string) ([]byte, error) {
	if !ValidTxID(txid) {
		return nil, fmt.Errorf("report of %q: %w", txid, ErrNoReport)
	}
	d, err := s.openReports(false)
	if err == nil {
		defer d.Close()
		var f *os.File
		if f, err = openFileAt(d, txid+reportSuffix); err == nil {
			defer f.Close()
			var data []byte
			if data, err = io.ReadAll(io.LimitReader(f, maxReport)); err == nil {
				return data, nil
			}
		}
	}
	if errors.Is(err, fs.ErrNotExist) {
		err = ErrNoReport
	}
	return nil, fmt.Errorf("report of %s: %w", txid, err)
}

// Reports lists the transactions that there are reports of, the oldest first.
func (s *Store) Reports() ([]string, error) {
	d, err := s.openReports(false)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer d.Close()
	names, err := readNames(d)
	if err != nil {
		return nil, err
	}
	var ids []string
	for _, n := range names {
		if id, ok := strings.CutSuffix(n, reportSuffix); ok && ValidTxID(id) {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids) // they begin with the time
	return ids, nil
}

// openReports opens the directory of the reports; the caller owns it.
func (s *Store) openReports(create bool) (*os.File, error) {
	path := filepath.Join(s.dir, reportsDir)
	d, err := openDirAt(int(s.root.Fd()), reportsDir, path)
	if errors.Is(err, fs.ErrNotExist) && create {
		if err := unix.Mkdirat(int(s.root.Fd()), reportsDir, 0o700); err != nil && !errors.Is(err, unix.EEXIST) {
			return nil, &fs.PathError{Op: "create", Path: path, Err: err}
		}
		if d, err = openDirAt(int(s.root.Fd()), reportsDir, path); err == nil {
			err = s.root.Sync()
		}
	}
	return checkedDir(d, path, err)
}

// pruneReports removes the oldest reports, so that at most keep are left besides the one called except, and what a crash
// has left of writing one. Two that do so at a time remove the same ones.
func pruneReports(d *os.File, keep int, except string) error {
	names, err := readNames(d)
	if err != nil {
		return err
	}
	var reports []string
	for _, n := range names {
		switch id, ok := strings.CutSuffix(n, reportSuffix); {
		case n == except:
		case ok && ValidTxID(id):
			reports = append(reports, n)
		case isReportTemp(n) && abandoned(d, n):
			if err := removeAllAt(d, n); err != nil {
				return err
			}
		}
	}
	// Those of the future are from a clock that was set back since: they go first, and not what was written since then.
	now := txID(time.Now(), [4]byte{0xff, 0xff, 0xff, 0xff}) + reportSuffix
	slices.SortFunc(reports, func(a, b string) int {
		if a > now != (b > now) {
			return strings.Compare(b, a)
		}
		return strings.Compare(a, b)
	})
	for len(reports) > keep {
		if err := removeAllAt(d, reports[0]); err != nil {
			return err
		}
		reports = reports[1:]
	}
	return nil
}

// isReportTemp tells whether n is what WriteReport writes into before it renames.
func isReportTemp(n string) bool {
	id, _, ok := strings.Cut(strings.TrimPrefix(n, "."), reportSuffix+".")
	return ok && ValidTxID(id) && atomicfile.IsTemp(n, id+reportSuffix)
}

// abandoned tells whether nobody can be writing the file any more.
func abandoned(d *os.File, n string) bool {
	var st unix.Stat_t
	return unix.Fstatat(int(d.Fd()), n, &st, unix.AT_SYMLINK_NOFOLLOW) == nil && time.Since(time.Unix(st.Mtim.Unix())) > time.Hour
}
