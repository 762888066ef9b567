package hooks

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/zdt-dev/zdt/internal/trustpath"
)

// Point is where in an upgrade hooks run; it is the name of their directory.
type Point string

const (
	PreUpgrade Point = "pre-upgrade" // before anything is changed
	PostListen Point = "post-listen" // the candidate is READY
	PreCommit  Point = "pre-commit"  // it has passed everything
	PostCommit Point = "post-commit" // it is the service
	Rollback   Point = "rollback"    // it was undone, and the old release serves
)

// Points returns all, in the order in which an upgrade meets them.
func Points() []Point { return []Point{PreUpgrade, PostListen, PreCommit, PostCommit, Rollback} }

// Vetoes reports whether a hook that fails there stops the upgrade. Where it is too late for that its failure is a
// warning.
func (p Point) Vetoes() bool { return p == PreUpgrade || p == PostListen || p == PreCommit }

// Hook is a program at a point.
type Hook struct {
	Point Point
	Path  string
}

// Name is the name of the file.
func (h Hook) Name() string { return filepath.Base(h.Path) }

// Set are the hooks of a service.
type Set map[Point][]Hook

// Root is where hooks lie: /etc/zdt/hooks.d, or the user's own with --user. It is "" if the user has no such place.
func Root(user bool) string {
	if !user {
		return "/etc/zdt/hooks.d"
	}
	dir, err := os.UserConfigDir() // XDG_CONFIG_HOME, or ~/.config
	if err != nil {
		return ""
	}
	return filepath.Join(dir, "zdt", "hooks.d")
}

// Find returns the hooks of the service below root, those of each point in the order in which they run: by name, of two with the
// same name first the one for all services. Nothing is there if root is not.
//
// It fails if anybody but root or the caller could have put or changed something there, and when there is something that would
// never run without a word: a directory that is no point, a program beside the directories.
func Find(root, service string) (Set, error) {
	set, err := find(root, service)
	if err != nil {
		return nil, fmt.Errorf("find the hooks of %s: %w", service, err)
	}
	return set, nil
}

func find(root, service string) (Set, error) {
	set := Set{}
	if root == "" {
		return set, nil
	}
	if service == "" || strings.ContainsAny(service, "/\x00") {
		return nil, fmt.Errorf("%q is no service", service)
	}
	names, err := trustpath.Names(root)
	if errors.Is(err, fs.ErrNotExist) {
		return set, nil
	}
	if err != nil {
		return nil, err
	}
	own := []string{service + ".d"}
	if template, _, found := strings.Cut(service, "@"); found {
		own = []string{template + "@.d", service + ".d"} // what is for all of its instances first
	}
	for _, name := range names {
		switch {
		case ignored(name), strings.HasSuffix(name, ".d"):
		case !slices.Contains(Points(), Point(name)):
			return nil, stray(filepath.Join(root, name))
		default:
			if err := set.add(Point(name), filepath.Join(root, name)); err != nil {
				return nil, err
			}
		}
	}
	for _, dir := range own {
		if err := set.service(filepath.Join(root, dir)); err != nil {
			return nil, err
		}
	}
	for _, hooks := range set {
		slices.SortStableFunc(hooks, func(a, b Hook) int { return strings.Compare(a.Name(), b.Name()) })
	}
	return set, nil
}

// service adds what is for one service only.
func (s Set) service(dir string) error {
	names, err := trustpath.Names(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, name := range names {
		switch {
		case ignored(name):
		case !slices.Contains(Points(), Point(name)):
			return stray(filepath.Join(dir, name))
		default:
			if err := s.add(Point(name), filepath.Join(dir, name)); err != nil {
				return err
			}
		}
	}
	return nil
}

// add adds the programs of one directory.
func (s Set) add(point Point, dir string) error {
	names, err := trustpath.Names(dir)
	if err != nil {
		return err
	}
	for _, name := range names {
		if ignored(name) {
			continue
		}
		path := filepath.Join(dir, name)
		err := trustpath.Program(path)
		if errors.Is(err, trustpath.ErrNotExecutable) {
			continue // chmod -x switches it off
		}
		if err != nil {
			return err
		}
		s[point] = append(s[point], Hook{point, path})
	}
	return nil
}

func stray(path string) error {
	var points []string
	for _, p := range Points() {
		points = append(points, string(p))
	}
	return fmt.Errorf("%s would never run: a hook is a program in a directory with the name of its point, which is one of %s", path, strings.Join(points, ", "))
}

// ignored reports whether the name is one that editors and package managers leave beside a file, or a note for readers.
func ignored(name string) bool {
	if strings.HasPrefix(name, ".") || strings.HasPrefix(name, "README") || strings.HasSuffix(name, "~") || strings.Contains(name, ".dpkg-") || strings.Contains(name, ".ucf-") {
		return true
	}
	return slices.Contains([]string{".bak", ".orig", ".old", ".swp", ".tmp", ".rpmsave", ".rpmnew", ".rpmorig"}, filepath.Ext(name))
}
