package upgrade

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/zdt-dev/zdt/handoff/control"
	"github.com/zdt-dev/zdt/handoffcheck"
	"github.com/zdt-dev/zdt/release"
)

// Options are what the operator asked for and what the unit's policy says.
type Options struct {
	Service string
	// Kind is what is asked for: an upgrade (also ""), or a rollback, which goes to a release that has
	// served before, and without probation.
	Kind release.Kind
	// Binary is the file to upgrade to, Release the ID of a release that is in the store already. With neither an
	// upgrade is to the current release once more, a rollback to the last committed one before it.
	Binary  string
	Release string
	Stage   release.StageOptions // what is expected of Binary; of Release its Require and Keys
	Why     string
	TxID    string // what it is known by; "": a new one
	// User: the service belongs to a user manager. It decides how commands
	// in hints are spelled.
	User bool

	Strategy     Strategy      // "" is a handoff; a service that is down is started whatever it says
	Bake         time.Duration // probation of the candidate between READY and commit
	ReadyTimeout time.Duration // bound on fork → READY; 0 is 30 s, the runtime's own default
	DrainTimeout time.Duration // bound on commit → exit; 0 is 30 s
	OnFailure    OnFailure     // what follows when the probation fails and the candidate lives; "" is Rollback
	Freeze       time.Duration // bound on a freeze; 0 is DefaultFreeze
	Wait         time.Duration // for the lock: 0 not at all, negative without bound
	IgnoreHold   bool          // go on although somebody holds the service
	PlanID       string        // refuse unless the world is the one of this plan
	// AcceptRisk are the IDs of findings that refuse nothing.
	AcceptRisk []string
	// Retain says how many old releases stay when an upgrade has committed; nil: all.
	Retain *Retention
	// Restricted: who asks may upgrade the service and do nothing else. It is not started if it is down, and a rollback goes to no release
	// that the policy does not believe by now.
	Restricted bool
}

// Engine carries one transaction out.
type Engine struct {
	Options Options
	Host    Host
	Store   Store
	// LockPath is the service's lock file.
	LockPath string
	Who      release.Who
	// Admit is asked under the service's lock, before anything is looked at, whether this may be done: for whoever waited for the
	// lock the world may have moved. Its error refuses. nil: it may.
	Admit func(ctx context.Context) error
	// Check looks at the file before anything is changed; its error says what
	// is wrong with it.
	Check func(path string) error
	// Findings are what zdt check finds in the unit and the running program. A blocker among them refuses, except a rollback, unless
	// Options.AcceptRisk has its ID. An error is no finding. nil: nobody looks.
	Findings func(ctx context.Context) ([]handoffcheck.Finding, error)
	// Gates are what the candidate has to pass; nil: to live is enough.
	Gates *Gates
	// Rehearsal tries the release beside the service before anything is changed; nil: there is no such phase.
	Rehearsal *Rehearsal
	// Hooks are the administrator's programs; nil: there are none.
	Hooks *Hooks
	// Sight is what a plan sees. Plan and Options.PlanID need it; without it an upgrade to the file that serves already is
	// refused like any other where there are blockers.
	Sight *Sight
	// Observe is told of every phase; it must not block. nil: nobody wants to know.
	Observe func(Update)
	// Orders are an operator's decisions about this transaction while it runs; nil: nobody can give any.
	Orders <-chan Order
	// ExitCode maps an outcome to the exit code that history keeps.
	ExitCode func(Report) int

	// slack is added to the runtime's own deadlines: it decides first, and zdt
	// only when it does not. It also bounds what should take no time at all.
	// Set by tests only; 0 is defaultSlack.
	slack time.Duration
}

const (
	defaultSlack   = 5 * time.Second
	defaultTimeout = 30 * time.Second // handoff.DefaultReadyTimeout and DefaultDrainTimeout

	// settle is the shortest probation of a candidate. A program that falls over
	// its first request or its first goroutine after READY does so within a few
	// milliseconds; before the commit that costs nothing but this time.
	settle = 50 * time.Millisecond
)

// run is the state of one transaction; one goroutine owns it.
type run struct {
	Engine
	ctx    context.Context // the operator's; ends with an interrupt
	lock   *release.Lock
	report Report
	txn    release.Txn // TxID is empty until there is a record
	keep   bool        // the record stays: the next zdt has something to finish

	to        release.Release
	current   release.Release // what systemd starts
	running   string          // ID of the release that the incumbent runs, "" for another file
	recovered bool            // and that was made of the running process
	looking   bool            // nothing may be changed: it is for a plan
	earlier   Order           // what an operator wanted before there was evidence
	unit      Unit
	down      bool            // the unit does not run
	before    control.Status  // what the incumbent said when it was idle
	client    *control.Client // commands to the incumbent; nil: to be connected anew
	ev        *evidence       // nil before the trigger
	story     *story
	cursor    string

	committing bool    // the incumbent may have committed
	aborting   bool    // what another zdt has left is undone because somebody wants that
	settled    Outcome // of what another zdt has left

	phase      Phase
	phaseStart time.Time
}

// Run carries the transaction out and returns its report; the report always
// says what the state of the service is. When ctx ends before the commit the
// handoff is undone, after it the rest is only shortened.
func (e Engine) Run(ctx context.Context) Report {
	r := e.newRun(ctx)
	r.begin(Preflight, "")
	err := r.acquire()
	if err == nil {
		// Released last: the record and the history belong to the holder.
		defer r.lock.Release()
		err = r.transact()
	}
	r.conclude(err)
	return r.report
}

