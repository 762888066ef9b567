package cmd

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/zdt-dev/zdt/dbusctl"
	"github.com/zdt-dev/zdt/release"
	"github.com/zdt-dev/zdt/upgrade"
)

// runRoll rolls through the instances that args name. Everything that can be refused is, of all of them, before the first one is
// touched; by then the release is in all their stores.
func runRoll(ctx context.Context, f *factory, o rollOptions, args []string) error {
	set, err := f.openSet(args)
	if err != nil {
		if codeOf(err) == ExitNoService {
			err = &Failure{Code: ExitRefused, Err: err, Hint: hintOf(err)} // 4 is for who asks
		}
		return err
	}
	if err := o.check(set); err != nil {
		return err
	}
	paths, err := f.paths()
	if err != nil {
		return err
	}
	// One roll of a template at a time: two would have two of its instances under upgrade.
	lock, err := release.Acquire(ctx, paths.Lock(set.Template), release.Holder{Since: f.now(), Who: release.Identify()}, o.Wait)
	if err != nil {
		return err
	}
	defer lock.Release()
	stopped, err := f.leaveStopped(ctx, &set)
	if err != nil {
		return err
	}
	doc := rollDoc{Schema: "zdt.roll/1", Service: set.Template, Kind: cmp.Or(o.Kind, release.KindUpgrade), Instances: []rollInstance{}, StartedAt: f.now()}
	if err := f.prepareRoll(ctx, o, set, &doc); err != nil {
		return err
	}
	for _, name := range stopped {
		doc.Instances = append(doc.Instances, rollInstance{Service: name, State: rollLeftOut})
	}
	r := roll{doc: &doc, zdt: f.zdt(), transact: f.transactOne, restarts: f.restartsOf}
	if doc.Outcome != "refused" {
		r.run(ctx, o)
	}
	doc.EndedAt = f.now()
	if f.globals.output != outputText {
		if err := f.print(doc); err != nil {
			f.say("zdt: %v", err)
		}
	}
	f.tellEvents(doc)
	f.tellRoll(doc)
	if doc.ExitCode != 0 {
		return &Failure{Code: doc.ExitCode, Err: errors.New(doc.Cause), Told: true}
	}
	return nil
}

// transactOne is the transaction of one instance, told as if it were the only one.
func (f *factory) transactOne(ctx context.Context, service string, o upgradeOptions) (upgrade.Report, error) {
	ctx, cancel := timeoutCause(ctx, o.Timeout)
	defer cancel()
	var err error
	if o.as, err = newIdentity(); err != nil {
		return upgrade.Report{}, err
	}
	p := f.startProgress(service, o.as)
	report, err := f.transact(ctx, o, p.observe)
	if err != nil {
		p.fail(err)
		f.tellText(err)
		return report, err
	}
	p.finish(report)
	report.ExitCode = f.upgradeExit(ctx)(report)
	if f.globals.output == outputNDJSON {
		f.print(report) // a reader that went away does not stop a roll
	}
	f.tellEvents(report)
	f.tellReport(report)
	return report, nil
}

// restartsOf asks systemd how often it has started an instance again.
func (f *factory) restartsOf(ctx context.Context, service string) (uint32, error) {
	bus, err := f.dialSystemd(ctx, f.globals.user)
	if err != nil {
		return 0, err
	}
	defer bus.Close()
	u, err := bus.Unit(ctx, service+".service")
	if err != nil && !errors.Is(err, dbusctl.ErrNoUnit) {
		return 0, err
	}
	if stateOf(u, err != nil) != stateServing {
		return 0, errDown
	}
	return u.NRestarts, nil
}

// member is an instance before the roll.
type member struct {
	site    *site
	current release.Release
	history []release.Entry
}

