package cmd

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"

	"github.com/zdt-dev/zdt/internal/atomicfile"
	"github.com/zdt-dev/zdt/unitgen"
)

// adoptRecord is what zdt adopt has written, or is about to: it is on disk before the first file is, and goes last. So an
// undo knows all there can be, wherever an adoption has ended.
type adoptRecord struct {
	Format int          `json:"format"` // 1
	Files  []adoptWrote `json:"files"`
	Dirs   []string     `json:"dirs"` // made for them

	Program string `json:"program"` // of the unit as it was
	// Listen are the sockets that the program had bound itself.
	Listen []string `json:"listen,omitempty"`
	// Times of the unit that were too short, as it was.
	TimeoutStart bool `json:"timeout_start,omitempty"`
	TimeoutStop  bool `json:"timeout_stop,omitempty"`
}

// adoptWrote is a file, by the contents it was given. There may be several, of which an interrupted adoption has written one.
type adoptWrote struct {
	Path   string   `json:"path"`
	SHA256 []string `json:"sha256"`
}

func readAdoptRecord(path string) (r adoptRecord, err error) {
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return r, nil
	}
	if err != nil {
		return r, fmt.Errorf("read what zdt adopt has written: %w", err)
	}
	decoder := json.NewDecoder(bytes.NewReader(data))
	if err := decoder.Decode(&r); err != nil || r.Format != 1 {
		return r, fail(ExitRefused, "look at it; what zdt adopt writes is called "+unitgen.AdoptFile+" in the .d directories of the units", "%s cannot be read: format %d, %v", path, r.Format, err)
	}
	return r, nil
}

func (r adoptRecord) write(path string) error {
	r.Format = 1
	data, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	return atomicfile.Write(path, append(data, '\n'), 0o644)
}

func (r adoptRecord) paths() (all []string) {
	for _, f := range r.Files {
		all = append(all, f.Path)
	}
	return all
}

// wrote reports whether a file is as zdt adopt has written it.
func (r adoptRecord) wrote(path string, data []byte) bool {
	return slices.ContainsFunc(r.Files, func(f adoptWrote) bool { return f.Path == path && slices.Contains(f.SHA256, sumOf(data)) })
}

// will notes files that are going to be written.
func (r *adoptRecord) will(files []unitgen.File) {
	for _, file := range files {
		i := slices.IndexFunc(r.Files, func(f adoptWrote) bool { return f.Path == file.Path })
		if i < 0 {
			r.Files, i = append(r.Files, adoptWrote{Path: file.Path}), len(r.Files)
		}
		if sum := sumOf(file.Data); !slices.Contains(r.Files[i].SHA256, sum) {
			r.Files[i].SHA256 = append(r.Files[i].SHA256, sum)
		}
	}
}

func sumOf(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}
