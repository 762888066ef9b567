package release

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"
)

// What a release that is a whole directory may have, at most.
const (
	maxEntries   = 200_000
	maxTreeSize  = 16 << 30 // bytes of all files
	maxDepth     = 100      // directories in each other
	maxPath      = 4096 - 1 // PATH_MAX
	maxTarget    = 4096 - 1
	manifestHead = "zdt-manifest 1\n"
)

// An entry is a file, directory or symbolic link of a release, without what
// differs from copy to copy: owner, times, and all of the mode but whether it
// can be executed.
type entry struct {
	path   string // within the release, plain
	kind   entryKind
	exec   bool   // a file that can be executed
	size   int64  // of a file
	sum    string // SHA-256 of a file
	target string // of a link
}

type entryKind byte

const (
	kindFile entryKind = 'f'
	kindDir  entryKind = 'd'
	kindLink entryKind = 'l'
)

// encodeManifest is the text of the manifest, one line an entry, in the order of
// the paths. Its SHA-256 is the content address of the release: equal content
// has the same one, wherever it came from and in whatever order. Names are
// quoted in ASCII, for what is printable depends on the version of Unicode.
func encodeManifest(entries map[string]*entry) []byte {
	paths := make([]string, 0, len(entries))
	for p := range entries {
		paths = append(paths, p)
	}
	slices.Sort(paths)
	var b bytes.Buffer
	b.WriteString(manifestHead)
	for _, p := range paths {
		e := entries[p]
		switch e.kind {
		case kindFile:
			fmt.Fprintf(&b, "f %04o %d %s %s\n", fileMode(e.exec), e.size, e.sum, strconv.QuoteToASCII(p))
		case kindDir:
			fmt.Fprintf(&b, "d %s\n", strconv.QuoteToASCII(p))
		case kindLink:
			fmt.Fprintf(&b, "l %s %s\n", strconv.QuoteToASCII(e.target), strconv.QuoteToASCII(p))
		}
	}
	return b.Bytes()
}

// fileMode is the mode that files of a release have.
func fileMode(exec bool) uint32 {
	if exec {
		return programMode
	}
	return 0o444
}

func digest(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}

// differing is the first line that only one of two manifests has.
func differing(want, got []byte) string {
	w, g := strings.Split(string(want), "\n"), strings.Split(string(got), "\n")
	for i := range min(len(w), len(g)) {
		if w[i] != g[i] {
			return fmt.Sprintf("want %q, is %q", w[i], g[i])
		}
	}
	return fmt.Sprintf("want %d lines, are %d", len(w), len(g))
}

// entryPath checks the name of a member and returns it as a plain path, "" for
// the root itself.
func entryPath(name string) (string, error) {
	switch {
	case strings.HasPrefix(name, "/"):
		return "", errors.New("is an absolute path")
	case strings.ContainsRune(name, 0):
		return "", errors.New("has a NUL in its name")
	case len(name) > maxPath:
		return "", errors.New("has a name that is too long")
	}
	elems := splitPath(name)
	if slices.Contains(elems, "..") {
		return "", errors.New(`has ".." in its path`)
	}
	if len(elems) > maxDepth {
		return "", fmt.Errorf("lies more than %d directories deep", maxDepth)
	}
	if len(elems) == 1 && isReserved(elems[0]) {
		return "", errors.New("has a name that zdt uses itself")
	}
	return strings.Join(elems, "/"), nil
}

// checkTarget refuses targets that no release can have.
func checkTarget(target string) error {
	switch {
	case target == "":
		return errors.New("is a link to nothing")
	case strings.HasPrefix(target, "/"):
		return fmt.Errorf("is a link to %q, out of the release", target)
	case strings.ContainsRune(target, 0) || len(target) > maxTarget:
		return errors.New("is a link to what cannot be a path")
	}
	return nil
}

// errOutside: a link leads out of the release.
var errOutside = errors.New("leads out of the release")

