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

const (
	releaseSchema = 1
	treeSchema    = 2 // of one that is a directory: who does not know them would take it for damaged
)

// A Release is an immutable directory that holds one version of the program.
type Release struct {
	Schema   int       `json:"schema"`
	ID       string    `json:"id"`      // <utc>-<sha12>
	Program  string    `json:"program"` // base name of the file
	SHA256   string    `json:"sha256"`  // of the file, or of the manifest of a directory; 64 hex digits
	Size     int64     `json:"size"`    // bytes, of all files
	Source   string    `json:"source"`  // where it was copied from, links resolved
	StagedAt time.Time `json:"staged_at"`
	// Build is what a Go program says about itself, nil for any other file.
	Build *Build `json:"build,omitempty"`
	// Tree is there if the release is a whole directory.
	Tree *Tree `json:"tree,omitempty"`
	// Archive is the file that the directory was unpacked from, if it was.
	Archive *Archive `json:"archive,omitempty"`
	// Signature is what was verified, nil if nothing was.
	Signature *Signature `json:"signature,omitempty"`
	// Recovered is there if the program was taken from a process that ran it.
	Recovered *Recovered `json:"recovered,omitempty"`
	// Who staged it and why, if that was said.
	Who *Who   `json:"who,omitempty"`
	Why string `json:"why,omitempty"`
	// Dropped names the extended attributes of the source that the release does
	// not carry although the program may depend on them (file capabilities).
	Dropped []string `json:"dropped,omitempty"`

	// Failed and Pinned are the marks of the release, nil if it has none.
	Failed *Failed `json:"-"`
	Pinned *Pinned `json:"-"`
	// New and Noted are set by Stage: the release was made by this call, or was
	// there and got its signature noted.
	New, Noted bool `json:"-"`
	// Path is the absolute path of the program.
	Path string `json:"-"`
	// Damage tells why the release cannot be used. Then only ID is valid.
	Damage error `json:"-"`
}

// A Tree is what is particular about a release that is a directory.
type Tree struct {
	Exec    string `json:"exec"`            // path of the main program in it, links resolved
	Asked   string `json:"asked,omitempty"` // StageOptions.Exec
	Entries int    `json:"entries"`         // files, directories and links
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
	case r.Schema > treeSchema:
		return Release{}, &SchemaError{What: "release", Got: r.Schema, Known: treeSchema}
	case r.Schema < 1:
		return Release{}, fmt.Errorf("%s has no schema: %w", recordFile, ErrDamaged)
	case r.ID != id:
		return Release{}, fmt.Errorf("%s says %q: %w", recordFile, r.ID, ErrDamaged)
	case checkProgram(r.Program) != nil:
		return Release{}, fmt.Errorf("%s has program %q: %w", recordFile, r.Program, ErrDamaged)
	case len(r.SHA256) != 2*sha256.Size || !isHex(r.SHA256) || !idHasSum(id, r.SHA256):
		return Release{}, fmt.Errorf("%s has sha256 %q: %w", recordFile, r.SHA256, ErrDamaged)
	case r.Tree != nil:
		if p, err := entryPath(r.Tree.Exec); err != nil || p == "" || p != r.Tree.Exec {
			return Release{}, fmt.Errorf("%s has program %q: %w", recordFile, r.Tree.Exec, ErrDamaged)
		}
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
	if r.Tree != nil {
		err = checkMain(d, r)
	} else {
		err = checkSize(d, r)
	}
	if err != nil {
		return Release{}, err
	}
	if err := readMarks(d, &r); err != nil {
		return Release{}, err
	}
	r.Path = filepath.Join(d.Name(), r.Program)
	return r, nil
}

// checkSize looks at the program of r, but not into it.
func checkSize(d *os.File, r Release) error {
	f, err := openProgram(d, r.Program)
	if err != nil {
		return err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err == nil && fi.Size() != r.Size {
		err = fmt.Errorf("%s has %d bytes, staged were %d: %w", f.Name(), fi.Size(), r.Size, ErrDamaged)
	}
	return err
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

// readProgram tells whether the program still has the content sum. If f is not
// nil it is given the same bytes on their way.
func readProgram(ctx context.Context, d *os.File, name, sum string, f func(io.Reader) error) error {
	p, err := openProgram(d, name)
	if err != nil {
		return err
	}
	defer p.Close()
	got, err := hashFile(ctx, p, f)
	if err != nil {
		return fmt.Errorf("read %s: %w", p.Name(), err)
	}
	if got != sum {
		return fmt.Errorf("%w: %w", ErrDamaged, &ChecksumError{Path: p.Name(), Want: sum, Got: got})
	}
	return nil
}

// hashFile returns the SHA-256 of what is left to read of f. Another reader may
// have the bytes on their way; if it fails, so does hashFile.
func hashFile(ctx context.Context, f *os.File, also func(io.Reader) error) (string, error) {
	r := &hashingReader{ctx: ctx, r: f, h: sha256.New()}
	if also != nil {
		if err := also(r); err != nil {
			return "", err
		}
	}
	// Without ReadFrom and WriteTo, which would choose a smaller buffer.
	if _, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, r, make([]byte, flowChunk)); err != nil {
		return "", err
	}
	return hex.EncodeToString(r.h.Sum(nil)), nil
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
