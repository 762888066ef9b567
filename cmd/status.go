package cmd

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/zdt-dev/zdt/dbusctl"
	"github.com/zdt-dev/zdt/handoff/control"
	"github.com/zdt-dev/zdt/release"
)

// statusDoc is the document of zdt status.
type statusDoc struct {
	Schema   string          `json:"schema"`  // zdt.status/1
	Outcome  string          `json:"outcome"` // running, not-running, no-such-service
	ExitCode ExitCode        `json:"exit_code"`
	Changed  bool            `json:"changed"` // always false
	Services []serviceStatus `json:"services"`
}

// serviceStatus is everything known of one service, from systemd, from the
// runtime in its main process, and from its store.
type serviceStatus struct {
	Name  string `json:"name"`
	State state  `json:"state"`
	// Managed: zdt init made its unit or imported a release.
	Managed bool       `json:"managed"`
	Unit    unitStatus `json:"unit"`

	// Runtime is what the runtime says of itself, when RuntimeProblem is empty
	// proved to be that of the main process.
	Runtime        *control.Status `json:"runtime,omitempty"`
	RuntimeProblem string          `json:"runtime_problem,omitempty"`

	Current *releaseStatus `json:"current,omitempty"` // what a restart would start
	Running *releaseStatus `json:"running,omitempty"` // what the main process was started from
	Txn     *txnStatus     `json:"txn,omitempty"`     // the open upgrade
	Lock    *lockStatus    `json:"lock,omitempty"`    // who works on it at this moment; only root sees it
	Hold    *release.Hold  `json:"hold,omitempty"`    // who keeps everybody from upgrading it
	Notes   []note         `json:"notes,omitempty"`
}

// state is a service's state in one word.
type state string

const (
	stateServing  state = "serving"
	stateStarting state = "starting"
	stateStopping state = "stopping"
	stateStopped  state = "stopped"
	stateFailed   state = "failed"
	stateNone     state = "no-such-service"
)

// unitStatus is systemd's part.
type unitStatus struct {
	Name             string     `json:"name"`
	Load             string     `json:"load"`
	Active           string     `json:"active"`
	Sub              string     `json:"sub"`
	Enabled          string     `json:"enabled,omitempty"`
	Result           string     `json:"result,omitempty"`
	MainPID          int        `json:"main_pid,omitempty"`
	Since            *time.Time `json:"since,omitempty"`
	Restarts         uint32     `json:"restarts,omitempty"`
	StatusText       string     `json:"status_text,omitempty"`
	NeedDaemonReload bool       `json:"need_daemon_reload,omitempty"`
}

// releaseStatus names a release.
type releaseStatus struct {
	ID       string    `json:"id"`
	Version  string    `json:"version,omitempty"`
	SHA256   string    `json:"sha256,omitempty"`
	StagedAt time.Time `json:"staged_at,omitzero"`
	Damage   string    `json:"damage,omitempty"`
}

// txnStatus is the open upgrade.
type txnStatus struct {
	TxID     string    `json:"txid"`
	Phase    string    `json:"phase"`
	From     string    `json:"from,omitempty"`
	To       string    `json:"to,omitempty"`
	Kind     string    `json:"kind,omitempty"`
	Undo     bool      `json:"undo,omitempty"`
	Reason   string    `json:"reason,omitempty"` // of Undo or Frozen
	Frozen   bool      `json:"frozen,omitempty"` // it waits for a decision, until Deadline
	Deadline time.Time `json:"deadline,omitzero"`
	Why      string    `json:"why,omitempty"`
	Running  bool      `json:"running"` // the zdt that works on it is alive
	PID      int       `json:"pid"`
	Started  time.Time `json:"started"`
	Who      string    `json:"who,omitempty"`
}

// lockStatus is who has the lock of a service. Before an upgrade touches the service there is a lock and no open upgrade.
type lockStatus struct {
	PID   int           `json:"pid"`
	TxID  string        `json:"txid,omitempty"`
	Phase release.Phase `json:"phase,omitempty"` // of an upgrade or a rehearsal
	Since time.Time     `json:"since,omitzero"`
	Who   string        `json:"who,omitempty"`
}

