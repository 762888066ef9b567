package upgrade

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"github.com/zdt-dev/zdt/release"
)

// preflight proves that the service can do a handoff now, and finishes or
// undoes what an earlier zdt left.
func (r *run) preflight() error {
	if err := r.findCurrent(); err != nil {
		return err
	}
	if err := r.checkHold(); err != nil {
		return err
	}
	if err := r.checkRequest(); err != nil {
		return err
	}
	if err := r.checkPlan(); err != nil {
		return err
	}
	old, err := r.openTxn()
	if err != nil {
		return err
	}
	r.awaitRestart(old)
	if err := r.survey(); err != nil {
		return err
	}
	if err := r.checkFrozen(old); err != nil {
		return err
	}
	if err := r.putInOrder(old); err != nil {
		return err
	}
	if err := r.findFrom(); err != nil {
		return err
	}
	return r.checkFindings()
}

func (r *run) findCurrent() error {
	current, err := r.Store.Current()
	switch {
	case errors.Is(err, release.ErrNoCurrent):
		return refuse(r.zdt("init", r.Options.Service, "--exec FILE"), "%s has no release yet", r.Options.Service)
	case err != nil:
		return &Failure{Outcome: Refused, Err: err, Hint: hintOf(err)}
	}
	r.setCurrent(current)
	return nil
}

// checkHold refuses to work on a service that somebody holds. What another zdt has left may be settled all the same.
func (r *run) checkHold() error {
	h, err := r.Store.Hold()
	name := r.Options.Service
	switch {
	case errors.Is(err, release.ErrNoHold):
		return nil
	case err != nil:
		return &Failure{Outcome: Refused, Err: err, Hint: hintOf(err)}
	case r.Options.IgnoreHold:
		r.warn("%s is held by %s since %s: %s", name, h.Who, h.Since.Local().Format(time.DateTime), h.Why)
		return nil
	}
	r.report.Holder = map[string]any{"who": h.Who.String(), "since": h.Since, "why": h.Why}
	return &Failure{Outcome: Locked, Err: fmt.Errorf("held by %s since %s: %s", h.Who, h.Since.Local().Format(time.DateTime), h.Why),
		Hint: fmt.Sprintf("ask them; %s ends it, --ignore-hold goes on all the same", r.zdt("hold", name, "--off"))}
}

// survey looks at the unit.
func (r *run) survey() (err error) {
	if r.Host.Tidy != nil {
		if err := r.Host.Tidy(r.ctx); err != nil {
			return &Failure{Outcome: Refused, Err: fmt.Errorf("remove what an earlier zdt left: %w", err), Hint: hintOf(err)}
		}
	}
	if r.unit, err = r.Host.Unit(r.ctx); err != nil {
		return &Failure{Outcome: Refused, Err: err, Hint: hintOf(err)}
	}
	return r.checkUnit()
}

// putInOrder brings the service to where a handoff can start, and closes the record of a
// transaction that was not concluded.
func (r *run) putInOrder(old release.Txn) error {
	if r.down {
		if old.TxID == "" {
			return nil
		}
		return r.recoverDown(old)
	}
	if r.Options.Strategy == StrategyRestart && !r.unit.Runtime {
		return r.withoutRuntime(old)
	}
	if err := r.becomeIdle(old.TxID); err != nil {
		return err
	}
	r.report.Incumbent = serving(r.before)
	if err := r.findRunning(); err != nil || old.TxID == "" {
		return err
	}
	return r.recover(old)
}

// withoutRuntime is putInOrder for a main process that nobody can ask: it serves, for all that systemd knows.
func (r *run) withoutRuntime(old release.Txn) (err error) {
	r.report.Incumbent = r.unit.MainPID
	r.running, _, err = r.runs(r.unit.MainPID, "")
	if err != nil {
		return refuse(r.systemctl("status", r.unit.Name), "find the running release: %w", err)
	}
	if old.TxID == "" {
		return nil
	}
	return r.recover(old)
}

// setCurrent notes what systemd would start, which is also what a rollback
// would go back to unless findFrom knows better.
func (r *run) setCurrent(rel release.Release) { r.current, r.report.From = rel, describe(rel) }

// openTxn returns the record of a transaction that was not concluded; its TxID
// is empty when there is none.
func (r *run) openTxn() (release.Txn, error) {
	old, err := r.Store.ReadTxn()
	if errors.Is(err, release.ErrNoTxn) {
		return release.Txn{}, nil
	}
	if err != nil {
		return old, &Failure{Outcome: Refused, Err: err, Hint: hintOf(err)}
	}
	return old, nil
}

