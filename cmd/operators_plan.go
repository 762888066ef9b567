package cmd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/zdt-dev/zdt/dbusctl"
	"github.com/zdt-dev/zdt/internal/atomicfile"
	"github.com/zdt-dev/zdt/internal/operators"
	"github.com/zdt-dev/zdt/release"
	"github.com/zdt-dev/zdt/unitgen"
)

// operatorsPlan is what zdt operators is going to do.
type operatorsPlan struct {
	o       operatorsOptions
	paths   Paths
	dir     string
	unit    string
	group   string // whose members the operators are at the end, or now; "": there are none
	gid     uint32
	steps   []initStep
	texts   []string // of files that are written, as differences
	notes   []note
	bus     systemd
	changed bool
}

func (p *operatorsPlan) close() {
	if p.bus != nil {
		p.bus.Close()
	}
}

func (p *operatorsPlan) add(do func(ctx context.Context, f *factory) error, format string, args ...any) {
	p.steps = append(p.steps, initStep{title: fmt.Sprintf(format, args...), do: do})
}

func (p *operatorsPlan) note(id, next, format string, args ...any) {
	p.notes = append(p.notes, note{ID: id, Text: fmt.Sprintf(format, args...), Next: next})
}

// planOperators finds out what there is and what has to be done.
func (f *factory) planOperators(ctx context.Context, o operatorsOptions) (_ *operatorsPlan, err error) {
	paths, err := f.paths()
	if err != nil {
		return nil, err
	}
	if paths.Operators == "" || paths.Root != "" {
		return nil, usage("a user's services are upgraded by the user", "operators: they are for services of the running system")
	}
	p := &operatorsPlan{o: o, paths: paths, dir: paths.OperatorsOf(o.Name), unit: unitgen.OperatorUnit(o.Name)}
	defer func() {
		if err != nil {
			p.close()
		}
	}()
	gid, err := operators.Group(p.dir)
	switch {
	case err == nil:
		p.gid, p.group = gid, groupName(gid)
	case !errors.Is(err, fs.ErrNotExist):
		return nil, err
	}
	if o.Group == "" && !o.Off {
		if _, err := os.Stat(paths.StateDir(o.Name)); errors.Is(err, fs.ErrNotExist) && p.group == "" {
			return nil, fail(ExitNoService, f.zdt()+" status", "zdt manages no service %s", o.Name)
		}
		return p, nil
	}
	if !o.DryRun && f.euid != 0 {
		return nil, fail(ExitNotAuthorised, "run it with sudo, or look first with --dry-run", "operators: only root may say who they are")
	}
	if p.bus, err = f.dialSystemd(ctx, false); err != nil {
		return nil, err
	}
	if o.Off {
		return p, p.planOff(ctx)
	}
	return p, p.planOn(ctx, f)
}

// planOn is --group.
func (p *operatorsPlan) planOn(ctx context.Context, f *factory) error {
	g, err := user.LookupGroup(p.o.Group)
	if err != nil {
		return fail(ExitRefused, "groupadd --system "+p.o.Group, "there is no group %s", p.o.Group)
	}
	gid, err := strconv.ParseUint(g.Gid, 10, 32)
	if err != nil || gid == 0 {
		return fail(ExitRefused, "choose another group", "the group %s is root's", p.o.Group)
	}
	p.group, p.gid = p.o.Group, uint32(gid)
	s, err := f.openSite(ctx, p.o.Name)
	if err != nil {
		return err
	}
	policy := s.policy
	u, err := s.ask(ctx)
	if err == nil {
		err = s.operable(ctx, policy)
	}
	s.close()
	if err != nil {
		return err
	}
	if !release.Require(policy.RequireSignature).Needed() {
		p.note("unsigned", "RequireSignature=yes in [X-Zdt] limits it to signed ones: docs/releases.md", "they may have %s run any program, with all that its unit may do", p.o.Name)
	}
	if ok, err := serviceIn(ctx, u, p.gid); err == nil && ok {
		return fail(ExitRefused, "choose a group of people", "the user of %s is in the group %s: the service could upgrade itself", p.o.Name, p.group)
	}
	rules := filepath.Join(p.paths.Polkit, "rules.d")
	if fi, err := os.Stat(p.paths.Polkit); err != nil || !fi.IsDir() {
		return fail(ExitRefused, "apt install polkitd, or the like", "polkit is not installed: there is no %s", p.paths.Polkit)
	}
	zdt, err := f.reloadProgram(p.o.Zdt, false)
	if err != nil {
		return err
	}
	files, err := unitgen.Operators{Name: p.o.Name, Group: p.group, Zdt: zdt, Dir: p.dir, UnitDir: p.paths.Units, RulesDir: rules}.Generate()
	if err != nil {
		return err
	}
	missing, err := operators.Missing(p.dir, p.gid)
	if err != nil {
		return fail(ExitRefused, "look at it, and take it away", "%w", err)
	}
	if len(missing) > 0 {
		p.add(func(context.Context, *factory) error { return operators.Make(p.dir, p.gid) }, "make %s for the group %s", p.dir, p.group)
	}
	reload, err := p.planFiles(files)
	if err != nil {
		return err
	}
	p.noteMembers()
	return p.planUnit(ctx, reload)
}

