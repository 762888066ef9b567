package cmd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/zdt-dev/zdt/internal/atomicfile"
	"github.com/zdt-dev/zdt/journal"
)

// goBack undoes an adoption whose program did not come up, or whose sockets were not to be had, and starts the old program again if
// it has ended.
func (p *adoptPlan) goBack(ctx context.Context, f *factory, r replacement, cause error) error {
	ctx = context.WithoutCancel(ctx) // what is half done is not left
	failure := fail(ExitRolledBack, "mend it and run zdt adopt again", "%w; all was undone, and %s serves as before", cause, p.unit)
	for _, l := range tailOf(ctx, p.unit) {
		failure.Details = append(failure.Details, l)
	}
	u, err := p.bus.Unit(ctx, p.unit)
	ended := err != nil || u.MainPID != p.u.MainPID || u.ActiveState != "active" && u.ActiveState != "reloading"
	remove := func() error {
		record, err := readAdoptRecord(p.recordPath())
		record = p.alone(record)
		return errors.Join(err, p.disableOwn(ctx, record), removeAll(record, true), r.clear(ctx), p.bus.DaemonReload(ctx))
	}
	if ended {
		failure.Err = fmt.Errorf("%w; all was undone, and %s was started again as it was", cause, p.unit)
		// Not a restart: what is in systemd's store would be in the way of a program that binds its port itself.
		err = errors.Join(err, p.stopAndStart(ctx, func() error { return errors.Join(remove(), p.bus.ResetFailed(ctx, p.unit)) }))
		if err == nil && len(p.served) > 0 {
			err = p.awaitServed(ctx)
		}
	} else {
		err = remove()
	}
	if err == nil {
		err = p.forget()
	}
	if err != nil {
		failure.Code, failure.Hint = ExitNotRestored, "zdt adopt "+p.name+" --undo --restart; systemctl status "+p.unit+" tells why it does not start"
		failure.Err = fmt.Errorf("%w; and undoing it: %w", cause, err)
	}
	st := f.errStyle()
	f.say("%s undo it all", st.warn.Render(st.marks.warn))
	return failure
}

// disableOwn disables the units that an adoption has added.
func (p *adoptPlan) disableOwn(ctx context.Context, record adoptRecord) error {
	var names []string
	for _, path := range record.paths() {
		if filepath.Dir(path) == p.paths.Units {
			names = append(names, filepath.Base(path))
		}
	}
	if len(names) == 0 {
		return nil
	}
	return p.bus.Disable(ctx, false, names...)
}

// tailOf are the last lines of a unit, for a person.
func tailOf(ctx context.Context, unit string) (lines []string) {
	got, err := journal.Tail(ctx, journal.Query{Source: journal.Source{Unit: unit}, Lines: 15})
	if err != nil {
		return nil
	}
	for _, l := range got {
		lines = append(lines, l.Text)
	}
	return lines
}

// keepCopy keeps what a person wrote under a name that systemd does not read.
func keepCopy(f *factory, path string) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	return atomicfile.Write(path+".zdt-saved-"+f.now().UTC().Format("20060102T150405Z"), data, 0o644)
}

// remove removes a file that may be gone already.
func remove(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// removeAll removes what an adoption has written: with force also what has been edited since.
func removeAll(record adoptRecord, force bool) error {
	for _, path := range record.paths() {
		data, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		if !force && !record.wrote(path, data) {
			continue
		}
		if err := os.Remove(path); err != nil {
			return err
		}
	}
	for _, dir := range record.Dirs {
		os.Remove(dir) // unless somebody else has put something there
	}
	return nil
}
