package cmd

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/zdt-dev/zdt/dbusctl"
	"github.com/zdt-dev/zdt/handoffcheck"
	"github.com/zdt-dev/zdt/release"
	"github.com/zdt-dev/zdt/unitgen"
)

// initPlan is everything zdt init is going to do, found out before any of it
// is done.
type initPlan struct {
	spec     unitgen.Spec
	paths    Paths
	source   string                          // the program, or a directory or an archive with it, absolute
	stage    map[string]release.StageOptions // of those in empty
	files    []unitgen.File                  // as they should be
	old      []unitgen.File                  // as they are
	changes  []unitgen.Change                // from old to files
	save     []string                        // paths of files that a person wrote and that are kept as copies
	services []string                        // the names: one, or the instances of a template
	current  *releaseStatus                  // of the first that has one; nil: none yet
	empty    []string                        // services without a release: the source is to be imported
	disable  []string                        // socket units that go
	enable   []string
	start    []string
	reload   bool // systemd has to read the units again
	running  bool // the service runs already
	offline  bool // --root: no systemd to talk to
	notes    []note
	bus      systemd // nil when offline
	complete bool    // nothing above is missing

	changed bool // apply did something
	txid    string
}

func (p *initPlan) close() {
	if p.bus != nil {
		p.bus.Close()
	}
}

func (p *initPlan) note(id, next, format string, args ...any) {
	p.notes = append(p.notes, note{ID: id, Text: fmt.Sprintf(format, args...), Next: next})
}

// planInit finds out what there is and what has to be done. The error with a
// complete plan is a refusal of it.
func (f *factory) planInit(ctx context.Context, o initOptions) (*initPlan, error) {
	paths, err := f.paths()
	if err != nil {
		return nil, err
	}
	p := &initPlan{paths: paths, offline: paths.Root != ""}
	if o.Zdt, err = f.reloadProgram(o.Zdt, p.offline); err != nil {
		return nil, err
	}
	if p.spec, err = o.spec(paths, f.globals.user); err != nil {
		return nil, err
	}
	if err := p.chooseInstances(o); err != nil {
		return nil, err
	}
	if p.source, err = filepath.Abs(o.Exec); err != nil {
		return nil, fmt.Errorf("find %s: %w", o.Exec, err)
	}
	if err := handoffcheck.Blockers(handoffcheck.Candidate(p.source)); err != nil {
		return nil, fail(ExitRefused, hintOf(err), "%w", err)
	}
	tree, err := release.IsTree(ctx, p.source)
	switch {
	case err != nil:
		return nil, refused(err)
	case !tree && o.Program != "":
		return nil, fail(ExitRefused, "leave --program out", "--program is for directories and archives, and %s is a file", p.source)
	case tree && o.Program != "":
		p.spec.Exec = programName(o.Name, o.Program)
	case tree:
		p.spec.Exec = o.Name
	}
	if !o.DryRun && !p.offline && !f.globals.user && f.euid != 0 {
		return nil, fail(ExitNotAuthorised, "run it with sudo, or look first with --dry-run", "init: only root may install system services")
	}
	if err := p.readStores(); err != nil {
		return nil, err
	}
	if !p.offline {
		if p.bus, err = f.dialSystemd(ctx, f.globals.user); err != nil && !o.DryRun {
			return nil, err
		}
		if p.bus == nil {
			p.note("no-systemd", "", "systemd cannot be reached: units are shown as the oldest supported version would read them")
		} else if p.spec.SystemdVersion, _, err = p.bus.Version(ctx); err != nil {
			return p, err
		}
	}
	if p.files, err = unitgen.Generate(p.spec); err != nil {
		return p, err
	}
	if err := p.readUnits(); err != nil {
		return p, err
	}
	p.changes = unitgen.Diff(p.old, p.files)
	if err := p.verify(ctx, f.globals.user); err != nil {
		return p, err
	}
	if p.bus != nil {
		if err := p.askSystemd(ctx, o); err != nil {
			return p, err
		}
	}
	for _, name := range p.empty {
		if err := p.planImport(ctx, f, o, name); err != nil {
			return p, err
		}
	}
	if err := p.planReconcile(ctx, o.Zdt); err != nil {
		return p, err
	}
	if o.ServiceUser == "" && !o.DynamicUser && !f.globals.user {
		p.note("root", "better: --dynamic-user, or --service-user U", "the service will run as root, though without root's capabilities")
	}
	p.complete = true
	return p, p.refuse(f, o)
}