// planFiles writes the unit first and the rule last: nobody may reload what is not there.
func (p *operatorsPlan) planFiles(files []unitgen.File) (reload bool, err error) {
	var old []unitgen.File
	for _, file := range files {
		data, err := os.ReadFile(file.Path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return false, fmt.Errorf("read %s: %w", file.Path, err)
		}
		if !unitgen.OperatorsWrote(data) {
			return false, fail(ExitRefused, "look at it, and take it away", "%s exists, and not by zdt", file.Path)
		}
		old = append(old, unitgen.File{Name: file.Name, Path: file.Path, Mode: file.Mode, Data: data})
	}
	changes := unitgen.Diff(old, files)
	for _, file := range files {
		i := slices.IndexFunc(changes, func(c unitgen.Change) bool { return c.Path == file.Path })
		if i < 0 {
			continue
		}
		p.texts = append(p.texts, changes[i].Text)
		p.add(func(context.Context, *factory) error {
			if err := os.MkdirAll(filepath.Dir(file.Path), 0o755); err != nil {
				return err
			}
			return atomicfile.Write(file.Path, file.Data, file.Mode)
		}, "write %s", file.Path)
		reload = reload || file.Name == p.unit
	}
	return reload, nil
}

func (p *operatorsPlan) planUnit(ctx context.Context, reload bool) error {
	u, err := p.bus.Unit(ctx, p.unit)
	if err != nil && !errors.Is(err, dbusctl.ErrNoUnit) {
		return err
	}
	if u.LoadState == "masked" {
		return fail(ExitRefused, "systemctl unmask "+p.unit, "%s is masked", p.unit)
	}
	if reload || u.NeedDaemonReload {
		p.add(func(ctx context.Context, f *factory) error { return p.bus.DaemonReload(ctx) }, "have systemd read its units again")
	}
	if u.UnitFileState != "enabled" {
		p.add(func(ctx context.Context, f *factory) error { return p.bus.Enable(ctx, false, p.unit) }, "enable %s", p.unit)
	}
	if u.ActiveState != "active" && u.ActiveState != "reloading" {
		p.add(func(ctx context.Context, f *factory) error { return p.bus.Start(ctx, p.unit) }, "start %s", p.unit)
	}
	return nil
}

// noteMembers says who cannot read the journal, by which one sees what happens.
func (p *operatorsPlan) noteMembers() {
	var blind []string
	for _, m := range membersOf(p.group) {
		if !slices.Contains(membersOf("systemd-journal"), m) && !slices.Contains(membersOf("adm"), m) {
			blind = append(blind, m)
		}
	}
	if len(blind) > 0 {
		p.note("journal", "usermod -aG systemd-journal "+blind[0], "%s cannot read the journal, which zdt watch and journalctl need", strings.Join(blind, ", "))
	}
}

// membersOf are the members that /etc/group has. Those whose primary group it is are not among them, nor those of a directory service.
func membersOf(group string) []string {
	data, err := os.ReadFile("/etc/group")
	if err != nil {
		return nil
	}
	for line := range strings.Lines(string(data)) {
		f := strings.Split(strings.TrimSpace(line), ":")
		if len(f) == 4 && f[0] == group && f[3] != "" {
			return strings.Split(f[3], ",")
		}
	}
	return nil
}

// planOff is --off: the rule goes first.
func (p *operatorsPlan) planOff(ctx context.Context) error {
	for _, path := range []string{filepath.Join(p.paths.Polkit, "rules.d", unitgen.OperatorRule(p.o.Name)), filepath.Join(p.paths.Units, p.unit)} {
		data, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return fmt.Errorf("read %s: %w", path, err)
		}
		if !unitgen.OperatorsWrote(data) {
			return fail(ExitRefused, "look at it, and take it away", "%s is not by zdt", path)
		}
		if filepath.Base(path) == p.unit {
			p.add(func(ctx context.Context, f *factory) error {
				return errors.Join(p.bus.Stop(ctx, p.unit), p.bus.Disable(ctx, false, p.unit))
			}, "stop and disable %s", p.unit)
		}
		p.add(func(context.Context, *factory) error { return os.Remove(path) }, "remove %s", path)
		if filepath.Base(path) == p.unit {
			p.add(func(ctx context.Context, f *factory) error { return p.bus.DaemonReload(ctx) }, "have systemd read its units again")
		}
	}
	if _, err := os.Lstat(p.dir); err == nil {
		p.add(func(context.Context, *factory) error { return operators.Remove(p.dir) }, "remove %s", p.dir)
	}
	return nil
}

func (p *operatorsPlan) apply(ctx context.Context, f *factory) error {
	st := f.errStyle()
	for i, s := range p.steps {
		err := context.Cause(ctx)
		if err == nil {
			err = s.do(ctx, f)
		}
		if err != nil {
			f.say("%s %s", st.bad.Render(st.marks.fail), clean(s.title))
			hint := hintOf(err)
			if i > 0 {
				hint = hintOr(err, "mend it and run the same command again: it goes on from here")
			}
			return fail(codeOf(err), hint, "%s: %w", s.title, err)
		}
		p.changed = true
		f.say("%s %s", st.good.Render(st.marks.ok), clean(s.title))
	}
	return nil
}

func (p *operatorsPlan) document() operatorsDoc {
	d := operatorsDoc{Schema: "zdt.operators/1", DryRun: p.o.DryRun, Service: p.o.Name, Notes: p.notes}
	if p.group != "" && !p.o.Off {
		d.Group, d.Members, d.Unit, d.Incoming = p.group, membersOf(p.group), p.unit, filepath.Join(p.dir, "incoming")
	}
	for _, s := range p.steps {
		d.Steps = append(d.Steps, s.title)
	}
	return d
}