func (e Engine) newRun(ctx context.Context) *run {
	o := &e.Options
	e.slack = cmp.Or(e.slack, defaultSlack)
	o.ReadyTimeout = cmp.Or(o.ReadyTimeout, defaultTimeout)
	o.DrainTimeout = cmp.Or(o.DrainTimeout, defaultTimeout)
	o.Freeze = min(cmp.Or(o.Freeze, DefaultFreeze), control.MaxHold)
	o.OnFailure = cmp.Or(o.OnFailure, OnFailureRollback)
	o.Kind = cmp.Or(o.Kind, release.KindUpgrade)
	if o.Kind == release.KindRollback {
		o.Bake, e.Gates = 0, nil // it has proved itself, and time counts
	}
	if e.Observe == nil {
		e.Observe = func(Update) {}
	}
	return &run{Engine: e, ctx: ctx, report: Report{Schema: "zdt.upgrade/1", Kind: o.Kind, Service: o.Service, StartedAt: e.Host.Now(), Who: e.Who, Why: o.Why}}
}

// acquire takes the service's lock.
func (r *run) acquire() error {
	txid, err := r.Options.TxID, error(nil)
	if txid == "" {
		if txid, err = release.NewTxID(); err != nil {
			return err
		}
	}
	r.report.TxID = txid
	holder := release.Holder{TxID: txid, Phase: release.PhasePreflight, Since: r.Host.Now(), Who: r.Who, Orders: r.Orders != nil}
	r.lock, err = release.Acquire(r.ctx, r.LockPath, holder, r.Options.Wait)
	if err == nil {
		return nil
	}
	var held *release.HeldError
	if !errors.As(err, &held) {
		return &Failure{Outcome: Refused, Err: fmt.Errorf("take the lock: %w", err), Hint: hintOf(err)}
	}
	h := held.Holder
	if h.PID != 0 {
		r.report.Holder = map[string]any{"pid": h.PID, "txid": h.TxID, "phase": h.Phase, "since": h.Since, "who": h.Who.String()}
	}
	// The hint spells the service's name: HeldError does not know it.
	return &Failure{Outcome: Locked, Err: err, Hint: fmt.Sprintf("wait for it with --wait, or look at it: %s", r.zdt("status", r.Options.Service))}
}

// admitted asks Admit.
func (r *run) admitted() error {
	if r.Admit == nil {
		return nil
	}
	if err := r.Admit(r.ctx); err != nil {
		return &Failure{Outcome: Refused, Err: err, Hint: hintOf(err)}
	}
	return nil
}

func (r *run) transact() error {
	defer r.hangUp()
	if err := r.admitted(); err != nil {
		return err
	}
	if err := r.preflight(); err != nil {
		return err
	}
	r.end(Done, r.asFound())

	r.begin(Stage, cmp.Or(r.Options.Release, r.Options.Binary, string(r.Options.Kind)))
	if err := r.stage(); err != nil {
		return err
	}
	if r.report.Outcome == Unchanged {
		r.end(Done, "this content serves already")
		return nil
	}
	if err := r.objects(r.hook(r.ctx, HookPreUpgrade, "")); err != nil {
		return err
	}
	r.end(Done, r.to.ID)
	if err := r.rehearse(); err != nil {
		return err
	}
	if r.down || r.Options.Strategy == StrategyRestart {
		return r.exchange()
	}
	defer r.closeEvidence()
	return r.handoff(r.steps())
}

// asFound is the service in words, before anything is done to it.
func (r *run) asFound() string {
	switch {
	case r.down:
		return fmt.Sprintf("%s is %s: it will be started", r.unit.Name, r.unit.ActiveState)
	case r.before.PID == 0:
		return fmt.Sprintf("pid %d", r.unit.MainPID)
	}
	return fmt.Sprintf("pid %d, generation %d", r.unit.MainPID, r.report.Generation)
}

// step is one phase of a handoff.
type step struct {
	phase Phase
	do    func() (string, error)
}

// steps are everything from the trigger on.
func (r *run) steps() []step {
	return append([]step{{Trigger, r.trigger}, {Listen, r.listen}, {Bake, r.bake}}, r.lastSteps()...)
}

// lastSteps are those behind the probation.
func (r *run) lastSteps() []step {
	return []step{{Commit, r.commit}, {Drain, r.drain}, {Exit, r.exit}, {Record, r.record}}
}

// handoff goes through steps: whatever fails there is undone.
func (r *run) handoff(steps []step) error {
	for _, step := range steps {
		r.begin(step.phase, "")
		text, err := step.do()
		if err == nil {
			r.end(Done, text)
			continue
		}
		if err := r.undo(err); err != nil {
			return err
		}
		// There was nothing to undo: the new release serves all the same.
		r.begin(Record, "")
		text, err = r.record()
		if err != nil {
			return err
		}
		r.end(Done, text)
		break
	}
	return nil
}

// writeAhead records the phase that is about to begin.
func (r *run) writeAhead(p Phase) error {
	r.txn.Phase = release.Phase(p)
	if err := r.Store.WriteTxn(r.txn); err != nil {
		return &Failure{Reason: reasonRecord, Err: err, Hint: hintOf(err)}
	}
	return nil
}
