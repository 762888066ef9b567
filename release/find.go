package release

import (
	"errors"
	"fmt"
	"strings"
)

// ErrAmbiguous: what names a release fits several.
var ErrAmbiguous = errors.New("fits several releases")

// minRef is the least number of characters that name a release.
const minRef = 4

// Find returns the release that ref names: its ID, or the beginning of its ID or
// of its checksum, if that fits only one. A release that is there but not usable
// is returned with an error, as by Get.
func (s *Store) Find(ref string) (Release, error) {
	ref = strings.TrimSpace(ref)
	if ValidID(ref) {
		r, err := s.Get(ref)
		if errors.Is(err, ErrNoRelease) {
			err = hint(err, "zdt releases lists those that are there")
		}
		return r, err
	}
	if len(ref) < minRef {
		return Release{}, hint(fmt.Errorf("release %q: %w", ref, ErrNoRelease), "give at least %d characters of its ID", minRef)
	}
	list, err := s.List()
	if err != nil {
		return Release{}, fmt.Errorf("find release %q: %w", ref, err)
	}
	var found []Release
	for _, r := range list {
		_, sum, _ := strings.Cut(r.ID, "-")
		lower := strings.ToLower(strings.TrimPrefix(ref, "sha256:"))
		if strings.HasPrefix(r.ID, ref) || strings.HasPrefix(sum, lower) || r.SHA256 != "" && strings.HasPrefix(r.SHA256, lower) {
			found = append(found, r)
		}
	}
	switch len(found) {
	case 0:
		return Release{}, hint(fmt.Errorf("release %q: %w", ref, ErrNoRelease), "zdt releases lists those that are there")
	case 1:
		return found[0], found[0].Damage
	}
	var ids []string
	for _, r := range found[:min(len(found), 5)] {
		ids = append(ids, r.ID)
	}
	return Release{}, hint(fmt.Errorf("release %q %w: %d", ref, ErrAmbiguous, len(found)), "name one of them in full: %s", strings.Join(ids, ", "))
}
