package cmd

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/zdt-dev/zdt/dbusctl"
	"github.com/zdt-dev/zdt/release"
)

// detachedDoc is the document of a transaction that goes on without its terminal.
type detachedDoc struct {
	Schema   string   `json:"schema"`  // zdt.detached/1
	Outcome  string   `json:"outcome"` // detached
	ExitCode ExitCode `json:"exit_code"`
	Changed  bool     `json:"changed"` // always false: not yet
	Service  string   `json:"service"`
	TxID     string   `json:"txid"`
	Unit     string   `json:"unit"`
}

// addDetachFlags are --detach and the flag that its unit gets instead.
func addDetachFlags(flags *pflag.FlagSet, detach *bool, as *identity) {
	flags.BoolVar(detach, "detach", false, "go on in a unit of systemd's and return as soon as the service is touched")
	flags.Var(as, "as", "who asks")
	flags.MarkHidden("as")
}

// detachedStop is how long the unit may take to stop: an upgrade is undone first. A main process that is gone has to be
// started again by systemd, in the worst case, by the rules of its own unit.
const detachedStop = 5 * time.Minute

// detach runs this command line again, as a transient unit, and returns when the service is about to be touched. Up to
// then everything that can be refused has been, and FILE is in the store.
func (f *factory) detach(ctx context.Context, cmd *cobra.Command, service string) error {
	s, err := f.openAnySite(ctx, service) // what is refused here needs no unit
	if err != nil {
		return err
	}
	defer s.close()
	as, err := newIdentity()
	if err != nil {
		return err
	}
	who := release.Identify()
	as.Who = &who
	unit, err := f.detachedUnit(cmd, service, as)
	if err != nil {
		return err
	}
	doc := detachedDoc{Schema: "zdt.detached/1", Outcome: "detached", Service: service, TxID: as.TxID, Unit: unit.Name}
	err = s.sd.StartTransient(ctx, unit)
	var job *dbusctl.JobError
	if err != nil && !errors.As(err, &job) { // a unit whose job failed has ended, which is looked at below
		return fmt.Errorf("detach: %w", err)
	}
	watch, cancel := context.WithCancel(ctx)
	type last struct {
		unit dbusctl.Unit
		err  error
	}
	ends := make(chan last, 1)
	go func() {
		defer close(ends)
		u, err := s.sd.End(watch, unit.Name)
		ends <- last{u, err}
	}()
	defer func() {
		cancel()
		for range ends {
		}
	}()
	ended := ends
	look := time.NewTicker(20 * time.Millisecond)
	defer look.Stop()
	for {
		select {
		case l := <-ended:
			// Over systemd's private socket a unit that ended is forgotten at once.
			if l.err == nil || errors.Is(l.err, dbusctl.ErrNoUnit) {
				return s.endedAtOnce(doc, l.unit)
			}
			ended = nil // the bus was lost, and the unit goes on
			continue
		case <-ctx.Done():
		case <-look.C:
			if ended == nil {
				if _, err := s.store.ReadReport(as.TxID); err == nil {
					return s.endedAtOnce(doc, dbusctl.Unit{})
				}
			}
			h, alive, err := release.ReadHolder(s.paths.Lock(service))
			if err == nil && alive && h.TxID == as.TxID && h.Phase.Valid() && !h.Phase.Before(release.PhaseTrigger) {
				return f.tellDetached(doc)
			}
			continue
		}
		f.tellDetached(doc) // it is under way, only its end is not known
		return &Failure{Code: codeOf(context.Cause(ctx)), Err: context.Cause(ctx), Told: true}
	}
}

// detachedUnit is the unit in which this command line runs again.
func (f *factory) detachedUnit(cmd *cobra.Command, service string, as identity) (dbusctl.TransientUnit, error) {
	argv, err := f.detachedArgs(cmd, service, as)
	if err != nil {
		return dbusctl.TransientUnit{}, err
	}
	return f.transactionUnit(service, as.TxID, argv)
}