// reloadProgram finds the zdt that the unit is to run, and makes sure that
// nobody less than root can replace it: systemd would run the replacement as
// the service's user.
func (f *factory) reloadProgram(path string, offline bool) (string, error) {
	given := path != ""
	if !given {
		exe, err := f.executable()
		if err != nil {
			return "", fmt.Errorf("find zdt's own path: %w", err)
		}
		path = exe
	}
	if !filepath.IsAbs(path) {
		return "", usage("give the whole path, as in --zdt /usr/local/bin/zdt", "--zdt: %q is not an absolute path", path)
	}
	const hint = "install it for all: install -m 0755 zdt /usr/local/bin/zdt, and run that one (or say --zdt FILE)"
	for _, hidden := range []string{"/home/", "/root/", "/run/user/", "/tmp/", "/var/tmp/", "/dev/"} {
		if !f.globals.user && strings.HasPrefix(path, hidden) {
			return "", fail(ExitRefused, hint, "the unit could not run %s: its sandbox (ProtectHome=, PrivateTmp=) hides %s", path, strings.TrimSuffix(hidden, "/"))
		}
	}
	if offline {
		return path, nil
	}
	for at := path; ; at = filepath.Dir(at) {
		var st syscall.Stat_t
		if err := syscall.Stat(at, &st); err != nil {
			return "", fail(ExitRefused, hint, "look at %s, which the unit is to run: %w", path, &fs.PathError{Op: "stat", Path: at, Err: err})
		}
		owner := st.Uid == 0 || f.globals.user && int(st.Uid) == f.euid
		writable := st.Mode&0o002 != 0 || at == path && st.Mode&0o020 != 0
		if !owner || writable && st.Mode&syscall.S_ISVTX == 0 {
			return "", fail(ExitRefused, hint, "the unit must not run %s: others than root can change %s", path, at)
		}
		if at == "/" {
			return path, nil
		}
	}
}

// readStores looks for committed releases. What is there stays.
func (p *initPlan) readStores() error {
	for _, name := range p.services {
		if err := p.readStore(name); err != nil {
			return err
		}
	}
	return nil
}

func (p *initPlan) readStore(name string) error {
	store, err := release.Open(p.paths.disk(p.paths.StateDir(name)), release.Options{})
	if errors.Is(err, fs.ErrNotExist) {
		p.empty = append(p.empty, name)
		return nil
	}
	if err != nil {
		return fmt.Errorf("open release store: %w", err)
	}
	defer store.Close()
	r, err := store.Current()
	if errors.Is(err, release.ErrNoCurrent) {
		p.empty = append(p.empty, name)
		return nil
	}
	if err != nil {
		return fail(ExitRefused, hintOf(err), "read current release: %w", err)
	}
	if p.current == nil {
		p.current = describeRelease(r)
		p.spec.Exec = r.Program // ExecStart= goes on naming what the releases hold
	}
	if r.Program != p.spec.Exec {
		return fail(ExitRefused, "a template has one name for the program: move "+p.paths.StateDir(name)+" away", "the program of %s is called %s, and not %s", name, r.Program, p.spec.Exec)
	}
	if fi, err := os.Stat(p.source); err == nil && fi.IsDir() {
		return nil // what it would become is known only when all of it is copied
	}
	sum, err := fileSum(p.source)
	if err != nil {
		return fail(ExitRefused, "", "read %s: %w", p.source, err)
	}
	told := slices.ContainsFunc(p.notes, func(n note) bool { return n.ID == "other-program" }) // of another instance
	if sum != r.SHA256 && (r.Archive == nil || sum != r.Archive.SHA256) && !told {
		p.note("other-program", "zdt upgrade "+p.spec.Name+" --binary "+p.source, "%s is not the current release; init leaves that as it is, to deploy it:", p.source)
	}
	return nil
}

