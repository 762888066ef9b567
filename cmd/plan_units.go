package cmd

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/zdt-dev/zdt/dbusctl"
	"github.com/zdt-dev/zdt/release"
	"github.com/zdt-dev/zdt/unitgen"
)

// A diskFile is a file of a unit as it is on the disk now.
type diskFile struct {
	path string
	data []byte
	// changed is when it was last written or put there, whichever is later: tools that install files set the first to what
	// they like, nobody can set the second (ctime).
	changed time.Time
	private bool // not everybody may read it
}

// A diskUnit is a unit as systemd would read it now.
type diskUnit struct {
	unit  dbusctl.Unit // as systemd has it
	files []diskFile   // the fragment, and then the drop-ins in their order
	dirs  time.Time    // when a drop-in was last added to its directories, or taken away
}

// unitsNow are the service and its sockets, with their files.
func (s *site) unitsNow(ctx context.Context) (units []diskUnit, load dbusctl.Load, err error) {
	sd, err := s.bus(ctx)
	if err != nil {
		return nil, load, err
	}
	if l, ok := sd.(interface {
		Load(context.Context) (dbusctl.Load, error)
	}); ok {
		if load, err = l.Load(ctx); err != nil {
			return nil, load, err
		}
	}
	u, err := sd.Unit(ctx, s.unit)
	if err != nil {
		return nil, load, err
	}
	names := slices.DeleteFunc(slices.Clone(u.TriggeredBy), func(name string) bool { return !strings.HasSuffix(name, ".socket") })
	slices.Sort(names)
	all := []dbusctl.Unit{u}
	for _, name := range names {
		socket, err := sd.Unit(ctx, name)
		if err != nil && !errors.Is(err, dbusctl.ErrNoUnit) {
			return nil, load, err
		}
		all = append(all, socket)
	}
	for _, u := range all {
		d, err := readUnit(u, load.Path)
		if err != nil {
			return nil, load, fmt.Errorf("read the files of %s: %w", u.Name, err)
		}
		units = append(units, d)
	}
	return units, load, nil
}

// readUnit finds the files of a unit below the directories path, the most important first, where systemd looks for
// them (unit_file_find_dropin_paths in its sources). Without directories it goes by what systemd has read.
func readUnit(u dbusctl.Unit, path []string) (diskUnit, error) {
	d := diskUnit{unit: u}
	fragment := u.FragmentPath
	for _, dir := range path {
		if _, err := os.Stat(filepath.Join(dir, u.Name)); err == nil {
			fragment = filepath.Join(dir, u.Name)
			break
		}
	}
	dropIns := u.DropInPaths
	if len(path) > 0 {
		dropIns = nil
		found := map[string]string{} // the first one of a name hides the others
		for _, dir := range path {
			for _, name := range dropInDirs(u.Name) {
				full := filepath.Join(dir, name)
				entries, err := os.ReadDir(full)
				if err != nil {
					continue // there is none
				}
				if t, err := changedAt(full); err == nil && t.After(d.dirs) {
					d.dirs = t
				}
				for _, e := range entries {
					if _, hidden := found[e.Name()]; !hidden && strings.HasSuffix(e.Name(), ".conf") {
						found[e.Name()] = filepath.Join(full, e.Name())
					}
				}
			}
		}
		var names []string
		for name := range found {
			names = append(names, name)
		}
		slices.Sort(names)
		for _, name := range names {
			dropIns = append(dropIns, found[name])
		}
	}
	for _, p := range append([]string{fragment}, dropIns...) {
		if p == "" {
			continue
		}
		f, err := readUnitFile(p)
		if errors.Is(err, fs.ErrNotExist) {
			continue // gone since; that it is missed tells
		}
		if err != nil {
			return d, err
		}
		d.files = append(d.files, f)
	}
	return d, nil
}

// dropInDirs are the names of the directories with drop-ins of a unit, the most particular first (systemd.unit(5)).
func dropInDirs(unit string) []string {
	ext := filepath.Ext(unit)
	name := strings.TrimSuffix(unit, ext)
	dirs := []string{unit + ".d"}
	if template, _, ok := strings.Cut(name, "@"); ok {
		dirs = append(dirs, template+"@"+ext+".d")
		name = template
	}
	for i := len(name) - 1; i > 0; i-- {
		if name[i-1] == '-' {
			dirs = append(dirs, name[:i]+ext+".d")
		}
	}
	return append(dirs, strings.TrimPrefix(ext, ".")+".d")
}

// maxUnitFile bounds what is read of one file, bytes.
const maxUnitFile = 1 << 20

func readUnitFile(path string) (diskFile, error) {
	f := diskFile{path: path}
	info, err := os.Stat(path)
	if err != nil {
		return f, err
	}
	if !info.Mode().IsRegular() { // a link to /dev/null, which hides others of its name
		f.changed, err = changedAt(path)
		return f, err
	}
	if info.Size() > maxUnitFile {
		return f, fmt.Errorf("%s is larger than %d bytes", path, maxUnitFile)
	}
	if f.changed, err = changedAt(path); err != nil {
		return f, err
	}
	f.private = info.Mode()&0o004 == 0
	f.data, err = os.ReadFile(path)
	return f, err
}

// grain is how far the times of files may lie behind: the kernel stamps them with the time of its last tick, at least 100 of
// which make a second.
const grain = 10 * time.Millisecond

// before reports whether a file that was changed at t certainly was so before the moment.
func before(t, moment time.Time) bool { return t.Add(grain).Before(moment) }

