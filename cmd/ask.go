package cmd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/zdt-dev/zdt/dbusctl"
	"github.com/zdt-dev/zdt/internal/operators"
	"github.com/zdt-dev/zdt/release"
	"github.com/zdt-dev/zdt/unitgen"
	"github.com/zdt-dev/zdt/upgrade"
)

// asOperator tells whether this process has to ask for what root does by itself: it is not root, and the service has operators.
// The error says that there are none, or that the caller is not one of them.
func (f *factory) asOperator(service string) (bool, error) {
	p, err := f.paths()
	if err != nil || f.euid == 0 || p.Operators == "" || p.Root != "" {
		return false, err
	}
	dir := p.OperatorsOf(service)
	err = operators.MayPost(dir)
	if err == nil {
		return true, nil
	}
	if errors.Is(err, fs.ErrNotExist) {
		if _, err := os.Stat(p.StateDir(service)); err != nil {
			return false, nil // that there is no such service is said in other words
		}
		return false, fail(ExitNotAuthorised, "use sudo; or an administrator allows it to a group: "+f.zdt()+" operators "+service+" --group GROUP",
			"you are not root, and %s has no operators", service)
	}
	group := "its group"
	if gid, gerr := operators.Group(dir); gerr == nil {
		group = groupName(gid)
	}
	return false, fail(ExitNotAuthorised, "use sudo, or have an administrator put you into the group "+group+" and log in again",
		"you are neither root nor one of the operators of %s (group %s): %w", service, group, err)
}

// operatorFlags are the flags of upgrade and rollback that an operator may use. What the others do is for root to decide.
var operatorFlags = [...]string{"binary", "release", "to", "sha256", "exec", "signature", "rehearse", "bake", "timeout", "wait", "message",
	"output", "quiet", "no-color", "events-fd", "help"}

// operatorsOnly refuses the flags that are not for operators.
func operatorsOnly(cmd *cobra.Command, service string) error {
	var err error
	cmd.Flags().Visit(func(flag *pflag.Flag) {
		if err == nil && !slices.Contains(operatorFlags[:], flag.Name) {
			err = fail(ExitNotAuthorised, "leave it out, or use sudo", "%s: --%s is for root: an operator of %s cannot go round what it is set up to do", cmd.Name(), flag.Name, service)
		}
	})
	return err
}

// operate is upgrade and rollback for an operator; err says that the caller is none.
func (f *factory) operate(ctx context.Context, cmd *cobra.Command, o upgradeOptions, err error) error {
	if err == nil {
		err = operatorsOnly(cmd, o.Service)
	}
	if err != nil {
		return err
	}
	return f.askUpgrade(ctx, o)
}

// request is what an operator asks for with the flags of upgrade or rollback.
func (o upgradeOptions) request() operators.Request {
	r := operators.Request{Service: o.Service, Do: operators.Upgrade, Release: o.Release, Timeout: o.Timeout, Wait: max(o.Wait, 0), Why: o.Why}
	if o.Kind == release.KindRollback {
		r.Do = operators.Rollback
	}
	if o.Bake != nil {
		r.Bake = *o.Bake
	}
	if o.Wait < 0 { // for ever
		r.Wait = 24 * time.Hour
	}
	r.Rehearse = o.Rehearse != nil && *o.Rehearse == unitgen.RehearseAlways
	if o.Binary != "" {
		r.Program = &operators.Program{Name: operators.Name(filepath.Base(o.Binary)), SHA256: o.SHA256, Exec: o.Exec}
	}
	return r
}