func fileSum(path string) (string, error) {
	file, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer file.Close()
	h := sha256.New()
	if _, err := io.Copy(h, file); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// readUnits reads the unit files there are: those in the way of new ones, and
// socket units of this service that the flags no longer mention.
func (p *initPlan) readUnits() error {
	dir := p.paths.disk(p.paths.Units)
	var names []string
	for _, f := range p.files {
		names = append(names, f.Name)
	}
	pattern := p.spec.Name + ".*socket"
	if prefix, ok := strings.CutSuffix(p.spec.Name, "@"); ok {
		pattern = prefix + "*@.socket"
	}
	more, err := filepath.Glob(filepath.Join(dir, pattern))
	if err != nil {
		return err
	}
	for _, m := range more {
		if n := filepath.Base(m); !slices.Contains(names, n) {
			names = append(names, n)
		}
	}
	for _, name := range names {
		path := filepath.Join(dir, name)
		fi, err := os.Lstat(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err == nil && !fi.Mode().IsRegular() {
			return fail(ExitRefused, "look at it (ls -l "+path+") and take it away", "%s is not a regular file: a mask or an alias?", path)
		}
		data, rerr := os.ReadFile(path)
		if err := errors.Join(err, rerr); err != nil {
			return fmt.Errorf("read unit: %w", err)
		}
		expected := slices.ContainsFunc(p.files, func(f unitgen.File) bool { return f.Name == name })
		if !expected && unitgen.Inspect(data).Name != p.spec.Name {
			continue // somebody else's unit
		}
		p.old = append(p.old, unitgen.File{Name: name, Path: filepath.Join(p.paths.Units, name), Mode: fi.Mode().Perm(), Data: data})
	}
	return nil
}

// askSystemd finds out which units have to be enabled, started and stopped.
func (p *initPlan) askSystemd(ctx context.Context, o initOptions) error {
	p.reload = len(p.changes) > 0
	var units []string
	for _, unit := range p.units() {
		name := unit.name
		units = append(units, name)
		u, err := p.bus.Unit(ctx, name)
		if err != nil && !errors.Is(err, dbusctl.ErrNoUnit) {
			return err
		}
		want := filepath.Join(p.paths.Units, unit.file)
		switch {
		case u.LoadState == "masked":
			return fail(ExitRefused, "systemctl unmask "+name, "%s is masked", name)
		case u.FragmentPath != "" && u.FragmentPath != want && !o.Force:
			return fail(ExitRefused, "choose another NAME; --force puts zdt's unit in front of it", "%s exists already, from %s, and not by zdt", name, u.FragmentPath)
		}
		p.reload = p.reload || u.NeedDaemonReload
		if u.UnitFileState != "enabled" {
			p.enable = append(p.enable, name)
		}
		active := u.ActiveState == "active" || u.ActiveState == "reloading"
		if o.Start && !active {
			p.start = append(p.start, name)
		}
		if unit.service != "" {
			p.running = p.running || active
		}
	}
	for _, c := range p.changes {
		if c.Kind == unitgen.Remove {
			p.disable = append(p.disable, p.instantiated(filepath.Base(c.Path))...)
		}
	}
	if p.running && len(p.changes) > 0 {
		p.note("restart", "systemctl restart "+strings.Join(units, " "), "the service runs with its old settings until it is restarted; a handoff does not apply them:")
	}
	return nil
}

// refuse says which of the changes need a person's word first.
func (p *initPlan) refuse(f *factory, o initOptions) error {
	var touched, removed []string
	for _, c := range p.changes {
		if c.Kind != unitgen.Create && c.Before != unitgen.Generated {
			touched = append(touched, c.Path+" ("+c.Before.String()+")")
			p.save = append(p.save, c.Path)
		}
		if c.Kind == unitgen.Remove {
			removed = append(removed, filepath.Base(c.Path))
		}
	}
	switch {
	case o.Force:
		return nil
	case len(touched) > 0:
		return fail(ExitRefused, "keep changes in a drop-in ("+f.systemctl()+" edit "+p.spec.ServiceUnit()+"); --force overwrites and keeps a copy",
			"init would overwrite what a person wrote: %s", strings.Join(touched, ", "))
	case len(removed) > 0:
		return fail(ExitRefused, "repeat all --listen flags; --force removes the sockets and closes their ports",
			"init would remove %s, which no --listen mentions", strings.Join(removed, ", "))
	}
	return nil
}

// pending says whether there is anything to do.
func (p *initPlan) pending() bool { return len(p.steps()) > 0 }
