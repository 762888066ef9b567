package cmd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/zdt-dev/zdt/internal/atomicfile"
	"github.com/zdt-dev/zdt/journal"
	"github.com/zdt-dev/zdt/release"
	"github.com/zdt-dev/zdt/unitgen"
)

// initStep is one thing that init does. Each may be repeated: after a failure
// in the middle the same command goes on where it stopped.
type initStep struct {
	title string // "write /etc/…", after "would" in a dry run
	do    func(ctx context.Context, f *factory) error
	// replaces: it belongs to the one restart by which a program is replaced, which is undone as a whole (zdt adopt).
	replaces bool
}

// steps are the plan's, in their order: the release comes first, so that no
// unit ever names a program that is not there.
func (p *initPlan) steps() []initStep {
	var steps []initStep
	add := func(do func(ctx context.Context, f *factory) error, format string, args ...any) {
		steps = append(steps, initStep{title: fmt.Sprintf(format, args...), do: do})
	}
	for _, name := range p.empty {
		of := ""
		if p.spec.Template() {
			of = " of " + name
		}
		add(func(ctx context.Context, f *factory) error { return p.importRelease(ctx, f, name) }, "import %s as the first release%s", p.source, of)
	}
	for _, path := range p.save {
		add(func(ctx context.Context, f *factory) error { return p.keep(f, path) }, "keep a copy of %s", path)
	}
	if len(p.disable) > 0 && p.bus != nil {
		add(func(ctx context.Context, f *factory) error { return p.stopUnits(ctx) }, "stop and disable %s", strings.Join(p.disable, " "))
	}
	for _, c := range p.changes {
		if c.Kind == unitgen.Remove {
			add(func(ctx context.Context, f *factory) error { return os.Remove(p.paths.disk(c.Path)) }, "remove %s", c.Path)
			continue
		}
		add(func(ctx context.Context, f *factory) error { return p.write(c.Path) }, "write %s", c.Path)
	}
	if p.bus != nil {
		p.jobs(add)
	}
	return steps
}

// jobs are the steps that systemd takes.
func (p *initPlan) jobs(add func(do func(ctx context.Context, f *factory) error, format string, args ...any)) {
	if p.reload {
		add(func(ctx context.Context, f *factory) error { return p.bus.DaemonReload(ctx) }, "have systemd read its units again")
	}
	if len(p.enable) > 0 {
		add(func(ctx context.Context, f *factory) error { return p.bus.Enable(ctx, false, p.enable...) }, "enable %s", strings.Join(p.enable, " "))
	}
	for _, unit := range p.start { // the sockets come first
		add(func(ctx context.Context, f *factory) error {
			err := p.startUnit(ctx, unit)
			if name, ok := strings.CutSuffix(unit, ".service"); ok && err == nil {
				f.noteStart(ctx, name)
			}
			return err
		}, "start %s", unit)
	}
}

// apply does it all, under the locks of the services.
func (p *initPlan) apply(ctx context.Context, f *factory) error {
	for _, name := range p.services {
		lock, err := release.Acquire(ctx, p.paths.Lock(name), release.Holder{Since: f.now(), Who: release.Identify()}, 0)
		if err != nil {
			return fmt.Errorf("take the lock: %w", err)
		}
		defer lock.Release()
	}
	st := f.errStyle()
	for i, s := range p.steps() {
		if ctx.Err() != nil {
			return fmt.Errorf("%s: %w", s.title, context.Cause(ctx))
		}
		if err := s.do(ctx, f); err != nil {
			f.say("%s %s", st.bad.Render(st.marks.fail), clean(s.title))
			if !strings.HasPrefix(err.Error(), s.title) { // package dbusctl names the job itself
				err = fmt.Errorf("%s: %w", s.title, err)
			}
			var failure *Failure
			if i > 0 && !errors.As(err, &failure) && codeOf(err) == ExitUnexpected {
				err = fail(ExitUnexpected, hintOr(err, "mend it and run the same command again: it goes on from here"), "%w", err)
			}
			return err
		}
		p.changed = true
		f.say("%s %s", st.good.Render(st.marks.ok), clean(s.title))
	}
	return nil
}

func hintOr(err error, otherwise string) string {
	if h := hintOf(err); h != "" {
		return h
	}
	return otherwise
}

// keep copies a unit that a person wrote to a name that systemd does not read.
func (p *initPlan) keep(f *factory, path string) error {
	data, err := os.ReadFile(p.paths.disk(path))
	if err != nil {
		return err
	}
	return atomicfile.Write(p.paths.disk(path)+".zdt-saved-"+f.now().UTC().Format("20060102T150405Z"), data, 0o644)
}

func (p *initPlan) write(path string) error {
	for _, file := range p.files {
		if file.Path == path {
			target := p.paths.disk(path)
			if err := os.MkdirAll(filepath.Dir(target), 0o755); err != nil {
				return err
			}
			return atomicfile.Write(target, file.Data, file.Mode)
		}
	}
	return fmt.Errorf("%s is not in the plan", path)
}

func (p *initPlan) stopUnits(ctx context.Context) error {
	for _, unit := range p.disable {
		if err := p.bus.Stop(ctx, unit); err != nil {
			return err
		}
	}
	return p.bus.Disable(ctx, false, p.disable...)
}

// startUnit starts a unit and, when the service does not come up, shows what
// it said.
func (p *initPlan) startUnit(ctx context.Context, unit string) error {
	err := p.bus.Start(ctx, unit)
	if err == nil || ctx.Err() != nil {
		return err
	}
	if !strings.HasSuffix(unit, ".service") {
		if p.running {
			return fail(ExitUnexpected, "systemctl stop "+strings.Join(p.instantiated(p.spec.ServiceUnit()), " ")+", then run the same command again", "%w (a socket cannot be opened for a service that runs)", err)
		}
		return fail(ExitNotRestored, "does another program have the port? systemctl status "+unit, "%w", err)
	}
	failure := fail(ExitNotRestored, "mend the program or its settings, then systemctl start "+unit, "%w", err)
	if lines, terr := journal.Tail(ctx, journal.Query{Source: journal.Source{Unit: unit, User: p.spec.UserManager, UID: os.Geteuid()}, Lines: 15}); terr == nil {
		for _, l := range lines {
			failure.Details = append(failure.Details, l.Text)
		}
	}
	return failure
}
