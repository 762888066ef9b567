package cmd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/zdt-dev/zdt/dbusctl"
	"github.com/zdt-dev/zdt/internal/operators"
	"github.com/zdt-dev/zdt/release"
	"github.com/zdt-dev/zdt/upgrade"
)

// newAcceptCmd is what ExecReload= of the unit of a service's operators runs.
func newAcceptCmd(f *factory) *cobra.Command {
	var sweep bool
	cmd := &cobra.Command{
		Use:    "accept NAME",
		Hidden: true, // nobody but systemd has a use for it
		Short:  "Carry out what operators have asked for (ExecReload=)",
		Long: `Carry out what a member of the service's operators has asked for in the incoming
directory, in a unit of its own, wait for its end, and end as it did. People use
zdt upgrade.`,
		Example: `  ExecReload=/usr/local/bin/zdt accept web      (in zdt-operator@web.service)`,
		Args:    arguments(1, 1, "the NAME of the service"),
	}
	cmd.Flags().BoolVar(&sweep, "sweep", false, "carry out nothing: remove what is left over")
	return f.command(cmd, func(ctx context.Context, args []string) error {
		name, err := serviceName(args[0])
		if err != nil {
			return err
		}
		return runAccept(ctx, f, name, sweep)
	}, upgradeCodes()...)
}

// look is the time between two looks for requests.
const look = 50 * time.Millisecond

// An acceptor takes requests, one after the other. While an upgrade runs it only takes orders about that.
type acceptor struct {
	f       *factory
	paths   Paths
	name    string
	box     *operators.Box
	running *carried // nil: none
	verdict error    // what systemctl reload is told
}

func runAccept(ctx context.Context, f *factory, name string, sweep bool) error {
	p, err := f.paths()
	if err != nil {
		return err
	}
	if p.Operators == "" || p.Root != "" {
		return usage("", "accept: operators are for services of the running system")
	}
	if f.euid != 0 {
		return fail(ExitNotAuthorised, f.zdt()+" upgrade "+name+" --binary FILE", "accept: systemd runs this, as root")
	}
	box, err := operators.Open(p.OperatorsOf(name), name)
	if errors.Is(err, fs.ErrNotExist) {
		return fail(ExitRefused, f.zdt()+" operators "+name+" --group GROUP", "%s has no operators", name)
	}
	if err != nil {
		return &Failure{Code: ExitRefused, Err: fmt.Errorf("open requests: %w", err), Hint: f.zdt() + " operators " + name + " --group GROUP puts it right"}
	}
	defer box.Close()
	if err := box.Sweep(f.now(), sweep); err != nil {
		f.say("%s %v", f.errStyle().warn.Render("warning:"), err)
	}
	a := &acceptor{f: f, paths: p, name: name, box: box}
	a.clear(ctx)
	if sweep {
		return nil
	}
	return a.run(ctx)
}

// clear removes the copies of files whose upgrade is over.
func (a *acceptor) clear(ctx context.Context) {
	sd, err := a.f.dialSystemd(ctx, false)
	if err != nil {
		return // the next one does it
	}
	defer sd.Close()
	if err := a.box.Clear(func(txid string) bool {
		u, err := sd.Unit(ctx, transactionName(a.name, txid))
		return err != nil && !errors.Is(err, dbusctl.ErrNoUnit) || u.ActiveState == "active" || u.ActiveState == "activating" || u.ActiveState == "deactivating"
	}); err != nil {
		a.f.say("%s %v", a.f.errStyle().warn.Render("warning:"), err)
	}
}

// run takes requests until there are none and nothing is carried out.
func (a *acceptor) run(ctx context.Context) error {
	tick := time.NewTicker(look)
	defer tick.Stop()
	defer func() {
		if a.running != nil {
			a.running.leave()
		}
	}()
	var taken []string // in the pass before
	for {
		ids, err := a.box.Waiting()
		if err != nil {
			return fmt.Errorf("look for requests: %w", err)
		}
		for _, id := range ids {
			if ctx.Err() != nil {
				break // however many more there are
			}
			a.take(ctx, id)
		}
		switch {
		case a.running != nil:
		case ctx.Err() != nil:
			return fail(codeOf(context.Cause(ctx)), "", "%w", context.Cause(ctx))
		case len(ids) > 0 && !slices.Equal(ids, taken):
			taken = ids
			continue
		case len(ids) > 0: // they could not be taken away, and would be there for ever
			return errors.Join(a.verdict, fail(ExitRefused, "is the disk mounted read-only?", "requests of %s cannot be taken away", a.name))
		default:
			return a.verdict
		}
		select {
		case u := <-a.running.updates:
			a.running.answer.update(u)
		case w := <-a.running.ended:
			a.finish(ctx, w)
		case <-tick.C:
		case <-ctx.Done():
			err := fail(codeOf(context.Cause(ctx)), a.f.zdt()+" attach "+a.name, "%w; %s of %s goes on", context.Cause(ctx), a.running.txid, a.name)
			a.running.answer.end(newErrorDoc(err))
			return err
		}
	}
}

