package cmd

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/zdt-dev/zdt/handoffcheck"
	"github.com/zdt-dev/zdt/internal/atomicfile"
	"github.com/zdt-dev/zdt/release"
	"github.com/zdt-dev/zdt/unitgen"
)

func (p *adoptPlan) step(do func(ctx context.Context, f *factory) error, format string, args ...any) {
	p.steps = append(p.steps, initStep{title: fmt.Sprintf(format, args...), do: do})
}

// findSteps are what has to be done, in an order in which each may be the last.
func (p *adoptPlan) findSteps(ctx context.Context, o adoptOptions) error {
	if err := p.importStep(); err != nil {
		return err
	}
	if len(p.changes) > 0 {
		record := p.record
		record.Files = slices.Clone(p.record.Files)
		record.will(p.files)
		if record.Program == "" {
			record.Program, record.TimeoutStart, record.TimeoutStop = p.u.ExecStartPath, p.adoption.TimeoutStart, p.adoption.TimeoutStop
		}
		record.Listen = nil
		for _, l := range p.adoption.Bind {
			record.Listen = append(record.Listen, l.String())
		}
		for _, file := range p.files {
			dir := filepath.Dir(file.Path)
			if _, err := os.Lstat(dir); errors.Is(err, fs.ErrNotExist) && !slices.Contains(record.Dirs, dir) {
				record.Dirs = append(record.Dirs, dir)
			}
		}
		p.step(func(context.Context, *factory) error { return p.writeRecord(record) }, "note in %s what is written", p.recordPath())
	}
	for _, c := range p.changes {
		if i := slices.IndexFunc(p.before, func(f unitgen.File) bool { return f.Path == c.Path && !p.record.wrote(f.Path, f.Data) }); i >= 0 {
			p.step(func(_ context.Context, f *factory) error { return keepCopy(f, c.Path) }, "keep a copy of %s", c.Path)
		}
		if c.Kind == unitgen.Remove {
			p.step(func(context.Context, *factory) error { return remove(c.Path) }, "remove %s", c.Path)
			continue
		}
		p.step(func(context.Context, *factory) error { return p.writeFile(c.Path) }, "write %s", c.Path)
	}
	if len(p.changes) > 0 || p.u.NeedDaemonReload {
		p.step(func(ctx context.Context, _ *factory) error { return p.bus.DaemonReload(ctx) }, "have systemd read its units again")
	}
	if err := p.enableStep(ctx); err != nil {
		return err
	}
	if o.Restart {
		p.switchSteps()
	}
	if p.back == nil {
		p.clearStep()
	}
	return nil
}

func (p *adoptPlan) writeRecord(r adoptRecord) error {
	// The directory is the release store's, and nobody else's to write in.
	store, err := release.Create(p.paths.StateDir(p.name), release.Options{})
	if err != nil {
		return err
	}
	store.Close()
	return r.write(p.recordPath())
}

