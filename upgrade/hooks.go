package upgrade

import (
	"context"
	"time"

	"github.com/zdt-dev/zdt/handoff/control"
	"github.com/zdt-dev/zdt/release"
)

// HookPoint is a place in a transaction at which programs of the administrator run.
type HookPoint string

const (
	HookPreUpgrade HookPoint = "pre-upgrade" // nothing was touched yet; an objection refuses the upgrade
	HookPostListen HookPoint = "post-listen" // the candidate is READY; an objection undoes the upgrade
	HookPreCommit  HookPoint = "pre-commit"  // the probation is over; an objection undoes the upgrade
	HookPostCommit HookPoint = "post-commit" // the new release serves; an objection is a warning
	HookRollback   HookPoint = "rollback"    // the old release serves on, or again; an objection is a warning
)

// HookDoc is what hooks are told of the transaction; they get it as JSON.
type HookDoc struct {
	Schema    string       `json:"schema"` // zdt.hook/1
	Point     HookPoint    `json:"point"`
	Service   string       `json:"service"`
	Unit      string       `json:"unit"`
	TxID      string       `json:"txid"`
	Kind      release.Kind `json:"kind"`
	From      *Release     `json:"from,omitempty"`
	To        *Release     `json:"to,omitempty"`
	Incumbent int          `json:"incumbent,omitempty"` // pid
	Candidate int          `json:"candidate,omitempty"` // pid
	Who       release.Who  `json:"who"`
	Why       string       `json:"why,omitempty"`
	Reason    string       `json:"reason,omitempty"` // of a rollback
}

// HookRun is a hook that ran.
type HookRun struct {
	Point    HookPoint     `json:"point"`
	Name     string        `json:"name"`      // its path
	Took     time.Duration `json:"took"`      // nanoseconds
	ExitCode int           `json:"exit_code"` // -1: it did not exit by itself
	Error    string        `json:"error,omitempty"`
	Tail     []string      `json:"tail,omitempty"` // its last lines
	Cut      int           `json:"cut,omitempty"`  // how many lines there were before
}

// Hooks are the administrator's programs for a service.
type Hooks struct {
	// Limit bounds the time that those of one point take together, Each that of one of them.
	Limit, Each time.Duration
	// Found are the paths of those of each point, in the order in which they run.
	Found map[HookPoint][]string
	// Run runs those of d.Point, one after the other, until one objects: that is the error.
	Run func(ctx context.Context, d HookDoc) ([]HookRun, error)
}

// hook runs the hooks of a point, and returns the objection of one of them.
func (r *run) hook(ctx context.Context, point HookPoint, reason string) error {
	if r.Hooks == nil {
		return nil
	}
	if point == HookPostListen || point == HookPreCommit {
		r.holdLonger(ctx)
	}
	runs, err := r.Hooks.Run(ctx, HookDoc{
		Schema: "zdt.hook/1", Point: point, Service: r.Options.Service, Unit: r.unit.Name, TxID: r.report.TxID, Kind: r.Options.Kind,
		From: r.report.From, To: r.report.To, Incumbent: r.report.Incumbent, Candidate: r.report.Candidate, Who: r.Who, Why: r.Options.Why, Reason: reason,
	})
	r.report.Hooks = append(r.report.Hooks, runs...)
	if err != nil && r.ctx.Err() != nil && point != HookPostCommit && point != HookRollback {
		return context.Cause(r.ctx) // it was not asked to the end
	}
	return err
}

// remark runs the hooks that change nothing any more.
func (r *run) remark(point HookPoint, reason string) {
	if err := r.hook(context.WithoutCancel(r.ctx), point, reason); err != nil {
		r.warn("%s hook: %v", point, err)
	}
}

// holdLonger has the incumbent wait for zdt's decision for as long as hooks and probation may take from now on. A runtime
// that cannot is told so by its own deadline.
func (r *run) holdLonger(ctx context.Context) {
	if r.ev == nil {
		return
	}
	_, err := r.ask(context.WithoutCancel(ctx), func(c *control.Client, ctx context.Context) (control.Status, error) {
		return c.Extend(ctx, r.report.TxID, min(r.heldFor()+r.Hooks.Limit, control.MaxHold))
	})
	if err != nil {
		r.warn("the time for the hooks could not be had: %v", err)
	}
}

// objects is what the objection of a hook makes of the transaction; an interrupt stays one.
func (r *run) objects(err error) error {
	if err == nil || r.endedBy(err) {
		return err
	}
	return &Failure{Reason: reasonHook, Err: err, Hint: "a hook objects: " + r.journalctl("ZDT_TXID="+r.report.TxID)}
}