// prepareRoll fills in what is to be done, or why nothing is.
func (f *factory) prepareRoll(ctx context.Context, o rollOptions, set fleet, doc *rollDoc) error {
	members := make([]member, len(set.Names))
	defer func() {
		for _, m := range members {
			if m.site != nil {
				m.site.close()
			}
		}
	}()
	refuse := func(i int, code ExitCode, cause, hint string) {
		m := &doc.Instances[i]
		m.State, m.ExitCode, m.Cause = rollFailed, int(code), cause
		if doc.Stopped == "" {
			doc.Outcome, doc.Stopped, doc.ExitCode, doc.Cause, doc.Hint = "refused", m.Service, code, cause, hint
		} else {
			doc.Cause += "; " + m.Service + ": " + cause
		}
	}
	for i, name := range set.Names {
		doc.Instances = append(doc.Instances, rollInstance{Service: name, State: rollPending})
		if err := members[i].open(ctx, f, name); err != nil {
			if codeOf(err) == ExitUnavailable || codeOf(err) == ExitNotAuthorised || ctx.Err() != nil {
				return err
			}
			refuse(i, cmp.Or(codeOf(err)), err.Error(), hintOf(err))
			continue
		}
		doc.Instances[i].Runs, doc.Instances[i].From = members[i].current.ID, members[i].current.ID
	}
	if doc.Stopped != "" {
		return nil
	}
	if err := chooseReleases(ctx, f, o, members, doc, refuse); err != nil {
		return err
	}
	if doc.Stopped != "" {
		return nil
	}
	for i, m := range members {
		one := o.upgradeOptions
		one.Service, one.Release, one.Binary, one.SHA256, one.Exec, one.Signature = set.Names[i], doc.Instances[i].To, "", "", "", ""
		if doc.Instances[i].State != rollPending {
			continue
		}
		e, err := m.site.engine(ctx, one, nil)
		if err != nil {
			refuse(i, codeOf(err), err.Error(), hintOf(err))
			continue
		}
		if p := e.Plan(ctx); len(p.Problems) > 0 {
			refuse(i, ExitCode(p.ExitCode), p.Problems[0].Cause, p.Problems[0].Hint)
		}
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return nil
}

// open reads what is known of an instance.
func (m *member) open(ctx context.Context, f *factory, name string) error {
	s, err := f.openSite(ctx, name)
	if err != nil {
		return err
	}
	m.site = s
	if m.current, err = s.store.Current(); err != nil {
		return refused(err)
	}
	h, err := s.store.History()
	if err != nil {
		return refused(err)
	}
	m.history = h.Entries
	return nil
}

// chooseReleases says for each instance which release it goes to, and that there is nothing to do for some.
func chooseReleases(ctx context.Context, f *factory, o rollOptions, members []member, doc *rollDoc, refuse func(i int, code ExitCode, cause, hint string)) error {
	switch {
	case o.Binary != "":
		for i := range members {
			r, err := members[i].stage(ctx, f, o)
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			if err != nil {
				refuse(i, codeOf(refused(err)), err.Error(), hintOf(err))
				return nil // the others would say the same
			}
			doc.Instances[i].To = r.ID
			if content(r.ID) != content(doc.Instances[0].To) {
				refuse(i, ExitRefused, o.Binary+" was changed while it was staged", "run the same command again")
				return nil
			}
		}
	case o.Release != "":
		ref := o.Release
		for _, m := range members { // who knows it by that name tells the others what is in it
			if r, err := m.site.store.Find(ref); err == nil {
				ref = content(r.ID)
				break
			}
		}
		for i, m := range members {
			r, err := m.site.store.Find(ref)
			if err != nil {
				refuse(i, ExitRefused, err.Error(), hintOf(err))
				continue
			}
			doc.Instances[i].To = r.ID
		}
	default:
		var histories [][]release.Entry
		var current []string
		for _, m := range members {
			histories, current = append(histories, m.history), append(current, m.current.ID)
		}
		gone := givenUp(histories, current)
		if gone == "" || !slices.ContainsFunc(current, func(id string) bool { return content(id) == gone }) {
			refuse(0, ExitRefused, "there is no release to go back from: none of them runs the one that was brought to "+strings.TrimSuffix(doc.Service, "@")+" last",
				fmt.Sprintf("%s history NAME; name a release that has served with --to", f.zdt()))
			return nil
		}
		for i, m := range members {
			if content(m.current.ID) != gone {
				doc.Instances[i].State = rollUnchanged
			}
		}
	}
	return nil
}

// stage puts the program into the store of an instance.
func (m *member) stage(ctx context.Context, f *factory, o rollOptions) (release.Release, error) {
	options, err := f.stageOptions(m.site.policy, sourceOptions{Binary: o.Binary, SHA256: o.SHA256, Exec: o.Exec, Signature: o.Signature, Why: o.Why})
	if err != nil {
		return release.Release{}, err
	}
	if err := m.site.blockers(ctx, o.Binary); err != nil {
		return release.Release{}, err
	}
	return m.site.store.Stage(ctx, o.Binary, options)
}
