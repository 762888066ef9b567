package release

import (
	"context"
	"crypto/sha256"
	"debug/buildinfo"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"
)

const releaseSchema = 1

// A Release is an immutable directory that holds one version of the program.
type Release struct {
	Schema   int       `json:"schema"`
	ID       string    `json:"id"`      // <utc>-<sha12>
	Program  string    `json:"program"` // base name of the file
	SHA256   string    `json:"sha256"`  // of the file, 64 hex digits
	Size     int64     `json:"size"`    // bytes
	Source   string    `json:"source"`  // where it was copied from, links resolved
	StagedAt time.Time `json:"staged_at"`
	// Build is what a Go program says about itself, nil for any other file.
	Build *Build `json:"build,omitempty"`
	// Dropped names the extended attributes of the source that the release does
	// not carry although the program may depend on them (file capabilities).
	Dropped []string `json:"dropped,omitempty"`

	// Failed and Pinned are the marks of the release, nil if it has none.
	Failed *Failed `json:"-"`
	Pinned *Pinned `json:"-"`
	// Path is the absolute path of the program.
	Path string `json:"-"`
	// Damage tells why the release cannot be used. Then only ID is valid.
	Damage error `json:"-"`
}

// Build is the build information of a Go program (go version -m).
type Build struct {
	GoVersion string `json:"go_version"`
	Package   string `json:"package,omitempty"` // import path of package main
	Module    string `json:"module,omitempty"`
	Version   string `json:"version,omitempty"` // of the module; "(devel)" when unknown
	GOOS      string `json:"goos,omitempty"`
	GOARCH    string `json:"goarch,omitempty"`
	VCS       string `json:"vcs,omitempty"` // "git"
	Revision  string `json:"revision,omitempty"`
	Time      string `json:"time,omitempty"`     // of the revision, RFC 3339
	Modified  bool   `json:"modified,omitempty"` // built from a tree with local changes
}

// idTime is UTC and sorts. Its length is fixed until the year 9999.
const idTime = "20060102T150405Z"

// newID makes the ID of content sum staged at t.
func newID(t time.Time, sum string) string { return t.UTC().Format(idTime) + "-" + sum[:12] }

// ValidID tells whether s has the form of the ID of a release. Such a string
// is a safe file name.
func ValidID(s string) bool {
	stamp, sum, ok := strings.Cut(s, "-")
	if !ok || len(stamp) != len(idTime) || len(sum) != 12 || !isHex(sum) {
		return false
	}
	_, err := time.Parse(idTime, stamp)
	return err == nil
}

// idHasSum tells whether the release id was made from content sum.
func idHasSum(id, sum string) bool { return strings.HasSuffix(id, "-"+sum[:12]) }

func isHex(s string) bool { return strings.Trim(s, "0123456789abcdef") == "" }

// parseSum accepts a SHA-256 as tools print it: 64 hex digits, in any case,
// optionally behind "sha256:".
func parseSum(s string) (string, error) {
	sum := strings.ToLower(strings.TrimSpace(s))
	sum = strings.TrimPrefix(sum, "sha256:")
	if len(sum) != 2*sha256.Size || !isHex(sum) {
		return "", hint(fmt.Errorf("%q is not a SHA-256", s), "give 64 hex digits, as sha256sum prints them")
	}
	return sum, nil
}

// parseRelease reads release.json.
func parseRelease(data []byte, id string) (Release, error) {
	var r Release
	if err := json.Unmarshal(data, &r); err != nil {
		return Release{}, fmt.Errorf("%s: %w: %w", recordFile, ErrDamaged, err)
	}
	switch {
	case r.Schema > releaseSchema:
		return Release{}, &SchemaError{What: "release", Got: r.Schema, Known: releaseSchema}
	case r.Schema < 1:
		return Release{}, fmt.Errorf("%s has no schema: %w", recordFile, ErrDamaged)
	case r.ID != id:
		return Release{}, fmt.Errorf("%s says %q: %w", recordFile, r.ID, ErrDamaged)
	case checkProgram(r.Program) != nil:
		return Release{}, fmt.Errorf("%s has program %q: %w", recordFile, r.Program, ErrDamaged)
	case len(r.SHA256) != 2*sha256.Size || !isHex(r.SHA256) || !idHasSum(id, r.SHA256):
		return Release{}, fmt.Errorf("%s has sha256 %q: %w", recordFile, r.SHA256, ErrDamaged)
	}
	return r, nil
}

