package cmd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/zdt-dev/zdt/dbusctl"
	"github.com/zdt-dev/zdt/handoffcheck"
	"github.com/zdt-dev/zdt/internal/fdstore"
	"github.com/zdt-dev/zdt/release"
	"github.com/zdt-dev/zdt/unitgen"
)

// adoptPlan is everything that zdt adopt, or its undoing, is going to do, found out before any of it is done.
type adoptPlan struct {
	name, unit string
	paths      Paths
	bus        systemd
	u          dbusctl.Unit
	props      handoffcheck.Unit
	old        []unitgen.File    // the unit and its drop-ins without those of zdt adopt
	settings   []unitgen.Setting // of old
	sockets    []dbusctl.Unit    // the socket units it has
	dependents []string          // units that run, and that a stop of the service stops

	adoption unitgen.Adoption
	program  string // as ExecStart= has it then
	source   string // becomes the first release; "": none
	holds    []fdstore.Wish
	served   []fdstore.Held // what the old program listens on by itself
	gap      string         // what the restart costs

	files   []unitgen.File // as they should be
	before  []unitgen.File // as they are
	changes []unitgen.Change
	record  adoptRecord
	steps   []initStep
	notes   []note

	switched bool   // what runs is under zdt
	moment   string // the directory of units that are gone after a boot
	changed  bool   // apply did something
	back     func(context.Context, *factory, error) error
}

func (p *adoptPlan) close() { p.bus.Close() }

func (p *adoptPlan) note(id, next, format string, args ...any) {
	p.notes = append(p.notes, note{ID: id, Text: fmt.Sprintf(format, args...), Next: next})
}

// stopAndStart is no restart: systemd's store is emptied in between. What depends on the service is started again with it, as by a restart.
func (p *adoptPlan) stopAndStart(ctx context.Context, between func() error) error {
	err := errors.Join(p.bus.Stop(ctx, p.unit), between(), p.bus.Start(ctx, p.unit))
	for _, name := range p.dependents {
		if u, uerr := p.bus.Unit(ctx, name); uerr == nil && u.ActiveState != "active" {
			err = errors.Join(err, p.bus.Start(ctx, name))
		}
	}
	return err
}

// clearStep removes that.
func (p *adoptPlan) clearStep() {
	if r, ok := p.overlaid(); ok {
		p.step(func(ctx context.Context, _ *factory) error { return r.clear(ctx) }, "remove %s", r.overlay())
	}
}

// planAdopt finds out what there is and what has to be done. The error with a plan is a refusal of it.
func (f *factory) planAdopt(ctx context.Context, o adoptOptions) (*adoptPlan, error) {
	zdt, err := f.reloadProgram(o.Zdt, false)
	if err != nil {
		return nil, err
	}
	p, err := f.lookAdopt(ctx, o)
	if err != nil {
		return nil, err
	}
	return p, p.plan(ctx, f, o, zdt)
}

func (p *adoptPlan) plan(ctx context.Context, f *factory, o adoptOptions, zdt string) error {
	policy, err := unitgen.ParsePolicy(p.old...)
	switch {
	case err != nil:
		return &Failure{Code: ExitRefused, Err: fmt.Errorf("read [X-Zdt] of %s: %w", p.unit, err), Hint: hintOf(err)}
	case policy.Managed:
		return fail(ExitRefused, "zdt check "+p.name+" says whether all is well with it", "%s is zdt's already: %s says so in [X-Zdt]", p.unit, p.u.FragmentPath)
	}
	if len(p.record.Files) == 0 {
		switch {
		case p.u.NeedDaemonReload:
			return fail(ExitRefused, "systemctl daemon-reload", "the files of %s have changed, and systemd has not read them: what it runs is not what they say", p.unit)
		case p.u.ActiveState == "activating" || p.u.ActiveState == "deactivating":
			// A start that is under way would be judged by the settings of the new unit.
			return fail(ExitRefused, "wait until it has started, or stop it", "%s is %s", p.unit, p.u.ActiveState)
		}
	}
	if err := p.dangerous(o); err != nil {
		return err
	}
	p.adoption = unitgen.Adoption{
		Name: p.name, Zdt: zdt, Runtime: unitgen.Runtime(o.Runtime), Run: o.Run, Health: o.Health,
		ReadyTimeout: o.ReadyTimeout, DrainTimeout: o.DrainTimeout, Bake: o.Bake,
	}
	for _, find := range []func(adoptOptions) error{p.findProgram, p.findSockets, p.findRuntime, p.findSettings} {
		if err := find(o); err != nil {
			return err
		}
	}
	if err := p.impossible(); err != nil {
		return err
	}
	if err := p.findFiles(ctx, o); err != nil {
		return err
	}
	return p.findSteps(ctx, o)
}

