package guest

import (
	"context"
	"crypto/sha256"
	_ "embed"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// Image names a root file system by the Debian suite it is made from.
type Image string

// The plain images. Together they cover the oldest systemd zdt supports and a current one.
const (
	Bookworm Image = "bookworm" // Debian 12, systemd 252
	Trixie   Image = "trixie"   // Debian 13, systemd 257
)

// Images returns the plain images, oldest systemd first.
func Images() []Image { return []Image{Bookworm, Trixie} }

// Systemd returns the major version of the image's systemd, as a number.
func (i Image) Systemd() int {
	switch i {
	case Bookworm, BookwormPrograms:
		return 252
	case Trixie, TrixiePrograms, TrixieServices:
		return 257
	}
	return 0
}

// String returns the name that tests show, such as "systemd-252", "systemd-252-programs" or "systemd-257-services".
func (i Image) String() string {
	name := fmt.Sprintf("systemd-%d", i.Systemd())
	switch {
	case i == TrixieServices:
		name += "-services"
	case i.plain() != "":
		name += "-programs"
	}
	return name
}

// packages is what an image holds beyond debootstrap's minbase. Changing it makes a new image.
const packages = "systemd,systemd-sysv,dbus,dbus-user-session,libpam-systemd,iproute2,procps,polkitd,socat"

// User is the unprivileged account that every image has, for the tests of user managers and of polkit.
const (
	User    = "op"
	UserUID = 1000
)

//go:embed image.sh
var imageScript string

// staleImage is how long an image of another version may lie unused before building a new one removes it. Not at
// once: two checkouts with different package lists may be under test on one machine.
const staleImage = 14 * 24 * time.Hour

// Store keeps the images in one directory of the host.
type Store struct {
	Dir  string                           // where the images live; created when missing, readable by root only
	Logf func(format string, args ...any) // told before something slow starts; may be nil
}

// DefaultDir is the store's directory unless a program chooses another: $ZDT_CACHE/guest or /var/cache/zdt/guest.
func DefaultDir() string {
	cache := os.Getenv("ZDT_CACHE")
	if cache == "" {
		cache = "/var/cache/zdt"
	}
	return filepath.Join(cache, "guest")
}

// Ensure returns the directory of the image, and builds it first when it is missing: about a minute, once per machine.
// An image never changes after it has appeared, because guests have it as the lower layer of their root; one made from
// another package list is another directory. Any number of processes may call Ensure at once, and one of them builds.
func (s Store) Ensure(ctx context.Context, image Image) (string, error) {
	if image.Systemd() == 0 {
		return "", fmt.Errorf("no image named %q", string(image))
	}
	root := filepath.Join(s.Dir, string(image)+"-"+image.version())
	if s.use(root) {
		return root, nil
	}
	var plain string
	if image.plain() != "" {
		var err error
		if plain, err = s.Ensure(ctx, image.plain()); err != nil {
			return "", err
		}
	}
	// 0700, because the image has set-user-ID programs that nobody will ever update.
	if err := os.MkdirAll(s.Dir, 0o700); err != nil {
		return "", fmt.Errorf("make image directory: %w", err)
	}
	unlock, err := lock(ctx, filepath.Join(s.Dir, ".lock-"+string(image)))
	if err != nil {
		return "", fmt.Errorf("lock image %s: %w", string(image), err)
	}
	defer unlock()
	if s.use(root) { // somebody else built it while this process waited
		return root, nil
	}
	s.removeStale(image)
	s.logf("building the %s image in %s (about a minute, once)", image, root)
	if err := s.build(ctx, image, plain, root); err != nil {
		return "", fmt.Errorf("build image %s: %w", string(image), err)
	}
	return root, nil
}

// use tells whether the image exists, and marks it as recently used.
func (s Store) use(root string) bool {
	if _, err := os.Stat(root); err != nil {
		return false
	}
	now := time.Now()
	// A read-only cache is no reason to refuse a good image.
	_ = os.Chtimes(root, now, now)
	return true
}

// build makes the image in a directory beside root and renames it into place when it is complete. plain is the
// directory of the image to begin with; "" for none.
func (s Store) build(ctx context.Context, image Image, plain, root string) error {
	tmp, err := os.MkdirTemp(s.Dir, ".build-"+string(image)+"-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	if plain != "" {
		err = s.addPrograms(ctx, image, plain, tmp)
	} else {
		err = s.bootstrap(ctx, image, tmp)
	}
	if err != nil {
		return err
	}
	if err := os.Chmod(tmp, 0o755); err != nil {
		return err
	}
	return os.Rename(tmp, root)
}

// bootstrap makes dir a plain image.
func (s Store) bootstrap(ctx context.Context, image Image, dir string) error {
	if err := s.debootstrap(ctx, image, dir); err != nil {
		return err
	}
	if out, err := runTool(ctx, "chroot", dir, "/bin/sh", "-c", imageScript, "image.sh", User, fmt.Sprint(UserUID)); err != nil {
		return fmt.Errorf("configure: %w\n%s", err, lastLines(out, 20))
	}
	return nil
}

// removeStale removes what builders that were killed left behind, and the versions of this image that nobody has used
// for a while. The caller holds the image's lock, so no build is under way.
func (s Store) removeStale(image Image) {
	old, _ := filepath.Glob(filepath.Join(s.Dir, string(image)+"-*"))
	for _, dir := range old {
		if info, err := os.Stat(dir); err == nil && time.Since(info.ModTime()) > staleImage {
			s.remove(dir)
		}
	}
	builds, _ := filepath.Glob(filepath.Join(s.Dir, ".build-"+string(image)+"-*"))
	for _, dir := range builds {
		s.remove(dir)
	}
}

func (s Store) remove(dir string) {
	if err := os.RemoveAll(dir); err != nil && !os.IsNotExist(err) {
		s.logf("leaving %s behind: %v", dir, err)
	}
}

func (s Store) logf(format string, args ...any) {
	if s.Logf != nil {
		s.Logf("guest: "+format, args...)
	}
}

// version identifies everything that goes into the image except the archive's own progress.
func (i Image) version() string {
	parts := []string{string(i), packages, imageScript}
	if i.plain() != "" {
		parts = i.programsVersion()
	}
	sum := sha256.Sum256([]byte(strings.Join(parts, "\x00")))
	return hex.EncodeToString(sum[:6])
}

// lastLines returns at most n lines from the end of a tool's output, and says how many it left out.
func lastLines(out string, n int) string {
	lines := strings.Split(strings.TrimRight(out, "\n"), "\n")
	if len(lines) <= n {
		return strings.Join(lines, "\n")
	}
	cut := len(lines) - n
	return fmt.Sprintf("[%d lines cut]\n%s", cut, strings.Join(lines[cut:], "\n"))
}
