package cmd

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/zdt-dev/zdt/dbusctl"
	"github.com/zdt-dev/zdt/release"
)

func newStatusCmd(f *factory) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "status [NAME...]",
		Short: "Show services: state, release, connections, open upgrade",
		Long: `Show what systemd, the running program and the release store say of a service,
or of all services. NAME@ stands for all instances of a template. Takes no lock
and changes nothing, also during an upgrade.`,
		Example: `  zdt status
  zdt status web
  zdt status web@
  zdt status web -o json`,
		Args:              cobra.ArbitraryArgs,
		ValidArgsFunction: f.completeSets(true),
	}
	return f.command(cmd, func(ctx context.Context, args []string) error {
		return runStatus(ctx, f, args)
	}, ExitOK, ExitNotRunning, ExitNoService, ExitUsage, ExitUnavailable, ExitNotAuthorised)
}

func runStatus(ctx context.Context, f *factory, args []string) error {
	p, err := f.paths()
	if err != nil {
		return err
	}
	names, err := servicesOf(p, args)
	if err != nil {
		return err
	}
	all := len(names) == 0
	if all {
		if names, err = p.Services(); err != nil {
			return fmt.Errorf("list services: %w", err)
		}
	}
	doc := statusDoc{Schema: "zdt.status/1", Services: []serviceStatus{}}
	if len(names) > 0 {
		bus, err := f.dialSystemd(ctx, f.globals.user)
		if err != nil {
			return err
		}
		defer bus.Close()
		for _, name := range names {
			s, err := f.collectStatus(ctx, bus, p, name)
			if err != nil {
				return err
			}
			doc.Services = append(doc.Services, s)
		}
	}
	doc.ExitCode, doc.Outcome = statusVerdict(doc.Services)
	if f.globals.output == outputText {
		if all && len(names) == 0 {
			f.say("no services yet; make one with: %s init NAME --exec FILE --listen :8080", f.zdt())
		}
		err = f.printStatus(doc)
	} else {
		err = f.print(doc)
	}
	if err == nil && doc.ExitCode != ExitOK {
		err = &Failure{Code: doc.ExitCode, Told: true}
	}
	return err
}

// servicesOf are the services that arguments name, NAME@ standing for all instances.
func servicesOf(p Paths, args []string) (names []string, err error) {
	for _, a := range args {
		if isSet([]string{a}) {
			set, err := expandSet([]string{a}, p.Instances)
			if err != nil {
				return nil, err
			}
			names = append(names, set.Names...)
			continue
		}
		name, err := serviceName(a)
		if err != nil {
			return nil, err
		}
		names = append(names, name)
	}
	return names, nil
}

// statusVerdict follows the LSB, as systemctl status does: 4 for what does not
// exist, 3 for what does not run.
func statusVerdict(services []serviceStatus) (ExitCode, string) {
	code, outcome := ExitOK, "running"
	for _, s := range services {
		switch s.State {
		case stateNone:
			return ExitNoService, "no-such-service"
		case stateServing:
		default:
			code, outcome = ExitNotRunning, "not-running"
		}
	}
	return code, outcome
}

// collectStatus asks the three sources. Only systemd has to answer.
func (f *factory) collectStatus(ctx context.Context, bus systemd, p Paths, name string) (serviceStatus, error) {
	s := serviceStatus{Name: name}
	u, err := bus.Unit(ctx, name+".service")
	if err != nil && !errors.Is(err, dbusctl.ErrNoUnit) {
		return s, err
	}
	s.Unit = unitStatus{
		Name: name + ".service", Load: cmp.Or(u.LoadState, "not-found"), Active: cmp.Or(u.ActiveState, "inactive"), Sub: u.SubState,
		Enabled: u.UnitFileState, Result: u.Result, MainPID: int(u.MainPID), Restarts: u.NRestarts,
		StatusText: u.StatusText, NeedDaemonReload: u.NeedDaemonReload,
	}
	if !u.ActiveEnter.IsZero() {
		s.Unit.Since = &u.ActiveEnter
	}
	s.State = stateOf(u, err != nil)
	s.readStore(p, name)
	// A lock that cannot be read is nobody's business here: who is not root, say.
	if h, ok, err := release.ReadHolder(p.Lock(name)); err == nil && ok {
		s.Lock = &lockStatus{PID: h.PID, TxID: h.TxID, Phase: h.Phase, Since: h.Since, Who: h.Who.String()}
	}
	if u.MainPID != 0 {
		f.askRuntime(ctx, &s, p, u)
	}
	s.fillRunning(p)
	f.addNotes(&s, u)
	return s, nil
}

