package release

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/zdt-dev/zdt/internal/atomicfile"
)

const (
	snapshotFile   = "units.json"
	snapshotSchema = 1
)

// A Snapshot is the text of a service's units as it was when the service was started: what its processes go by, whatever
// the files say by now.
type Snapshot struct {
	Schema int `json:"schema"`
	// Invocation is systemd's ID of the run of the service that was started with this text.
	Invocation string         `json:"invocation"`
	TakenAt    time.Time      `json:"taken_at"`
	Units      []SnapshotUnit `json:"units"`
	// EnvironmentFiles are the files of EnvironmentFile=, of which only the checksum is kept.
	EnvironmentFiles []SnapshotFile `json:"environment_files,omitempty"`
}

// SnapshotUnit is a unit with its drop-ins, in the order in which systemd reads them.
type SnapshotUnit struct {
	Unit  string         `json:"unit"`
	Files []SnapshotFile `json:"files"`
}

// SnapshotFile is a file as it was.
type SnapshotFile struct {
	Path   string `json:"path"`
	Text   string `json:"text,omitempty"`
	SHA256 string `json:"sha256,omitempty"`
}

// ErrNoSnapshot: none was taken yet.
var ErrNoSnapshot = errors.New("no snapshot of the units")

// Snapshot returns the last snapshot of the units, or ErrNoSnapshot. Who may not read the files that went into it may not
// read it either: the error is fs.ErrPermission then.
func (s *Store) Snapshot() (Snapshot, error) {
	data, err := readRecord(s.root, snapshotFile)
	if errors.Is(err, fs.ErrNotExist) {
		return Snapshot{}, ErrNoSnapshot
	}
	var snap Snapshot
	if err == nil {
		snap, err = parseSnapshot(data)
	}
	if err != nil {
		return Snapshot{}, fmt.Errorf("read the snapshot of the units: %w", err)
	}
	return snap, nil
}

func parseSnapshot(data []byte) (Snapshot, error) {
	var head struct {
		Schema int `json:"schema"`
	}
	var snap Snapshot
	err := json.Unmarshal(data, &head)
	if err == nil {
		if head.Schema > snapshotSchema {
			return Snapshot{}, &SchemaError{What: "snapshot of the units", Got: head.Schema, Known: snapshotSchema}
		}
		err = json.Unmarshal(data, &snap)
	}
	if err == nil && head.Schema < 1 {
		err = errors.New("no schema")
	}
	if err == nil && snap.Invocation == "" {
		err = errors.New("no invocation")
	}
	if err != nil {
		return Snapshot{}, fmt.Errorf("%s: %w: %w", snapshotFile, ErrDamaged, err)
	}
	return snap, nil
}

// SetSnapshot replaces the snapshot and makes it durable. private: only root, or the owner of the store, may read it, because
// that holds for a file that went into it. Several may do so at once:
// one of them wins, the others may get an error.
func (s *Store) SetSnapshot(snap Snapshot, private bool) error {
	snap.Schema = snapshotSchema
	if snap.TakenAt.IsZero() {
		snap.TakenAt = s.now().UTC().Truncate(time.Second)
	}
	data, err := json.MarshalIndent(snap, "", "  ")
	if err == nil && len(data) >= maxRecord {
		err = fmt.Errorf("it has %d bytes, at most %d are allowed", len(data), maxRecord)
	}
	if err == nil {
		_, err = parseSnapshot(data)
	}
	if err == nil {
		mode := fs.FileMode(0o644)
		if private {
			mode = 0o600
		}
		do := s.steps("snapshot")
		if err = do("sweep", func() error { return s.sweepTemps(snapshotFile) }); err == nil {
			err = atomicfile.WriteAt(s.root, snapshotFile, append(data, '\n'), mode, do)
		}
	}
	if err != nil {
		return fmt.Errorf("keep a snapshot of the units: %w", withSpaceHint(err, s.dir))
	}
	return nil
}
