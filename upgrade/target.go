package upgrade

import (
	"errors"
	"fmt"

	"github.com/zdt-dev/zdt/release"
)

// What a transaction goes to: a file that becomes a release, or a release that is there.

// checkRequest looks at what was asked for as far as it can be known before the service was looked at.
func (r *run) checkRequest() error {
	o := r.Options
	switch {
	case o.Binary != "" && o.Release != "":
		return refuse("name one of them", "both a file and a release are named")
	case o.Kind == release.KindRollback && o.Binary != "":
		return refuse(r.zdt("upgrade", o.Service, "--binary", o.Binary), "a rollback goes to a release that has served, not to a file")
	case o.Kind == release.KindRollback:
		return nil // which one depends on what runs
	case o.Release == "" && o.Binary == "":
		return r.checkFile(r.current.Path)
	}
	path := o.Binary
	if o.Release != "" {
		to, err := r.Store.Get(o.Release)
		if err != nil {
			return refuse(r.zdt("history", o.Service), "find release %s: %w", o.Release, err)
		}
		path = to.Path
	}
	return r.checkFile(path)
}

func (r *run) checkFile(path string) error {
	return r.objection(r.Check(path))
}

// stage makes the release that is gone to, or finds it.
func (r *run) stage() error {
	o := r.Options
	var err error
	switch {
	case o.Kind == release.KindRollback:
		err = r.findEarlier()
	case o.Release != "":
		r.to, err = r.intact(o.Release)
	case o.Binary == "": // as it is now, when an interrupted rollback has been put in order
		r.to, err = r.intact(r.current.ID)
	default:
		err = r.stageFile()
	}
	if err != nil {
		return err
	}
	r.report.To = describe(r.to)
	if r.current.ID == r.to.ID && r.running == r.to.ID {
		r.report.Outcome = Unchanged
	}
	return nil
}

// stageOptions are those of the file that is upgraded to; a plan looks at it with the same.
func (r *run) stageOptions() release.StageOptions {
	return r.Options.Stage
}

func (r *run) stageFile() error {
	to, err := r.Store.Stage(r.ctx, r.Options.Binary, r.stageOptions())
	if err != nil {
		return &Failure{Outcome: Refused, Err: fmt.Errorf("stage release: %w", err), Hint: hintOf(err)}
	}
	r.to = to
	if to.Tree != nil { // only now is there a program to look at
		if err := r.checkFile(to.Path); err != nil {
			return err
		}
	}
	for _, name := range to.Dropped {
		r.warn("the release does not carry %s of %s; does the program need it?", name, r.Options.Binary)
	}
	return nil
}

// intact is the release id, which is the one that was staged, byte for byte: it was there for a while.
func (r *run) intact(id string) (release.Release, error) {
	to, err := r.Store.Get(id)
	if err == nil {
		err = r.Store.Verify(r.ctx, to)
	}
	// What has served is gone back to whatever the policy is by now, if root wants that.
	if err == nil && (r.Options.Kind != release.KindRollback || r.Options.Restricted) {
		err = r.Options.Stage.Keys.Believe(to, r.Options.Stage.Require)
	}
	if err != nil {
		return to, refuse(hintOf(err), "use release %s: %w", id, err)
	}
	return to, nil
}

// findEarlier finds the release that a rollback goes to. Without a name that is the last committed one: the one
// before the current release or, where another runs than the current one, that never came to be committed, the current one. Of a service that is down
// nothing runs, and the current release is the one to get away from.
func (r *run) findEarlier() error {
	id := r.Options.Release
	switch {
	case id != "":
		if err := r.hasServed(id); err != nil {
			return err
		}
	case !r.down && r.running != r.current.ID:
		id = r.current.ID
	default:
		to, err := r.Store.Previous()
		if err != nil {
			hint := hintOf(err)
			if errors.Is(err, release.ErrNoPrevious) {
				hint = r.zdt("history", r.Options.Service) + " shows what there was; name a release that has served with --to"
			}
			return &Failure{Outcome: Refused, Err: err, Hint: hint}
		}
		id = to.ID
	}
	to, err := r.intact(id)
	if err == nil {
		err = r.checkFile(to.Path)
	}
	r.to = to
	return err
}

// hasServed refuses a release that was never committed: nobody knows whether it is good.
func (r *run) hasServed(id string) error {
	h, err := r.Store.History()
	if err != nil {
		return &Failure{Outcome: Refused, Err: err, Hint: hintOf(err)}
	}
	if id == r.current.ID {
		return nil
	}
	for _, e := range h.Entries {
		if e.Committed && (e.To == id || e.From == id) {
			return nil
		}
	}
	return refuse(r.zdt("upgrade", r.Options.Service, "--release", id), "release %s has never served %s: a rollback does not go there", id, r.Options.Service)
}

// prefer makes the release that is rolled back to the one that systemd starts, before the handoff: it is the one that is
// known to be good, whatever becomes of this process or of the host meanwhile. An upgrade does so last.
func (r *run) prefer() error {
	if r.Options.Kind != release.KindRollback {
		return nil
	}
	if err := r.Store.Flip(r.to); err != nil {
		return &Failure{Outcome: Refused, Reason: reasonRecord, Err: fmt.Errorf("make the earlier release the current one: %w", err), Hint: hintOf(err)}
	}
	return nil
}

// unprefer takes that back when the rollback came to nothing. When nobody knows whether it did (keep), what is known to be
// good stays what a restart starts, and whoever settles the record looks.
func (r *run) unprefer() {
	if r.keep || r.Options.Kind != release.KindRollback || r.txn.TxID == "" || r.report.Outcome == Upgraded {
		return
	}
	now, err := r.Store.Current()
	if err == nil && now.ID == r.current.ID {
		return
	}
	if err == nil {
		err = r.Store.Flip(r.current)
	}
	if err != nil {
		r.keep = true
		r.warn("a restart would start release %s and not %s, which serves: %v", r.to.ID, r.current.ID, err)
	}
}