// readRelease reads the record in the release's directory and looks at the
// program beside it, but not into it.
func readRelease(d *os.File, id string) (Release, error) {
	data, err := readRecord(d, recordFile)
	if errors.Is(err, fs.ErrNotExist) {
		return Release{}, fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	if err != nil {
		return Release{}, err
	}
	r, err := parseRelease(data, id)
	if err != nil {
		return Release{}, err
	}
	f, err := openProgram(d, r.Program)
	if err != nil {
		return Release{}, err
	}
	defer f.Close()
	if fi, err := f.Stat(); err != nil {
		return Release{}, err
	} else if fi.Size() != r.Size {
		return Release{}, fmt.Errorf("%s has %d bytes, staged were %d: %w", f.Name(), fi.Size(), r.Size, ErrDamaged)
	}
	if err := readMarks(d, &r); err != nil {
		return Release{}, err
	}
	r.Path = filepath.Join(d.Name(), r.Program)
	return r, nil
}

// openProgram opens the program for reading. Its mode must be what Stage gave
// it: a chmod means that somebody wrote to it, or that it cannot be executed.
func openProgram(d *os.File, name string) (*os.File, error) {
	f, err := openFileAt(d, name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	if err != nil {
		return nil, err
	}
	fi, err := f.Stat()
	if err == nil && fi.Mode().Perm() != programMode {
		err = fmt.Errorf("%s has mode %04o, want %04o: %w", f.Name(), fi.Mode().Perm(), programMode, ErrDamaged)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// verifyProgram tells whether the program still has the content sum.
func verifyProgram(ctx context.Context, d *os.File, name, sum string) error {
	f, err := openProgram(d, name)
	if err != nil {
		return err
	}
	defer f.Close()
	got, err := hashFile(ctx, f)
	if err != nil {
		return fmt.Errorf("read %s: %w", f.Name(), err)
	}
	if got != sum {
		return fmt.Errorf("%w: %w", ErrDamaged, &ChecksumError{Path: f.Name(), Want: sum, Got: got})
	}
	return nil
}

// hashFile returns the SHA-256 of what is left to read of f.
func hashFile(ctx context.Context, f *os.File) (string, error) {
	h := sha256.New()
	buf := make([]byte, copyChunk)
	for {
		if err := ctx.Err(); err != nil {
			return "", err
		}
		n, err := f.Read(buf)
		h.Write(buf[:n])
		if err == io.EOF {
			return hex.EncodeToString(h.Sum(nil)), nil
		}
		if err != nil {
			return "", err
		}
	}
}

// readBuild returns what a Go program says about itself, nil for anything else.
func readBuild(r io.ReaderAt) *Build {
	info, err := buildinfo.Read(r)
	if err != nil {
		return nil // not Go, or stripped of it: no reason not to stage it
	}
	b := &Build{
		GoVersion: info.GoVersion,
		Package:   info.Path,
		Module:    info.Main.Path,
		Version:   info.Main.Version,
	}
	for _, s := range info.Settings {
		switch s.Key {
		case "GOOS":
			b.GOOS = s.Value
		case "GOARCH":
			b.GOARCH = s.Value
		case "vcs":
			b.VCS = s.Value
		case "vcs.revision":
			b.Revision = s.Value
		case "vcs.time":
			b.Time = s.Value
		case "vcs.modified":
			b.Modified = s.Value == "true"
		}
	}
	return b
}