// importStep makes the first release, unless there is one.
func (p *adoptPlan) importStep() error {
	if p.source == "" {
		return nil
	}
	store, err := release.Open(p.paths.StateDir(p.name), release.Options{})
	if err == nil {
		defer store.Close()
		r, err := store.Current()
		switch {
		case err == nil && r.Program != p.adoption.Exec:
			return fail(ExitRefused, "move "+p.paths.StateDir(p.name)+" away", "the program of the releases that are there is called %s, and not %s", r.Program, p.adoption.Exec)
		case err == nil:
			return nil
		case !errors.Is(err, release.ErrNoCurrent):
			return fail(ExitRefused, hintOf(err), "read current release: %w", err)
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("open release store: %w", err)
	}
	p.step(p.importRelease, "import %s as the first release", p.source)
	return nil
}

func (p *adoptPlan) importRelease(ctx context.Context, f *factory) error {
	begun := f.now()
	store, err := p.store()
	if err != nil {
		return err
	}
	defer store.Close()
	r, err := store.Stage(ctx, p.source, release.StageOptions{})
	if err == nil {
		err = handoffcheck.Blockers(handoffcheck.Candidate(r.Path))
	}
	if err != nil {
		return refused(err)
	}
	if err := store.Flip(r); err != nil {
		return err
	}
	txid, err := release.NewTxID()
	if err != nil {
		return err
	}
	return store.AppendHistory(importEntry(txid, r, begun, f.now()))
}

// enableStep: the socket units and the unit for after a boot are started by the next boot.
func (p *adoptPlan) enableStep(ctx context.Context) error {
	var names []string
	for _, f := range p.files {
		if filepath.Dir(f.Path) != p.paths.Units {
			continue // a drop-in
		}
		if u, err := p.bus.Unit(ctx, f.Name); err != nil || u.UnitFileState != "enabled" {
			names = append(names, f.Name)
		}
	}
	if len(names) > 0 {
		p.step(func(ctx context.Context, _ *factory) error { return p.bus.Enable(ctx, false, names...) }, "enable %s", strings.Join(names, " "))
	}
	return nil
}

// switchSteps bring what runs under zdt. If it does not come up, all is undone.
func (p *adoptPlan) switchSteps() {
	if p.switched && len(p.changes) == 0 {
		return
	}
	if !p.active() {
		p.step(func(ctx context.Context, f *factory) error { return p.startNew(ctx, f, p.bus.Start) }, "start %s", p.unit)
		return
	}
	stop := stopSettings(p.settings)
	if p.switched { // adopted before, with other flags: zdt ends it
		stop = nil
	}
	_, again := p.overlaid()
	r := replacement{unit: p.unit, dir: p.moment, again: again, stop: stop, holds: p.holds, zdt: p.adoption.Zdt, bus: replacer{
		reload:  p.bus.DaemonReload,
		signal:  func(ctx context.Context) error { return p.bus.Reload(ctx, p.unit) },
		restart: func(ctx context.Context) error { return p.bus.Restart(ctx, p.unit) },
		stored:  p.stored,
	}}
	if p.switched {
		r.holds = nil
		p.step(func(ctx context.Context, f *factory) error { return p.startNew(ctx, f, p.bus.Restart) }, "restart %s", p.unit)
		return
	}
	restart := r.bus.restart
	r.bus.restart = func(ctx context.Context) error {
		return p.startNew(ctx, nil, func(ctx context.Context, _ string) error { return restart(ctx) })
	}
	p.steps = append(p.steps, r.steps()...)
	p.back = func(ctx context.Context, f *factory, cause error) error { return p.goBack(ctx, f, r, cause) }
}

func (p *adoptPlan) stored(ctx context.Context) (uint64, error) {
	all, err := p.bus.Properties(ctx, p.unit)
	return handoffcheck.Unit{Properties: all}.Number("NFileDescriptorStore"), err
}

func (p *adoptPlan) startNew(ctx context.Context, _ *factory, start func(context.Context, string) error) error {
	err := start(ctx, p.unit)
	p.switched = err == nil
	return err
}

// apply does it all, under the lock of the service.
func (p *adoptPlan) apply(ctx context.Context, f *factory) error {
	lock, err := release.Acquire(ctx, p.paths.Lock(p.name), release.Holder{Since: f.now(), Who: release.Identify()}, 0)
	if err != nil {
		return fmt.Errorf("take the lock: %w", err)
	}
	defer lock.Release()
	if u, err := p.bus.Unit(ctx, p.unit); err != nil || u.MainPID != p.u.MainPID {
		return cmp.Or(err, error(fail(ExitBusy, "run the same command again", "%s was restarted while zdt looked at it; nothing was changed", p.unit)))
	}
	st := f.errStyle()
	for i, s := range p.steps {
		err := context.Cause(ctx)
		if err == nil {
			err = s.do(ctx, f)
		}
		if err != nil {
			f.say("%s %s", st.bad.Render(st.marks.fail), clean(s.title))
			if !strings.HasPrefix(err.Error(), s.title) { // package dbusctl names the job itself
				err = fmt.Errorf("%s: %w", s.title, err)
			}
			if p.back != nil && s.replaces {
				return p.back(ctx, f, err)
			}
			var failure *Failure
			if i > 0 && !errors.As(err, &failure) && codeOf(err) == ExitUnexpected {
				err = fail(ExitUnexpected, hintOr(err, "run the same command again: it goes on from here; zdt adopt --undo "+p.name+" removes what was written"), "%w", err)
			}
			return err
		}
		p.changed = true
		f.say("%s %s", st.good.Render(st.marks.ok), clean(s.title))
	}
	return nil
}

func (p *adoptPlan) writeFile(path string) error {
	i := slices.IndexFunc(p.files, func(f unitgen.File) bool { return f.Path == path })
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return atomicfile.Write(path, p.files[i].Data, p.files[i].Mode)
}
