package handoffcheck

import (
	"bytes"
	"debug/elf"
	"io"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// maxLibraries bounds how many shared libraries of a program are looked at, maxCache the size of ld.so.cache.
const (
	maxLibraries = 256
	maxCache     = 8 << 20
)

// A loader looks for shared libraries where ld.so(8) of the GNU C library does, and in more places: what it does not find is not
// there. Which of several it would take does not matter here.
type loader struct {
	tree
	cached []string // the files that ld.so.cache has
	dirs   []string
}

// newLoader reports false for a program that another dynamic loader starts, or none, and for a tree without a cache of that loader: musl's has
// none, although its tree may have a file of the loader's name.
func newLoader(t tree, interpreter string, dirs []string) (*loader, bool) {
	dir, name := filepath.Split(interpreter)
	if dir != "/lib/" && dir != "/lib64/" || !strings.HasPrefix(name, "ld-linux") {
		return nil, false
	}
	f, err := t.open("/etc/ld.so.cache", unix.O_RDONLY)
	if err != nil {
		return nil, false
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxCache))
	if err != nil || !bytes.Contains(data, []byte("glibc-ld.so.cache1.")) {
		return nil, false
	}
	l := &loader{tree: t, dirs: slices.Clone(dirs)}
	for text := range bytes.SplitSeq(data, []byte{0}) {
		if len(text) > 1 && text[0] == '/' {
			l.cached = append(l.cached, string(text))
			l.dirs = append(l.dirs, filepath.Dir(string(text)))
		}
	}
	for _, dir := range []string{"/lib", "/usr/lib", "/lib64", "/usr/lib64", "/lib/*-linux-gnu*", "/usr/lib/*-linux-gnu*"} {
		l.dirs = append(l.dirs, l.glob(dir)...)
	}
	slices.Sort(l.dirs)
	l.dirs = slices.Compact(l.dirs)
	return l, true
}

// glob expands a pattern for the last element of a path.
func (l *loader) glob(pattern string) []string {
	dir, name := filepath.Split(pattern)
	if !strings.Contains(name, "*") {
		return []string{pattern}
	}
	f, err := l.open(dir, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return nil
	}
	defer f.Close()
	names, _ := f.Readdirnames(-1)
	var all []string
	for _, n := range names {
		if ok, _ := filepath.Match(name, n); ok {
			all = append(all, filepath.Join(dir, n))
		}
	}
	return all
}

// missing are the libraries that a program, which lies in the directory origin, and the libraries that it needs do not find.
func (l *loader) missing(exe *elf.File, origin string) (none []string) {
	var seen []string
	l.needs(exe, origin, &seen, &none)
	return none
}

func (l *loader) needs(exe *elf.File, origin string, seen, none *[]string) {
	names, err := exe.ImportedLibraries()
	if err != nil {
		return
	}
	for _, tag := range []elf.DynTag{elf.DT_RPATH, elf.DT_RUNPATH} {
		paths, _ := exe.DynString(tag)
		for _, list := range paths {
			for dir := range strings.SplitSeq(list, ":") {
				dir, ok := expand(dir, origin)
				if !ok { // a place that is not known: anything may be there
					return
				}
				l.dirs = append(l.dirs, dir)
			}
		}
	}
	for _, name := range names {
		if slices.Contains(*seen, name) || len(*seen) >= maxLibraries {
			continue
		}
		*seen = append(*seen, name)
		path, ok := l.find(name, origin)
		switch {
		case !ok:
			*none = append(*none, name)
		case path != "":
			l.follow(path, seen, none)
		}
	}
}

// follow looks at what a library needs in turn.
func (l *loader) follow(path string, seen, none *[]string) {
	f, err := l.open(path, unix.O_RDONLY)
	if err != nil {
		return
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return
	}
	if exe, err := elf.NewFile(f); err == nil {
		l.needs(exe, filepath.Dir(path), seen, none)
	}
}

// find reports whether there is a library of the name, and which file, if it can be looked at.
func (l *loader) find(name, origin string) (path string, ok bool) {
	if strings.Contains(name, "/") {
		path, ok := expand(name, origin)
		if !ok || !filepath.IsAbs(path) {
			return "", true // from the working directory
		}
		return path, l.has(path)
	}
	for _, dir := range l.dirs {
		if path := filepath.Join(dir, name); l.has(path) {
			return path, true
		}
	}
	for _, path := range l.cached {
		if filepath.Base(path) == name && l.has(path) {
			return path, true
		}
	}
	return "", false
}

// expand replaces $ORIGIN. What else there may be, and what is relative, depends on the processor or the working directory.
func expand(dir, origin string) (string, bool) {
	for _, word := range []string{"$ORIGIN", "${ORIGIN}"} {
		dir = strings.ReplaceAll(dir, word, origin)
	}
	return filepath.Clean(dir), filepath.IsAbs(dir) && !strings.Contains(dir, "$")
}
