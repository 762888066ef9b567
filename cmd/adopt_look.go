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
	"github.com/zdt-dev/zdt/unitgen"
)

// lookAdopt finds out what there is of the unit. It is the begin of both plans.
func (f *factory) lookAdopt(ctx context.Context, o adoptOptions) (*adoptPlan, error) {
	paths, err := f.paths()
	if err != nil {
		return nil, err
	}
	if !o.DryRun && f.euid != 0 {
		return nil, fail(ExitNotAuthorised, "run it with sudo, or look first with --dry-run", "adopt: only root may change system services")
	}
	if strings.Contains(o.Name, "@") {
		return nil, fail(ExitRefused, "make a template of your own with zdt init NAME@, which has releases for each instance", "%s is an instance of a template; adopting those is not supported", o.Name)
	}
	p := &adoptPlan{name: o.Name, unit: o.Name + ".service", paths: paths, moment: "/run/systemd/system"}
	if p.bus, err = f.dialSystemd(ctx, false); err != nil {
		return nil, err
	}
	if err = p.read(ctx, f); err != nil {
		p.close()
		return nil, err
	}
	return p, nil
}

func (p *adoptPlan) read(ctx context.Context, f *factory) (err error) {
	p.u, err = p.bus.Unit(ctx, p.unit)
	switch {
	case errors.Is(err, dbusctl.ErrNoUnit):
		return &Failure{Code: ExitNoService, Err: err, Hint: "systemctl list-units --type=service lists those that there are"}
	case err != nil:
		return err
	case p.u.Name != p.unit:
		return fail(ExitRefused, "zdt adopt "+strings.TrimSuffix(p.u.Name, ".service"), "%s is another name of %s", p.unit, p.u.Name)
	case p.u.LoadState == "masked":
		return fail(ExitRefused, "systemctl unmask "+p.unit, "%s is masked", p.unit)
	case p.u.LoadState != "loaded":
		return fail(ExitRefused, "systemctl status "+p.unit, "systemd could not load %s: %s", p.unit, p.u.LoadState)
	case p.u.FragmentPath == "" || strings.HasPrefix(p.u.FragmentPath, "/run/"):
		return fail(ExitRefused, "write it as a file in /etc/systemd/system first", "%s is generated or transient: there is no file that would be there after a boot", p.unit)
	}
	all, err := p.bus.Properties(ctx, p.unit)
	if err != nil {
		return err
	}
	p.props = handoffcheck.Unit{Name: p.unit, Properties: all}
	own := p.dropIn(p.unit)
	for _, path := range append([]string{p.u.FragmentPath}, p.u.DropInPaths...) {
		if path == own || filepath.Base(path) == overlayFile {
			continue
		}
		data, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue // NeedDaemonReload tells
		}
		if err != nil {
			return err
		}
		p.old = append(p.old, unitgen.File{Name: filepath.Base(path), Path: path, Data: data})
	}
	if p.settings, err = unitgen.ReadSettings(p.old...); err != nil {
		return &Failure{Code: ExitRefused, Err: err, Hint: hintOf(err)}
	}
	for _, name := range socketsOf(p.u, p.props) {
		s, err := p.bus.Unit(ctx, name)
		if err != nil {
			return fmt.Errorf("socket unit: %w", err)
		}
		p.sockets = append(p.sockets, s)
	}
	p.dependents = p.findDependents(ctx, p.props, []string{p.unit})[1:]
	if p.record, err = readAdoptRecord(p.recordPath()); err != nil {
		return err
	}
	s := serviceStatus{Name: p.name}
	if p.u.MainPID != 0 {
		f.askRuntime(ctx, &s, p.paths, p.u)
	}
	p.switched = s.Runtime != nil && s.RuntimeProblem == "" || p.zdts(int(p.u.MainPID))
	return nil
}

// zdts reports whether a process was started as zdt starts one: as zdt run, or from the store. Its control socket lies where the
// service's user can remove it.
func (p *adoptPlan) zdts(pid int) bool {
	if pid == 0 || p.record.Program == "" {
		return false
	}
	exe, err := os.Readlink(procPath(pid, "exe"))
	return err == nil && (strings.HasPrefix(exe, p.paths.StateDir(p.name)+"/") || strings.HasPrefix(filepath.Base(exe), "zdt"))
}

// findDependents adds the units that systemd stops together with a unit, and does not start with it again, to those that were seen.
func (p *adoptPlan) findDependents(ctx context.Context, of handoffcheck.Unit, seen []string) []string {
	for _, name := range slices.Concat(of.Texts("RequiredBy"), of.Texts("BoundBy"), of.Texts("ConsistsOf")) {
		if slices.Contains(seen, name) {
			continue
		}
		if u, err := p.bus.Unit(ctx, name); err != nil || u.ActiveState != "active" {
			continue
		}
		seen = append(seen, name)
		if all, err := p.bus.Properties(ctx, name); err == nil {
			seen = p.findDependents(ctx, handoffcheck.Unit{Name: name, Properties: all}, seen)
		}
	}
	return seen
}

func (p *adoptPlan) dropIn(unit string) string {
	return filepath.Join(p.paths.Units, unit+".d", unitgen.AdoptFile)
}

func (p *adoptPlan) recordPath() string {
	return filepath.Join(p.paths.StateDir(p.name), "adopted.json")
}

// overlaid is what a replacement that was cut off has left.
func (p *adoptPlan) overlaid() (replacement, bool) {
	r := replacement{unit: p.unit, dir: p.moment, bus: replacer{reload: p.bus.DaemonReload}}
	_, err := os.Lstat(r.overlay())
	return r, err == nil
}

func (p *adoptPlan) active() bool {
	return p.u.ActiveState == "active" || p.u.ActiveState == "reloading"
}