// changedAt is when a file was last written, or put where it is: of a link also when the link was.
func changedAt(path string) (time.Time, error) {
	var newest time.Time
	for _, stat := range []func(string, *unix.Stat_t) error{unix.Lstat, unix.Stat} {
		var st unix.Stat_t
		if err := stat(path, &st); err != nil {
			return newest, &fs.PathError{Op: "stat", Path: path, Err: err}
		}
		for _, ts := range []unix.Timespec{st.Mtim, st.Ctim} {
			if st.Mode&unix.S_IFMT == unix.S_IFCHR {
				continue // /dev/null
			}
			if t := time.Unix(ts.Unix()); t.After(newest) {
				newest = t
			}
		}
	}
	return newest, nil
}

// read reports whether systemd has read the file as it is.
func (d diskUnit) read(path string, load dbusctl.Load) bool {
	if path != d.unit.FragmentPath && !slices.Contains(d.unit.DropInPaths, path) {
		// It is none of the unit's files any more, or not yet.
		return !slices.ContainsFunc(d.files, func(f diskFile) bool { return f.path == path })
	}
	for _, f := range d.files {
		if f.path == path {
			return load.At.IsZero() && !d.unit.NeedDaemonReload || before(f.changed, load.At)
		}
	}
	return false // gone from the disk, and systemd has it still
}

// current reports whether systemd has read all files as they are.
func (d diskUnit) current(load dbusctl.Load) bool {
	for _, f := range d.files {
		if !d.read(f.path, load) {
			return false
		}
	}
	for _, path := range append([]string{d.unit.FragmentPath}, d.unit.DropInPaths...) {
		if path != "" && !d.read(path, load) {
			return false
		}
	}
	return !d.unit.NeedDaemonReload
}

// startedAfter is a moment after which the service was started, as late as systemd lets it be known. Nothing that
// was changed before is unknown to its processes. An automatic restart leaves the moment of the first start as it was, but
// notes the end before.
func startedAfter(u dbusctl.Unit) time.Time {
	t := u.InactiveExit
	if u.ActiveExit.After(t) && u.ActiveExit.Before(u.ActiveEnter) {
		t = u.ActiveExit
	}
	return t
}

// environmentFiles are the files of EnvironmentFile=. One with a specifier (%i) is nobody's guess.
func environmentFiles(d diskUnit) []string {
	var paths []string
	for _, p := range unitgen.EnvironmentFiles(texts(d.files)) {
		if strings.Contains(p, "%") || !filepath.IsAbs(p) {
			continue
		}
		found := []string{p}
		if strings.ContainsAny(p, "*?[") {
			found, _ = filepath.Glob(p)
		}
		paths = append(paths, found...)
	}
	return paths
}

func texts(files []diskFile) []unitgen.File {
	var out []unitgen.File
	for _, f := range files {
		out = append(out, unitgen.File{Name: filepath.Base(f.path), Path: f.path, Data: f.data})
	}
	return out
}

func textsOf(units []diskUnit) []unitgen.UnitText {
	var out []unitgen.UnitText
	for _, d := range units {
		out = append(out, unitgen.UnitText{Unit: d.unit.Name, Files: texts(d.files)})
	}
	return out
}

// sumFile is the checksum of a file and whether not everybody may read it.
func sumFile(path string) (sum string, private bool, err error) {
	f, err := readUnitFile(path)
	if err != nil {
		return "", false, err
	}
	h := sha256.Sum256(f.data)
	return hex.EncodeToString(h[:]), f.private, nil
}

// noteUnits keeps the text of the units, if it can be told that the service was started with it and this was not done
// before. Only who owns the store can; that it could not be done is no reason for anything to fail.
func (s *site) noteUnits(ctx context.Context) {
	if s.f.euid != 0 && !s.f.globals.user {
		return
	}
	u, err := s.ask(ctx)
	if err != nil {
		return
	}
	if old, err := s.store.Snapshot(); err == nil && old.Invocation == u.InvocationID {
		return
	}
	units, load, err := s.unitsNow(ctx)
	if err != nil {
		return
	}
	if snap, private, ok := snapshotOf(units, load); ok {
		if err := s.store.SetSnapshot(snap, private); err != nil {
			s.f.say("%s %v", s.f.errStyle().note.Render("note:"), err)
		}
	}
}

// noteStart is noteUnits for a service that was just started.
func (f *factory) noteStart(ctx context.Context, name string) {
	s, err := f.openSite(ctx, name)
	if err != nil {
		return
	}
	defer s.close()
	s.noteUnits(ctx)
}

// snapshotOf is the text with which the service was started, if that is what the disk has: nothing was changed since, and
// systemd has read it all.
func snapshotOf(units []diskUnit, load dbusctl.Load) (snap release.Snapshot, private, ok bool) {
	u := units[0].unit
	started := startedAfter(u)
	if u.InvocationID == "" || u.MainPID == 0 || started.IsZero() {
		return snap, false, false
	}
	snap.Invocation = u.InvocationID
	for _, d := range units {
		if !d.current(load) || !before(d.dirs, started) {
			return snap, false, false
		}
		unit := release.SnapshotUnit{Unit: d.unit.Name}
		for _, f := range d.files {
			if !before(f.changed, started) {
				return snap, false, false
			}
			private = private || f.private
			unit.Files = append(unit.Files, release.SnapshotFile{Path: f.path, Text: string(f.data)})
		}
		snap.Units = append(snap.Units, unit)
	}
	for _, path := range environmentFiles(units[0]) {
		if t, err := changedAt(path); err != nil || !before(t, started) {
			continue // it is told by its time
		}
		sum, secret, err := sumFile(path)
		if err != nil {
			continue
		}
		private = private || secret
		snap.EnvironmentFiles = append(snap.EnvironmentFiles, release.SnapshotFile{Path: path, SHA256: sum})
	}
	return snap, private, true
}