func stateOf(u dbusctl.Unit, missing bool) state {
	switch u.ActiveState {
	case "active", "reloading", "refreshing":
		return stateServing
	case "activating":
		return stateStarting
	case "deactivating":
		return stateStopping
	case "failed":
		return stateFailed
	}
	if missing || u.LoadState == "not-found" {
		return stateNone
	}
	return stateStopped
}

func (s *serviceStatus) readStore(p Paths, name string) {
	store, err := release.Open(p.disk(p.StateDir(name)), release.Options{})
	if errors.Is(err, fs.ErrNotExist) {
		return
	}
	s.Managed = true
	if err != nil {
		s.Notes = append(s.Notes, note{ID: "store", Text: "the release store cannot be read: " + err.Error(), Next: hintOf(err)})
		return
	}
	defer store.Close()
	switch r, err := store.Current(); {
	case err == nil:
		s.Current = describeRelease(r)
	case errors.Is(err, release.ErrNoCurrent):
	default:
		s.Current = &releaseStatus{ID: r.ID, Damage: err.Error()}
	}
	switch h, err := store.Hold(); {
	case err == nil:
		s.Hold = &h
	case errors.Is(err, release.ErrNoHold):
	default:
		s.Notes = append(s.Notes, note{ID: "hold", Text: "the hold on the service cannot be read, and holds it: " + err.Error(), Next: hintOf(err)})
	}
	switch t, err := store.ReadTxn(); {
	case err == nil:
		boot, berr := release.BootID()
		s.Txn = &txnStatus{
			TxID: t.TxID, Kind: string(t.Kind), Phase: string(t.Phase), From: t.From, To: t.To, Undo: t.Undo, PID: t.Runner.PID,
			Reason: t.Reason, Frozen: t.Frozen, Deadline: t.Deadline, Why: t.Why,
			Started: t.Started, Who: t.Who.String(), Running: berr == nil && !t.Rebooted(boot) && t.Runner.Alive(),
		}
	case errors.Is(err, release.ErrNoTxn):
	default:
		s.Notes = append(s.Notes, note{ID: "txn", Text: "the record of an open upgrade cannot be read: " + err.Error(), Next: hintOf(err)})
	}
}

func describeRelease(r release.Release) *releaseStatus {
	d := &releaseStatus{ID: r.ID, SHA256: r.SHA256, StagedAt: r.StagedAt}
	if r.Build != nil {
		d.Version = r.Build.Version
	}
	return d
}

// askRuntime asks the runtime in the main process.
func (f *factory) askRuntime(ctx context.Context, s *serviceStatus, p Paths, u dbusctl.Unit) {
	uid, err := mainUID(u)
	if err != nil {
		s.RuntimeProblem = err.Error()
		return
	}
	client, st, err := f.connectRuntime(ctx, p.Control(s.Name), int(u.MainPID), uid)
	if err != nil {
		s.RuntimeProblem = err.Error()
		if errors.Is(err, fs.ErrPermission) {
			s.RuntimeProblem = "only root and the service's user may ask the runtime"
		}
	} else {
		client.Close()
	}
	if st.PID != 0 {
		s.Runtime = &st
	}
}

// fillRunning names the release the main process was started from, by its
// path; a process that systemd started came through the current link.
func (s *serviceStatus) fillRunning(p Paths) {
	if s.Runtime == nil || s.Runtime.Exe == "" {
		return
	}
	if isHelper(*s.Runtime) && strings.HasPrefix(s.Runtime.Exe, filepath.Join(p.StateDir(s.Name), "current")+"/") {
		s.Running = s.Current // it names its program as ExecStart= does
		return
	}
	if id := releaseIn(p.StateDir(s.Name), s.Runtime.Exe); id != "" {
		s.Running = &releaseStatus{ID: id}
		if s.Current != nil && s.Current.ID == id {
			s.Running = s.Current
		}
	}
}

// releaseIn is the ID of the release that a file of the store in dir lies in, however deep; "" for other files.
func releaseIn(dir, file string) string {
	rest, inside := strings.CutPrefix(file, filepath.Join(dir, "releases")+"/")
	id, _, below := strings.Cut(rest, "/")
	if !inside || !below || !release.ValidID(id) {
		return ""
	}
	return id
}