// dangerous refuses what would harm the program that runs, or the one that is to be started, in ways that nobody would understand.
func (p *adoptPlan) dangerous(o adoptOptions) error {
	access := setting(p.settings, "NotifyAccess")
	if watched := p.props.Number("WatchdogUSec"); p.active() && !p.switched && !o.Restart && watched > 0 && (access == "all" || access == "exec") {
		return fail(ExitRefused, "do both at once: zdt adopt "+p.name+" --restart", "%s has WatchdogSec= and NotifyAccess=%s: systemd would not hear the heartbeats of other processes than the main one any more, and kill what runs", p.unit, access)
	}
	for _, s := range p.settings {
		if s.Section == "Service" && strings.HasPrefix(s.Key, "Exec") && strings.Contains(s.Value, "RUNTIME_DIRECTORY") && setting(p.settings, "RuntimeDirectory") != "" {
			return fail(ExitRefused, "write the path out, in a drop-in of yours", "%s=%s: the variable names zdt's directory, too, afterwards", s.Key, s.Value)
		}
	}
	return nil
}

// findProgram finds out what is executed, and where the program will be.
func (p *adoptPlan) findProgram(o adoptOptions) error {
	var lines []string
	for _, s := range p.settings {
		switch {
		case s.Section != "Service" || s.Key != "ExecStart":
		case s.Value == "":
			lines = nil
		default:
			lines = append(lines, s.Value)
		}
	}
	if len(lines) != 1 {
		return fail(ExitRefused, "a service of zdt has one program", "%s has %d commands in ExecStart=", p.unit, len(lines))
	}
	prefix, word, rest, err := unitgen.SplitCommand(lines[0])
	if err != nil {
		return fail(ExitRefused, "", "ExecStart= of %s: %w", p.unit, err)
	}
	if strings.Contains(prefix, "@") {
		return fail(ExitRefused, "write ExecStart= without @ in a drop-in first", "ExecStart=%s of %s gives the program another name, which zdt would have to know in every release", lines[0], p.unit)
	}
	path := p.execPath()
	if strings.HasPrefix(filepath.Base(path), "zdt") && strings.HasPrefix(strings.TrimLeft(rest, " \t"), "run") {
		return fail(ExitRefused, "zdt check "+p.name+" says what it lacks; [X-Zdt] in a drop-in has zdt's settings", "%s runs under zdt run already", p.unit)
	}
	if !filepath.IsAbs(path) {
		return fail(ExitRefused, "systemctl status "+p.unit, "systemd does not say which program %s executes", p.unit)
	}
	if o.Args != nil {
		rest = unitgen.QuoteArguments(o.Args)
	}
	p.adoption.Prefix = prefix
	p.source, p.program = path, path
	if o.Exec != "" {
		if p.source, err = filepath.Abs(o.Exec); err != nil {
			return err
		}
	}
	p.adoption.Exec = filepath.Base(p.source)
	if o.InPlace || o.Exec == "" && packaged(path) {
		if o.Exec != "" {
			return usage("leave one of them out", "adopt: --in-place and --exec exclude each other")
		}
		p.source, p.adoption.Command = "", word+rest
		return nil
	}
	if err := handoffcheck.Blockers(handoffcheck.Candidate(p.source)); err != nil {
		return fail(ExitRefused, hintOf(err), "%w", err)
	}
	p.program = filepath.Join(p.paths.StateDir(p.name), "current", p.adoption.Exec)
	switch {
	case p.source == path || o.Exec != "" && filepath.Base(path) == filepath.Base(p.source):
		p.adoption.Command = p.program + rest
	case strings.Contains(rest+" ", " "+p.source+" "): // behind an interpreter
		p.adoption.Command = word + strings.TrimSuffix(strings.Replace(rest+" ", " "+p.source+" ", " "+p.program+" ", 1), " ")
	default:
		return fail(ExitRefused, "give the file that ExecStart= names", "ExecStart=%s does not mention %s", lines[0], p.source)
	}
	return nil
}

// execPath is the program of the old unit. Under the drop-in of an earlier adoption systemd says another one.
func (p *adoptPlan) execPath() string {
	if p.record.Program != "" {
		return p.record.Program
	}
	return p.u.ExecStartPath
}

// packaged programs come from the distribution, and are replaced by its packages.
func packaged(path string) bool {
	for _, dir := range []string{"/usr/", "/bin/", "/sbin/", "/lib/"} {
		if strings.HasPrefix(path, dir) && !strings.HasPrefix(path, "/usr/local/") {
			return true
		}
	}
	return false
}