// take takes one request and does what it asks for.
func (a *acceptor) take(ctx context.Context, id string) {
	t, err := a.box.Take(id, a.f.now())
	txid, terr := release.NewTxID()
	if err = errors.Join(err, terr); err != nil {
		err = refused(err)
	}
	answer, oerr := a.open(id, txid)
	if errors.Is(oerr, fs.ErrExist) && err == nil {
		// An ID is drawn by chance, 128 bits: somebody has seen another's and used it. What is asked for under it gets no answer of its own.
		err = fail(ExitRefused, "ask again", "request %s was answered before", id)
	}
	who := release.Operator(t.UID)
	if err == nil {
		a.f.say("%s asks for: %s", clean(who.String()), t.Request.Do)
		err = a.member(ctx, t.UID)
	}
	busy := false
	switch order := upgrade.Order(t.Request.Do); {
	case err != nil:
	case t.Request.Do == operators.Promote || t.Request.Do == operators.Abort:
		if err = a.order(ctx, order, t.Request.TxID, who, answer); err == nil {
			return // answered when the upgrade is over
		}
	case a.running != nil:
		busy = true
		err = fail(ExitBusy, a.f.zdt()+" status "+a.name+"; --wait waits", "%s asked for %s, which is carried out", clean(a.running.who.String()), a.running.txid)
	default:
		if err = a.carry(ctx, t, who, txid, answer); err == nil {
			return
		}
	}
	a.f.tellText(err)
	answer.end(newErrorDoc(err))
	if !busy { // it is asked for again with what lies beside it
		a.box.Drop(id, t.UID)
		if a.running == nil && a.verdict == nil {
			a.verdict = &Failure{Code: codeOf(err), Err: err, Told: true}
		}
	}
}

// member refuses a user who is not among the operators.
func (a *acceptor) member(ctx context.Context, uid int) error {
	h := &host{paths: a.paths, service: a.name}
	return h.isOperator(ctx, uid)
}

// open begins an answer. Without one nobody hears of it, and all else goes on; the error says why.
func (a *acceptor) open(id, txid string) (*broadcast, error) {
	file, oerr := a.box.Answer(id)
	if oerr != nil {
		a.f.say("%s answer request %s: %v", a.f.errStyle().warn.Render("warning:"), id, oerr)
		var err error
		if file, err = os.OpenFile(os.DevNull, os.O_WRONLY, 0); err != nil {
			file = nil // its writes fail, which nobody looks at
		}
	}
	b := &broadcast{file: file, left: broadcastMost}
	if runner, err := release.ProcOf(os.Getpid()); err == nil {
		b.line(broadcastHead{"zdt.running/1", a.name, txid, runner})
	}
	return b, oerr
}

// finish answers everybody who waits for the end of what was carried out.
func (a *acceptor) finish(ctx context.Context, w watched) {
	c := a.running
	a.running = nil
	defer c.leave()
	for done := false; !done; {
		select {
		case u := <-c.updates:
			c.answer.update(u)
		default:
			done = true
		}
	}
	if w.err != nil {
		w.ending = ending{err: &Failure{Code: codeOf(w.err), Err: w.err, Hint: hintOf(w.err)}}
	}
	for _, o := range c.orders {
		o.answer.end(o.document(w.ending))
	}
	c.answer.end(w.ending.document())
	if !c.adopted {
		if err := a.f.present(w.ending); err != nil {
			var failure *Failure
			if !errors.As(err, &failure) || !failure.Told {
				a.f.tellText(err)
			}
			a.verdict = &Failure{Code: codeOf(err), Err: err, Told: true}
		}
	}
	a.clear(ctx)
}

// document is what tells an ending to another zdt.
func (e ending) document() any {
	if e.err != nil {
		return newErrorDoc(e.err)
	}
	return *e.report
}
