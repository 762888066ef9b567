package cmd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/zdt-dev/zdt/internal/atomicfile"
	"github.com/zdt-dev/zdt/internal/fdstore"
	"github.com/zdt-dev/zdt/unitgen"
)

// replacement is the one restart that brings a service under zdt, or back: systemd ends the old program as the old unit says, and
// starts what the new one says.
//
// systemd has one version of a unit at a time. So what the new one says of a stop is overlaid for the restart by what the old one
// said, with a drop-in in /run that sorts behind all others and is gone at the end, also after a reboot in the middle.
type replacement struct {
	unit  string            // NAME.service
	dir   string            // where units of /run are
	stop  []unitgen.Setting // how the old program is stopped
	holds []fdstore.Wish    // the sockets that are the old program's alone; none: it loses nothing
	zdt   string            // for the unit
	again bool              // one was cut off before: systemd may have the sockets already

	bus replacer
}

// replacer is what a replacement needs of systemd.
type replacer struct {
	reload  func(context.Context) error // the units
	signal  func(context.Context) error // ExecReload= of the service
	restart func(context.Context) error // the service
	stored  func(context.Context) (uint64, error)
}

// overlayFile is read behind all other drop-ins, also those that zdt adopt writes.
const overlayFile = "zzz-zdt-replace.conf"

// overlay is the drop-in.
func (r replacement) overlay() string {
	return filepath.Join(r.dir, r.unit+".d", overlayFile)
}

// steps: each may be repeated, and a replacement that was interrupted begins anew.
func (r replacement) steps() []initStep {
	what := "have systemd end the old program in its own way"
	if len(r.holds) > 0 {
		what += ", and keep its sockets"
	}
	var steps []initStep
	add := func(title string, do func(context.Context) error) {
		steps = append(steps, initStep{title: title, do: func(ctx context.Context, _ *factory) error { return do(ctx) }, replaces: true})
	}
	add(what, r.write)
	if len(r.holds) > 0 {
		add("take "+r.sockets()+" into systemd's store", r.take)
	}
	add("restart "+r.unit, r.bus.restart)
	add("remove "+r.overlay(), r.clear)
	return steps
}

func (r replacement) sockets() string {
	var all []string
	for _, w := range r.holds {
		all = append(all, w.Network+" "+w.Address)
	}
	return strings.Join(all, ", ")
}

// text is that of the overlay.
func (r replacement) text() []byte {
	add := func(key, value string) unitgen.Setting {
		return unitgen.Setting{Section: "Service", Key: key, Value: value}
	}
	all := append([]unitgen.Setting{add("ExecStop", ""), add("KillMode", "control-group"), add("KillSignal", "SIGTERM")}, r.stop...)
	if len(r.holds) > 0 {
		// systemd takes descriptors from the process that it runs for a reload, and from no other.
		words := []string{"+" + r.zdt, "keep-sockets"}
		for _, w := range r.holds {
			words = append(words, unitgen.QuoteWord(w.String()))
		}
		all = append(all, add("NotifyAccess", "exec"), add("FileDescriptorStoreMax", fmt.Sprint(storeSize)),
			add("ExecReload", ""), add("ExecReload", strings.Join(words, " ")))
	}
	return append([]byte("# Written by zdt for one restart, and removed after it.\n"), unitgen.WriteSettings(all)...)
}

// storeSize is FileDescriptorStoreMax= of a service whose sockets are kept: more than any has, and systemd makes no use of the number
// but to compare.
const storeSize = 256

func (r replacement) write(ctx context.Context) error {
	if err := os.MkdirAll(filepath.Dir(r.overlay()), 0o755); err != nil {
		return err
	}
	if err := atomicfile.Write(r.overlay(), r.text(), 0o644); err != nil {
		return err
	}
	return r.bus.reload(ctx)
}

// take returns when systemd has the sockets. It says nothing to whom it does not listen to, so it is asked.
func (r replacement) take(ctx context.Context) error {
	before, err := r.bus.stored(ctx)
	if err != nil {
		return err
	}
	if err := r.bus.signal(ctx); err != nil {
		return err
	}
	n, err := r.bus.stored(ctx)
	if err != nil {
		return err
	}
	// systemd has the same socket once, so that after a restart that was cut off there may be nothing to add.
	if n < uint64(len(r.holds)) || before > 0 && n == before && !r.again {
		return fmt.Errorf("systemd has kept %d descriptors, %d of them from before, and %d sockets were given to it", n, before, len(r.holds))
	}
	return nil
}

// clear removes the overlay. Without one nothing is to be done.
func (r replacement) clear(ctx context.Context) error {
	err := os.Remove(r.overlay())
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	os.Remove(filepath.Dir(r.overlay())) // unless somebody else has a drop-in there
	return r.bus.reload(ctx)
}

// stopSettings are those of the settings of a unit that say how its program is ended.
func stopSettings(all []unitgen.Setting) (stop []unitgen.Setting) {
	for _, s := range all {
		if s.Section != "Service" {
			continue
		}
		switch s.Key {
		case "ExecStop", "KillMode", "KillSignal", "RestartKillSignal", "SendSIGHUP", "SendSIGKILL", "FinalKillSignal", "TimeoutStopSec", "TimeoutSec", "PIDFile":
			stop = append(stop, s)
		}
	}
	return stop
}