// askUpgrade has root's zdt do what this one may not.
func (f *factory) askUpgrade(ctx context.Context, o upgradeOptions) error {
	r := o.request()
	if r.Do == operators.Upgrade && r.Program == nil && r.Release == "" {
		return usage("give the program with --binary FILE, or a release with --release ID", "upgrade: an operator has to say to what")
	}
	a, err := f.newAsking(ctx, o.Service)
	if err != nil {
		return err
	}
	defer a.close()
	if r.Program != nil {
		sum, err := a.post.Program(ctx, o.Binary)
		if err != nil {
			return refused(fmt.Errorf("hand %s in: %w", o.Binary, err))
		}
		if r.Program.SHA256 == "" {
			r.Program.SHA256 = sum
		}
		if o.Signature == "" {
			if o.Signature, err = a.besides(ctx, o.Binary); err != nil {
				return err
			}
		}
		if o.Signature != "" {
			if err := a.post.Signature(ctx, o.Signature); err != nil {
				return refused(fmt.Errorf("hand %s in: %w", o.Signature, err))
			}
			r.Program.Signed = true
		}
	}
	deadline := f.now().Add(r.Wait)
	for {
		e, err := a.ask(ctx, r)
		if err != nil {
			return err
		}
		// Somebody else's request is carried out.
		if e.err == nil || e.err.Code != ExitBusy || !f.now().Before(deadline) {
			return f.present(e)
		}
		select {
		case <-time.After(time.Second):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		if err := a.post.Again(); err != nil {
			return err
		}
		r.Wait = max(deadline.Sub(f.now()), 0)
	}
}

// askOrder has root's zdt promote or abort what operators have begun.
func (f *factory) askOrder(ctx context.Context, service string, order upgrade.Order) error {
	a, err := f.newAsking(ctx, service)
	if err != nil {
		return err
	}
	defer a.close()
	e, err := a.ask(ctx, operators.Request{Service: service, Do: operators.Verb(order)})
	if err != nil {
		return err
	}
	return f.present(e)
}

// asking is one operator at the unit that takes requests.
type asking struct {
	f       *factory
	service string
	dir     string
	unit    string
	post    *operators.Post
	sd      systemd
}

func (f *factory) newAsking(ctx context.Context, service string) (*asking, error) {
	p, err := f.paths()
	if err != nil {
		return nil, err
	}
	a := &asking{f: f, service: service, dir: p.OperatorsOf(service), unit: unitgen.OperatorUnit(service)}
	if a.post, err = operators.NewPost(a.dir); err != nil {
		return nil, err
	}
	if a.sd, err = f.dialSystemd(ctx, false); err != nil {
		return nil, err
	}
	return a, nil
}

func (a *asking) close() {
	a.post.Withdraw()
	a.sd.Close()
}

// besides is the signature beside a file, if the service asks for one.
func (a *asking) besides(ctx context.Context, file string) (string, error) {
	u, err := a.sd.Unit(ctx, a.service+".service")
	if err != nil {
		return "", err
	}
	policy, err := (&host{}).policy(u)
	if err != nil || !release.Require(policy.RequireSignature).Needed() {
		return "", err
	}
	return besides(file, release.Require(policy.RequireSignature)), nil
}

// takingOver bounds the time between a reload that succeeded and an answer.
const takingOver = 10 * time.Second

// ask sends the request, has it taken, shows how it goes on, and returns how it ended.
func (a *asking) ask(ctx context.Context, r operators.Request) (ending, error) {
	if err := a.post.Send(r); err != nil {
		return ending{}, refused(fmt.Errorf("ask %s: %w", a.unit, err))
	}
	p := a.f.showProgress(a.service, nil)
	defer p.close()
	return a.await(ctx, r, p)
}

// reload has systemd run what takes requests; the channel has its end, and is closed then.
func (a *asking) reload(ctx context.Context) <-chan error {
	done := make(chan error, 1)
	go func() {
		defer close(done)
		done <- a.sd.Reload(ctx, a.unit)
	}()
	return done
}

// await follows the answer.
func (a *asking) await(ctx context.Context, r operators.Request, p *progress) (ending, error) {
	// Ctrl-C does not end it: it is an order to undo.
	reloading, cancel := context.WithCancel(context.WithoutCancel(ctx))
	reload := a.reload(reloading)
	defer func() {
		cancel()
		if reload != nil {
			for range reload {
			}
		}
	}()
	tick := time.NewTicker(look)
	defer tick.Stop()
	var answer *broadcastReader
	defer func() {
		if answer != nil {
			answer.close()
		}
	}()
	interrupted, unwanted := ctx.Done(), false
	var over, again time.Time // since when the reload has ended; when it is tried once more
	var failed error
	for {
		if answer == nil {
			b, err := openBroadcast(a.post.Answer())
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				return ending{}, fmt.Errorf("read the answer of %s: %w", a.unit, err)
			}
			answer = b
		}
		if answer != nil {
			e, err := readAnswer(answer, p)
			if err != nil {
				return ending{}, fmt.Errorf("read the answer of %s: %w", a.unit, err)
			}
			if e != (ending{}) {
				return a.told(ctx, e), nil
			}
			if unwanted { // not before it is known which one it is: another operator's may be under way
				unwanted = false
				undo, err := operators.NewPost(a.dir)
				if err == nil {
					defer undo.Withdraw()
					err = undo.Send(operators.Request{Service: a.service, Do: operators.Abort, TxID: answer.head.TxID})
				}
				if err != nil {
					return ending{}, fmt.Errorf("ask %s to undo the upgrade: %w", a.unit, err)
				}
			}
		}
		now := a.f.now()
		switch {
		case over.IsZero():
		case answer == nil && failed != nil && !errors.Is(failed, dbusctl.ErrBusy) && a.recalled():
			return ending{}, a.notTaken(failed)
		case answer == nil && now.Sub(over) > takingOver && (a.recalled() || now.Sub(over) > 2*takingOver):
			return ending{}, a.notTaken(errors.New("it was reloaded, and has not taken the request"))
		case answer == nil && reload == nil && now.After(again): // who took requests just then did not see this one
			reload, failed = a.reload(reloading), nil
		case answer != nil && !answer.head.Runner.Alive():
			if e, err := readAnswer(answer, p); err == nil && e != (ending{}) {
				return a.told(ctx, e), nil
			}
			return ending{}, fail(ExitInterrupted, a.f.zdt()+" status "+a.service, "the zdt that took the request has ended; upgrade %s may go on", answer.head.TxID)
		}
		select {
		case failed = <-reload:
			reload = nil
			if over.IsZero() {
				over = now
			}
			again = now.Add(200 * time.Millisecond)
		case <-tick.C:
		case <-interrupted:
			interrupted = nil
			if answer == nil && a.post.Recall() {
				return ending{}, context.Cause(ctx)
			}
			if r.Do != operators.Upgrade && r.Do != operators.Rollback {
				return ending{}, context.Cause(ctx)
			}
			a.f.say("%v: %s is asked to undo it, until the new program has taken over", context.Cause(ctx), a.unit)
			unwanted = true
		}
	}
}