// transactionUnit is a unit that carries out a transaction of a service: zdt with these arguments.
func (f *factory) transactionUnit(service, txid string, argv []string) (dbusctl.TransientUnit, error) {
	zdt, err := f.executable()
	if err != nil {
		return dbusctl.TransientUnit{}, fmt.Errorf("find zdt's own path: %w", err)
	}
	dir, err := os.Getwd()
	if err != nil {
		dir = "/" // it was removed; what is relative to it cannot be found anyway
	}
	return dbusctl.TransientUnit{
		Name:        transactionName(service, txid),
		Description: fmt.Sprintf("zdt %s %s", argv[0], service),
		Keep:        true,
		Properties: []dbusctl.Property{
			dbusctl.Text("Type", "exec"),
			dbusctl.Command("ExecStart", zdt, append([]string{zdt}, argv...)...),
			dbusctl.Text("WorkingDirectory", dir),
			dbusctl.List("Environment", f.detachedEnv()...),
			dbusctl.Text("SyslogIdentifier", "zdt"),
			// A stop is a SIGTERM to zdt alone, which undoes what it has not committed; its hooks and gates are its
			// own to end.
			dbusctl.Text("KillMode", "mixed"),
			dbusctl.Span("TimeoutStopUSec", detachedStop),
			dbusctl.Flag("IgnoreSIGPIPE", false), // it would be inherited
			dbusctl.Text("CollectMode", "inactive-or-failed"),
			// At a shutdown units stop in the opposite order: the upgrade is undone while the service and the bus are there.
			dbusctl.List("After", "dbus.service", service+".service"),
		},
	}, nil
}

// transactionName is the name of that unit.
func transactionName(service, txid string) string {
	return fmt.Sprintf("zdt-%s-%s.service", strings.ReplaceAll(service, "@", ":"), txid)
}

// detachedArgs is the command line without what is about this terminal, and with who typed it.
func (f *factory) detachedArgs(cmd *cobra.Command, service string, as identity) ([]string, error) {
	own := []string{"detach", "as", "output", "quiet", "no-color", "events-fd", "help"}
	argv := []string{cmd.Name()}
	// The flags' values, as they were written: not every one of them can be printed again.
	err := cmd.Flags().ParseAll(f.args, func(flag *pflag.Flag, value string) error {
		for _, name := range own {
			if flag.Name == name {
				return nil
			}
		}
		argv = append(argv, "--"+flag.Name+"="+value)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read the command line again: %w", err)
	}
	text, err := as.flag()
	if err != nil {
		return nil, err
	}
	return append(argv, "--as="+text, "--", service), nil
}

// detachedEnv are the variables that mean something to zdt. The manager's are others than the shell's.
func (f *factory) detachedEnv() []string {
	var env []string
	for _, name := range []string{"PATH", "HOME", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "XDG_CONFIG_HOME", "XDG_STATE_HOME",
		"XDG_RUNTIME_DIR", "DBUS_SYSTEM_BUS_ADDRESS", "DBUS_SESSION_BUS_ADDRESS"} {
		if v := f.getenv(name); v != "" && !strings.ContainsAny(v, "\n\x00") {
			env = append(env, name+"="+v)
		}
	}
	return env
}

// tellDetached says where the transaction goes on: on stdout just its ID, for scripts.
func (f *factory) tellDetached(doc detachedDoc) error {
	f.say("%s goes on in %s: %s attach %s watches it, %s wait %s %s waits for its end", doc.Service, doc.Unit, f.zdt(), doc.Service, f.zdt(), doc.Service, doc.TxID)
	if f.globals.output != outputText {
		return f.print(doc)
	}
	_, err := fmt.Fprintln(f.Out, doc.TxID)
	return err
}

// endedAtOnce tells the end of a transaction that is over already, as if it had not been detached. Only its one line for a
// person goes to stderr: stdout has the ID also then.
func (s *site) endedAtOnce(doc detachedDoc, u dbusctl.Unit) error {
	f := s.f
	if data, err := s.store.ReadReport(doc.TxID); err == nil {
		e, err := decodeEnding(data)
		if err != nil {
			return err
		}
		if e.report != nil && e.report.ExitCode == 0 && f.globals.output == outputText {
			if _, err := fmt.Fprintln(f.Out, doc.TxID); err != nil {
				return err
			}
			quiet := *f
			quiet.Out, quiet.OutTTY = f.Err, f.ErrTTY
			return quiet.present(e)
		}
		return f.present(e)
	}
	return f.unitFailure(doc.Service, doc.Unit, u)
}

// unitFailure is how the unit of a transaction ended that has left no report.
func (f *factory) unitFailure(service, unit string, u dbusctl.Unit) error {
	hint := f.journal(unit)
	status, signalled, ok := u.Exited()
	switch {
	case ok && !signalled && ExitCode(status).meaning() != "" && status != 0:
		return fail(ExitCode(status), hint, "the detached zdt ended: %s", ExitCode(status).meaning())
	case ok && signalled:
		return fail(ExitInterrupted, cmp.Or(f.zdt()+" resume "+service, hint), "the detached zdt was killed by signal %d", status)
	case ok:
		return fail(ExitUnexpected, hint, "the detached zdt ended with exit status %d and left no report", status)
	}
	return fail(ExitUnexpected, hint, "the detached zdt ended and left no report")
}
