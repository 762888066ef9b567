package release

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"golang.org/x/sys/unix"

	"github.com/zdt-dev/zdt/internal/atomicfile"
)

const (
	holdFile   = "hold.json"
	holdSchema = 1
)

// A Hold keeps everybody from upgrading a service until somebody takes it away. It is not the lock: it outlives the process
// and the boot, and never ends by itself.
type Hold struct {
	Schema int       `json:"schema"`
	Since  time.Time `json:"since"`
	Who    Who       `json:"who"`
	Why    string    `json:"why"`
}

// ErrNoHold: nobody holds the service.
var ErrNoHold = errors.New("no hold")

// Hold returns the hold on the service, or ErrNoHold.
func (s *Store) Hold() (Hold, error) {
	data, err := readRecord(s.root, holdFile)
	if errors.Is(err, fs.ErrNotExist) {
		return Hold{}, ErrNoHold
	}
	var h Hold
	if err == nil {
		h, err = parseHold(data)
	}
	if err != nil {
		return Hold{}, fmt.Errorf("read hold: %w", err)
	}
	return h, nil
}

func parseHold(data []byte) (Hold, error) {
	var h Hold
	err := json.Unmarshal(data, &h)
	if err == nil && h.Schema < 1 {
		err = errors.New("no schema")
	}
	if err != nil {
		return Hold{}, hint(fmt.Errorf("%s: %w: %w", holdFile, ErrDamaged, err), "zdt hold NAME --off removes it")
	}
	return h, nil
}

// SetHold holds the service; who held it before is replaced.
func (s *Store) SetHold(h Hold) error {
	h.Schema = holdSchema
	if h.Since.IsZero() {
		h.Since = s.now().UTC()
	}
	data, err := json.MarshalIndent(h, "", "  ")
	if err == nil && len(data) >= maxRecord {
		err = fmt.Errorf("record has %d bytes, at most %d are allowed", len(data), maxRecord)
	}
	if err == nil {
		do := s.steps("hold")
		if err = do("sweep", func() error { return s.sweepTemps(holdFile) }); err == nil {
			err = atomicfile.WriteAt(s.root, holdFile, append(data, '\n'), 0o644, do)
		}
	}
	if err != nil {
		return fmt.Errorf("hold the service: %w", withSpaceHint(err, s.dir))
	}
	return nil
}

// ClearHold takes the hold away, and tells whether there was one.
func (s *Store) ClearHold() (was bool, err error) {
	do := s.steps("hold")
	err = do("remove", func() error {
		err := unix.Unlinkat(int(s.root.Fd()), holdFile, 0)
		if errors.Is(err, unix.ENOENT) {
			return nil
		}
		was = err == nil
		return err
	})
	if err == nil {
		err = do("fsync directory", s.root.Sync)
	}
	if err != nil {
		return was, fmt.Errorf("take the hold away: %w", err)
	}
	return was, nil
}