// checkLinks refuses trees with a link that leads out. Text alone does not
// tell: in "a/../b" the ".." goes wherever a leads. So each is followed, as the
// kernel would.
func checkLinks(entries map[string]*entry) error {
	var paths []string
	for p, e := range entries {
		if e.kind == kindLink {
			paths = append(paths, p)
		}
	}
	slices.Sort(paths)
	for _, p := range paths {
		if _, err := resolve(entries, p); err != nil {
			return hint(fmt.Errorf("%q is a link to %q: %w", p, entries[p].target, err), "only relative links within the release are possible")
		}
	}
	return nil
}

// resolve follows p to the path of what it means, which need not exist.
func resolve(entries map[string]*entry, p string) (string, error) {
	at, rest, links := "", splitPath(p), 0
	for len(rest) > 0 {
		name := rest[0]
		rest = rest[1:]
		if name == ".." {
			if at == "" {
				return "", errOutside
			}
			if at = path.Dir(at); at == "." {
				at = ""
			}
			continue
		}
		next := path.Join(at, name)
		if e := entries[next]; e != nil && e.kind == kindLink {
			if links++; links > maxLinks {
				return "", errors.New("links lead in a circle")
			}
			rest = append(splitPath(e.target), rest...)
			continue
		}
		at = next
	}
	return at, nil
}

// findProgram returns the path of the main program, links resolved: asked, if
// given, else the file called name at the top or, if there is none, the only one
// of that name.
func findProgram(entries map[string]*entry, name, asked string) (string, error) {
	file := func(p string) (string, bool) {
		real, err := resolve(entries, p)
		if err != nil || entries[real] == nil || entries[real].kind != kindFile {
			return "", false
		}
		return real, true
	}
	if asked != "" {
		p, err := entryPath(asked)
		if err != nil {
			return "", fmt.Errorf("program %q %w", asked, err)
		}
		real, ok := file(p)
		if !ok {
			return "", hint(fmt.Errorf("there is no program %q in it", asked), "%s", inside(entries))
		}
		return real, nil
	}
	if real, ok := file(name); ok {
		return real, nil
	}
	var found []string
	for p, e := range entries {
		if path.Base(p) == name && e.kind == kindFile {
			found = append(found, p)
		}
	}
	slices.Sort(found)
	switch len(found) {
	case 0:
		return "", hint(fmt.Errorf("there is no program %q in it", name), "say with --exec which file it is; %s", inside(entries))
	case 1:
		return found[0], nil
	}
	return "", hint(fmt.Errorf("there are %d files called %q in it", len(found), name), "say with --exec which: %s", strings.Join(found[:min(len(found), 5)], ", "))
}

// inside names some programs of a tree, for a hint.
func inside(entries map[string]*entry) string {
	var programs []string
	for p, e := range entries {
		if e.kind == kindFile && e.exec {
			programs = append(programs, p)
		}
	}
	if len(programs) == 0 {
		return "no file in it can be executed"
	}
	slices.Sort(programs)
	more := ""
	if n := len(programs) - 5; n > 0 {
		programs, more = programs[:5], fmt.Sprintf(" and %d more", n)
	}
	return "programs in it: " + strings.Join(programs, ", ") + more
}

// soleDir is the directory that everything else lies in, as in archives that
// are made of a directory with a version in its name; "" if there is none.
func soleDir(entries map[string]*entry) string {
	sole := ""
	for p, e := range entries {
		if strings.Contains(p, "/") {
			continue
		}
		if sole != "" || e.kind != kindDir {
			return ""
		}
		sole = p
	}
	return sole
}

// below returns the entries of the directory dir by their paths from there.
func below(entries map[string]*entry, dir string) map[string]*entry {
	out := make(map[string]*entry, len(entries))
	for p, e := range entries {
		if rest, ok := strings.CutPrefix(p, dir+"/"); ok {
			c := *e
			c.path = rest
			out[rest] = &c
		}
	}
	return out
}