// impossible refuses what would stand in the way of every handoff afterwards.
func (p *adoptPlan) impossible() error {
	facts := handoffcheck.Facts{
		Service: p.props, Helper: p.adoption.Runtime == unitgen.RuntimeHelper, Zdt: p.adoption.Zdt,
		Releases: filepath.Join(p.paths.StateDir(p.name), "releases"),
	}
	for _, s := range p.sockets {
		facts.Sockets = append(facts.Sockets, handoffcheck.Unit{Name: s.Name, Properties: map[string]any{"Accept": s.Accept}})
	}
	found := slices.DeleteFunc(handoffcheck.Look(facts), func(finding handoffcheck.Finding) bool {
		c, _ := handoffcheck.Find(finding.ID)
		return finding.ID == "ZDT001" || c.Family != handoffcheck.FamilyUnit && c.Family != handoffcheck.FamilySandbox
	})
	if err := handoffcheck.Blockers(found); err != nil {
		return fail(ExitRefused, hintOf(err), "%w", err)
	}
	return nil
}

// findFiles compares what zdt wants to write with what is there.
func (p *adoptPlan) findFiles(ctx context.Context, o adoptOptions) error {
	file, err := p.adoption.DropIn(p.paths.Units)
	if err != nil {
		return fail(ExitUsage, hintOf(err), "%w", err)
	}
	if err := p.overruled(file); err != nil {
		return err
	}
	p.files = append([]unitgen.File{file}, p.socketFiles()...)
	more, err := p.newSockets(ctx, o.Socket)
	if err != nil {
		return err
	}
	p.files = append(p.files, more...)
	r, err := p.reconcileUnit(ctx)
	if err != nil {
		return err
	}
	p.files = append(p.files, r...)
	for _, path := range append(p.record.paths(), pathsOf(p.files)...) {
		if slices.ContainsFunc(p.before, func(f unitgen.File) bool { return f.Path == path }) {
			continue
		}
		fi, err := os.Lstat(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		if !fi.Mode().IsRegular() {
			return fail(ExitRefused, "look at it (ls -l "+path+") and take it away", "%s is not a regular file", path)
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if !p.record.wrote(path, data) && !o.Force {
			return fail(ExitRefused, "move what it says into another drop-in; --force overwrites it and keeps a copy", "%s is there, and not as zdt adopt has written it", path)
		}
		p.before = append(p.before, unitgen.File{Name: filepath.Base(path), Path: path, Mode: fi.Mode().Perm(), Data: data})
	}
	p.changes = unitgen.Diff(p.before, p.files)
	return nil
}

// overruled refuses what a drop-in that is read later would take back: the program would be started without zdt, and systemd would
// wait for it to be ready.
func (p *adoptPlan) overruled(file unitgen.File) error {
	ours, err := unitgen.ReadSettings(file)
	if err != nil {
		return err
	}
	for _, f := range p.old[1:] {
		if f.Name <= unitgen.AdoptFile {
			continue
		}
		theirs, err := unitgen.ReadSettings(f)
		if err != nil {
			return err
		}
		for _, s := range theirs {
			switch {
			case s.Section != "Service" || setting(ours, s.Key) == "" && !strings.HasPrefix(s.Key, "Exec"):
				continue
			case (s.Key == "Environment" || s.Key == "RuntimeDirectory") && s.Value != "": // adds to it
				continue
			}
			switch s.Key {
			case "Type", "NotifyAccess", "ExecStart", "ExecReload", "ExecStop", "KillMode", "KillSignal", "Environment", "RuntimeDirectory":
				return fail(ExitRefused, "give it a name that sorts before "+unitgen.AdoptFile+", and run systemctl daemon-reload",
					"%s is read after %s, and would overrule its %s=", f.Path, unitgen.AdoptFile, s.Key)
			}
		}
	}
	return nil
}

func pathsOf(files []unitgen.File) (paths []string) {
	for _, f := range files {
		paths = append(paths, f.Path)
	}
	return paths
}

// reconcileUnit is the unit that settles interrupted upgrades after a boot, of which a host has one.
func (p *adoptPlan) reconcileUnit(ctx context.Context) ([]unitgen.File, error) {
	r, err := unitgen.Reconcile{UnitDir: p.paths.Units, StateRoot: p.paths.State, Zdt: p.adoption.Zdt}.Generate()
	if err != nil {
		return nil, err
	}
	if slices.Contains(p.record.paths(), r.Path) {
		return []unitgen.File{r}, nil
	}
	_, err = p.bus.Unit(ctx, unitgen.ReconcileUnit)
	if errors.Is(err, dbusctl.ErrNoUnit) {
		return []unitgen.File{r}, nil
	}
	return nil, err
}

// store opens the release store, and makes it.
func (p *adoptPlan) store() (*release.Store, error) {
	return release.Create(p.paths.StateDir(p.name), release.Options{Program: p.adoption.Exec})
}
