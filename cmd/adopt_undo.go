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
	"github.com/zdt-dev/zdt/unitgen"
)

// planUndo removes exactly what zdt adopt has written, and with --restart starts the program as it was started before.
func (f *factory) planUndo(ctx context.Context, o adoptOptions) (*adoptPlan, error) {
	p, err := f.lookAdopt(ctx, o)
	if err != nil {
		return nil, err
	}
	return p, p.planBack(o)
}

func (p *adoptPlan) planBack(o adoptOptions) error {
	if len(p.record.Files) == 0 {
		if o.Restart && p.switched {
			return fail(ExitRefused, "systemctl restart "+p.name+" does it", "%s was not adopted, or that was undone already", p.unit)
		}
		p.clearStep()
		return nil
	}
	if p.u.ActiveState == "activating" && !o.Restart {
		return fail(ExitRefused, "wait until it has started, or add --restart", "%s is activating, and would be judged by the settings of the other unit", p.unit)
	}
	p.record = p.alone(p.record)
	var edited []string
	for _, path := range p.record.paths() {
		data, err := os.ReadFile(path)
		if err != nil {
			continue // gone already, or it is said when it is removed
		}
		p.before = append(p.before, unitgen.File{Name: filepath.Base(path), Path: path, Data: data})
		if !p.record.wrote(path, data) {
			edited = append(edited, path)
		}
	}
	p.changes = unitgen.Diff(p.before, nil)
	if len(edited) > 0 && !o.Force {
		return fail(ExitRefused, "move what they say into another drop-in; --force removes them and keeps copies", "somebody has edited what zdt adopt wrote: %s", strings.Join(edited, ", "))
	}
	dir := p.paths.StateDir(p.name)
	if left, err := os.ReadDir(filepath.Join(dir, "releases")); err == nil && len(left) > 0 {
		p.note("releases", "rm -r "+dir+" removes them, when the service does not run them any more", "the releases stay in %s", dir)
	}
	p.undoSteps(o, edited)
	return nil
}

// alone is the record without what other services need as well: the unit for after a boot is there for all of zdt's.
func (p *adoptPlan) alone(r adoptRecord) adoptRecord {
	others, err := p.paths.Services()
	if err != nil || slices.ContainsFunc(others, func(name string) bool { return name != p.name }) {
		r.Files = slices.DeleteFunc(slices.Clone(r.Files), func(w adoptWrote) bool { return filepath.Base(w.Path) == unitgen.ReconcileUnit })
	}
	return r
}

func (p *adoptPlan) undoSteps(o adoptOptions, edited []string) {
	for _, path := range edited {
		p.step(func(_ context.Context, f *factory) error { return keepCopy(f, path) }, "keep a copy of %s", path)
	}
	// zdt ends what it runs; the unit as it was would do it in another way.
	all, err := p.bothSettings()
	r := replacement{unit: p.unit, dir: p.moment, stop: stopSettings(all), bus: replacer{reload: p.bus.DaemonReload}}
	// What an adoption that was cut off has left half started, or failed, is started by the unit as it was.
	back := o.Restart && (p.active() && p.switched || p.u.ActiveState == "activating" || p.u.ActiveState == "failed")
	if back {
		p.gap = "clients are refused from the end of the program until it listens again"
		if len(p.sockets) > 0 {
			p.gap = "clients wait in the queues of the sockets from the end of the program until it is ready again"
		}
		p.step(func(ctx context.Context, _ *factory) error {
			switch {
			case errors.Is(err, fs.ErrNotExist): // an undoing was cut off behind this step
				return nil
			case err != nil:
				return err
			}
			return r.write(ctx)
		}, "have zdt end the program in its own way")
	}
	p.step(func(ctx context.Context, _ *factory) error { return p.disableOwn(ctx, p.record) }, "disable what zdt adopt enabled")
	for _, f := range p.before {
		p.step(func(context.Context, *factory) error { return remove(f.Path) }, "remove %s", f.Path)
	}
	p.step(func(ctx context.Context, _ *factory) error {
		for _, dir := range p.record.Dirs {
			os.Remove(dir) // unless somebody else has put something there
		}
		return p.bus.DaemonReload(ctx)
	}, "have systemd read its units again")
	if back {
		p.step(func(ctx context.Context, _ *factory) error { return p.startOld(ctx) }, "stop and start %s", p.unit)
		p.step(func(ctx context.Context, _ *factory) error { return r.clear(ctx) }, "remove %s", r.overlay())
	} else {
		p.clearStep()
	}
	p.step(func(context.Context, *factory) error { return p.forget() }, "remove %s", p.recordPath())
}

// forget removes the record, and the release store if nothing is in it.
func (p *adoptPlan) forget() error {
	if err := remove(p.recordPath()); err != nil {
		return err
	}
	dir := p.paths.StateDir(p.name)
	os.Remove(filepath.Join(dir, "releases"))
	os.Remove(dir)
	os.Remove(filepath.Dir(p.paths.Control(p.name))) // systemd removes it after a stop by the unit that has it alone
	return nil
}

// bothSettings are those of the unit with what zdt adopt added.
func (p *adoptPlan) bothSettings() ([]unitgen.Setting, error) {
	files := slices.Clone(p.old)
	path := p.dropIn(p.unit)
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("how zdt ends %s: %w", p.unit, err)
	}
	return unitgen.ReadSettings(append(files, unitgen.File{Path: path, Data: data})...)
}

// startOld ends what runs under zdt and starts the unit as it is now. A socket unit that zdt adopt wrote has the port until it is stopped, and
// so has systemd's store until the service is: that is why this is no restart, except where a socket unit of the service's own would start it in
// between.
func (p *adoptPlan) startOld(ctx context.Context) error {
	for _, u := range p.sockets {
		if slices.Contains(p.record.paths(), u.FragmentPath) {
			if err := p.bus.Stop(ctx, u.Name); err != nil {
				return err
			}
		}
	}
	if slices.ContainsFunc(p.sockets, func(u dbusctl.Unit) bool { return !slices.Contains(p.record.paths(), u.FragmentPath) }) {
		err := p.bus.Restart(ctx, p.unit)
		p.switched = err != nil
		return err
	}
	// The start limit counts the starts under zdt, too.
	err := p.stopAndStart(ctx, func() error { return p.bus.ResetFailed(ctx, p.unit) })
	p.switched = false
	return err
}