func (r *run) checkUnit() error {
	u := r.unit
	name := r.Options.Service
	switch {
	case u.Job && u.ActiveState != "reloading": // a reload is waited for: an upgrade that was cut short may be behind it
		return refuse("wait for it: "+r.systemctl("list-jobs"), "a job of systemd is queued or running for %s", u.Name)
	case u.LoadState == "masked":
		return refuse(r.systemctl("unmask", u.Name), "%s is masked: systemd does not start it", u.Name)
	case !up(u) && u.ActiveState != "inactive" && u.ActiveState != "failed":
		return refuse(r.systemctl("status", u.Name), "%s is %s", u.Name, u.ActiveState)
	case !up(u) && r.Options.Restricted:
		return refuse("ask an administrator to start it: "+r.systemctl("start", u.Name), "%s is %s, and an operator may not start it", u.Name, u.ActiveState)
	case !up(u):
		r.down = true // there is nothing to hand over, and nobody who could notice
		return r.checkProgram()
	case u.MainPID == 0:
		return refuse(r.systemctl("status", u.Name), "%s has no main process", u.Name)
	case r.Options.Strategy == StrategyRestart:
		return r.checkProgram()
	case u.Type != "notify" && u.Type != "notify-reload":
		return refuse(r.zdt("init", name)+" writes a unit that works", "%s has Type=%s; a handoff needs notify", u.Name, u.Type)
	case u.NotifyAccess == "none":
		return refuse("set NotifyAccess=main: "+r.systemctl("edit", u.Name), "%s has NotifyAccess=none: systemd would not hear of the new main process and would end the service", u.Name)
	}
	return r.checkProgram()
}

// checkProgram: a start of the unit has to start the current release.
func (r *run) checkProgram() error {
	u, name := r.unit, r.Options.Service
	want := filepath.Join(r.Store.Dir(), "current") + "/"
	if !strings.HasPrefix(u.Program, want) {
		return refuse(r.zdt("init", name, "--exec", u.Program), "%s starts %s, not a release below %s: a restart would not follow the upgrade", u.Name, u.Program, want)
	}
	return nil
}

// findRunning finds the release that the incumbent runs.
func (r *run) findRunning() error {
	pid := serving(r.before)
	var exe string
	var err error
	if r.running, exe, err = r.runs(pid, said(r.before)); err != nil {
		return refuse(r.systemctl("status", r.unit.Name), "find the running release: %w", err)
	}
	if r.running != "" || isHelper(r.before) {
		return nil
	}
	if r.looking {
		r.warn("process %d runs %s, which is no release (any more): an upgrade first makes one of it, so that there is something to go back to", pid, exe)
		return nil
	}
	// Whoever has copied a new version over it has taken its name, not its bytes.
	if rel, err := r.recoverRunning(pid); err == nil {
		r.warn("process %d runs %s, which is no release (any more): it is one now, %s, so that there is something to go back to", pid, exe, rel.ID)
		r.running, r.recovered = rel.ID, true
		return nil
	}
	r.warn("process %d runs %s, which is no release; after a rollback by restart release %s would run", pid, exe, r.current.ID)
	return nil
}

func (r *run) recoverRunning(pid int) (release.Release, error) {
	p, err := release.ProcOf(pid)
	if err != nil {
		return release.Release{}, err
	}
	return r.Store.Recover(r.ctx, p, release.StageOptions{Who: &r.Who, Why: r.Options.Why})
}

// runs finds the release that a process executes, "" for another file, whose
// name is returned. The kernel decides where it names a release. Of a script it names the
// interpreter: then what the helper says it has started counts. That may be the
// link to the current release, by which the unit starts it.
func (r *run) runs(pid int, said string) (id, exe string, err error) {
	if exe, err = r.Host.Exe(pid); err != nil {
		return "", "", err
	}
	if id = releaseOf(r.Store, exe); strings.HasSuffix(exe, deleted) {
		return "", exe, nil // what has that name now is another file
	}
	if id == "" && said != "" {
		switch id = releaseOf(r.Store, said); {
		case id == "" && filepath.Dir(said) == filepath.Join(r.Store.Dir(), "current"):
			id = r.current.ID
		case id == "":
			exe = said
		}
	}
	return id, exe, nil
}

// deleted is what the kernel adds to the name of a file that has it no more (proc_pid_exe(5)).
const deleted = " (deleted)"

// findFrom corrects the release to go back to: the one that runs, should it
// not be the current one.
func (r *run) findFrom() error {
	if r.running == "" || r.running == r.current.ID {
		return nil
	}
	rel, err := r.Store.Get(r.running)
	if err != nil {
		// It runs, but it is not there any more; only current can be started.
		r.warn("release %s runs and cannot be started again (%v); a restart starts %s", r.running, err, r.current.ID)
		rel = release.Release{ID: r.running}
	} else {
		r.warn("release %s runs, but a restart would start %s", r.running, r.current.ID)
	}
	r.report.From = describe(rel)
	return nil
}

// releaseOf returns the ID of the release that the executed file path lies in,
// or "". The kernel names files by their real path, the store's may lead
// through links (/home on some hosts).
func releaseOf(store Store, path string) string {
	dir := filepath.Join(store.Dir(), "releases")
	if real, err := filepath.EvalSymlinks(dir); err == nil {
		dir = real
	}
	rel, err := filepath.Rel(dir, path)
	if err != nil {
		return ""
	}
	id, _, inside := strings.Cut(rel, string(filepath.Separator))
	if !inside || !release.ValidID(id) {
		return ""
	}
	return id
}

func describe(rel release.Release) *Release {
	d := &Release{ID: rel.ID, SHA256: rel.SHA256, Path: rel.Path}
	if rel.Build != nil {
		d.Version = rel.Build.Version
	}
	return d
}