// recalled takes the request back, so that what is said to have failed does not happen after all.
func (a *asking) recalled() bool { return a.post.Recall() }

// readAnswer passes on what is new, and returns the end when it is there.
func readAnswer(b *broadcastReader, p *progress) (ending, error) {
	w := follower{broadcast: b, observe: p.observe}
	err := w.read()
	return w.last, err
}

// told is the end as this command's caller has to hear of it: a Ctrl-C was an order to abort.
func (a *asking) told(ctx context.Context, e ending) ending {
	if ctx.Err() == nil || e.report == nil {
		return e
	}
	if r := *e.report; r.Outcome == upgrade.Aborted || r.Outcome == upgrade.Interrupted {
		r.ExitCode = int(codeOf(context.Cause(ctx)))
		e.report = &r
	}
	return e
}

// notTaken is the error of a request that was not carried out.
func (a *asking) notTaken(err error) error {
	if errors.Is(err, dbusctl.ErrNotAuthorised) {
		return fail(ExitNotAuthorised, fmt.Sprintf("is polkit running, and were you put into the group before it looked? (systemctl status polkit; id) An administrator: %s operators %s", a.f.zdt(), a.service),
			"have %s reloaded: %w", a.unit, err)
	}
	if errors.Is(err, dbusctl.ErrNoUnit) {
		return fail(ExitRefused, "an administrator: "+a.f.zdt()+" operators "+a.service+" --group GROUP", "%s has no unit that takes requests: %w", a.service, err)
	}
	code := codeOf(err)
	if code == ExitUnexpected {
		code = ExitRefused
	}
	return fail(code, a.f.journal(a.unit), "have %s reloaded: %w", a.unit, err)
}