// note is something an operator should know, and what to do about it.
type note struct {
	ID   string `json:"id"` // stable
	Text string `json:"text"`
	Next string `json:"next,omitempty"`
}

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
	var names []string
	for _, a := range args {
		if isSet([]string{a}) {
			set, err := expandSet([]string{a}, p.Instances)
			if err != nil {
				return err
			}
			names = append(names, set.Names...)
			continue
		}
		name, err := serviceName(a)
		if err != nil {
			return err
		}
		names = append(names, name)
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

// addNotes says what an operator would otherwise find out too late.
func (f *factory) addNotes(s *serviceStatus, u dbusctl.Unit) {
	add := func(id, next, format string, args ...any) {
		s.Notes = append(s.Notes, note{ID: id, Text: fmt.Sprintf(format, args...), Next: next})
	}
	unit := s.Unit.Name
	switch {
	case s.Unit.Load == "masked":
		add("masked", f.systemctl()+" unmask "+unit, "the unit is masked")
	case s.Unit.Load != "loaded" && s.Unit.Load != "not-found":
		add("load", f.systemctl()+" status "+unit, "systemd could not load the unit: %s", cmp.Or(u.LoadError, s.Unit.Load))
	}
	if s.State == stateNone && s.Managed {
		add("no-unit", f.zdt()+" init "+s.Name+" --exec FILE", "there are releases in the store, but no unit")
	}
	if s.State == stateFailed {
		add("failed", f.journal(unit), "the service failed: %s", u.Result)
	}
	if s.Unit.NeedDaemonReload {
		add("daemon-reload", f.systemctl()+" daemon-reload", "unit files changed on disk since systemd read them")
	}
	if t := s.Txn; t != nil {
		what := "an upgrade"
		if t.Kind == string(release.KindRollback) {
			what = "a rollback"
		}
		switch {
		case t.Running:
			add("upgrade-running", f.zdt()+" watch "+s.Name, "%s is in phase %s (pid %d, by %s)", what, t.Phase, t.PID, cmp.Or(t.Who, "somebody"))
		case t.Frozen && s.Runtime != nil && s.Runtime.Handoff != nil && s.Runtime.Handoff.TxID == t.TxID:
			add("frozen", f.zdt()+" promote "+s.Name+", or "+f.zdt()+" abort "+s.Name, "%s is frozen (%s): both programs run until somebody decides; at %s it is undone",
				what, cmp.Or(t.Reason, "?"), t.Deadline.Local().Format(time.DateTime))
		default:
			add("upgrade-open", f.zdt()+" resume "+s.Name, "%s was interrupted: it stopped in phase %s, and pid %d, which worked on it, is gone", what, t.Phase, t.PID)
		}
	}
	if l := s.Lock; l != nil && (s.Txn == nil || !s.Txn.Running) {
		text := fmt.Sprintf("somebody works on it: pid %d, by %s", l.PID, cmp.Or(l.Who, "somebody"))
		if l.Phase.Valid() {
			text += ", in phase " + string(l.Phase)
			if l.Phase.Before(release.PhaseTrigger) {
				text += "; the service is untouched so far"
			}
		}
		add("busy", f.zdt()+" watch "+s.Name, "%s", text)
	}
	if h := s.Hold; h != nil {
		add("held", f.zdt()+" hold "+s.Name+" --off", "held by %s since %s: %s", h.Who, h.Since.Local().Format(time.DateTime), h.Why)
	}
	if s.RuntimeProblem != "" && s.State == stateServing {
		add("runtime", "", "%s", s.RuntimeProblem)
	}
	if r := s.Runtime; r != nil {
		if s.Running != nil && s.Current != nil && s.Running.ID != s.Current.ID && s.Txn == nil && r.Handoff == nil {
			add("drift", f.zdt()+" upgrade "+s.Name+" --binary FILE", "a restart would start release %s, which is not the one that runs", s.Current.ID)
		}
		switch {
		case !r.TookOver || s.RuntimeProblem != "":
		case isHelper(*r):
			add("took-over", f.journal(unit), "the program was started again because its successor died")
		default:
			add("took-over", f.journal(unit), "this generation serves again because its successor died")
		}
		if m := r.Moves; m != nil && m.Differing > 0 {
			add("moves-differ", f.journal(unit), "the kernel says other things of %s than before the move: %s", plural(m.Differing, "moved connection"), m.LastDifference)
		}
		if r.EventsLost > 0 {
			add("events-lost", "", "%s could not be written to the journal", plural(int(r.EventsLost), "event"))
		}
		if l := r.Last; l != nil && !l.Committed {
			add("last-handoff", f.journal(unit), "the last handoff was undone (%s): %s", l.Reason, l.Detail)
		}
	}
	if s.State != stateNone && !s.Managed {
		add("unmanaged", f.zdt()+" init "+s.Name+" --exec FILE", "zdt does not manage this service")
	}
}
