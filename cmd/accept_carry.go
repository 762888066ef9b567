package cmd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"syscall"
	"time"

	"github.com/zdt-dev/zdt/dbusctl"
	"github.com/zdt-dev/zdt/internal/operators"
	"github.com/zdt-dev/zdt/release"
	"github.com/zdt-dev/zdt/upgrade"
)

// carried is an upgrade that an operator has asked for and that runs in its own unit.
type carried struct {
	s       *site
	txid    string
	unit    string
	who     release.Who
	adopted bool // it ran before; somebody has only an order for it
	answer  *broadcast
	orders  []asked

	updates chan upgrade.Update
	ended   chan watched
	stop    context.CancelFunc // of the goroutine that follows it
}

// asked is an order of an operator, who waits for what becomes of it.
type asked struct {
	order  upgrade.Order
	answer *broadcast
}

// document is the ending as whoever gave the order sees it: done, if it is what was wanted.
func (o asked) document(e ending) any {
	if e.report == nil {
		return e.document()
	}
	r := *e.report
	wanted := map[upgrade.Order]upgrade.Outcome{upgrade.Promote: upgrade.Upgraded, upgrade.Abort: upgrade.Aborted}[o.order]
	switch r.Outcome {
	case wanted:
		r.ExitCode = 0
	case upgrade.Upgraded, upgrade.Unchanged:
		return newErrorDoc(fail(ExitRefused, "zdt history "+r.Service, "the upgrade ended as %s all the same", r.Outcome))
	}
	return r
}

// carry starts the upgrade.
func (a *acceptor) carry(ctx context.Context, t operators.Taken, who release.Who, txid string, answer *broadcast) error {
	s, err := a.f.openSite(ctx, a.name)
	if err != nil {
		return err
	}
	c := &carried{s: s, txid: txid, unit: transactionName(a.name, txid), who: who, answer: answer}
	if err := a.begin(ctx, c, t); err != nil {
		s.close()
		return refused(err)
	}
	a.follow(ctx, c)
	return nil
}

func (a *acceptor) begin(ctx context.Context, c *carried, t operators.Taken) error {
	// The transaction asks the same once more, when it is its turn.
	o := upgradeOptions{Service: a.name, as: identity{TxID: c.txid, Who: &c.who}}
	if t.Request.Bake > 0 {
		o.Bake = &t.Request.Bake
	}
	if err := c.s.admitOperator(o)(ctx); err != nil {
		return err
	}
	as, err := identity{TxID: c.txid, Who: &c.who}.flag()
	if err != nil {
		return err
	}
	program, signature, err := a.box.Copy(ctx, t, c.txid)
	if err != nil {
		return fmt.Errorf("take the program: %w", err)
	}
	if err := a.start(ctx, c, t.Request.Args(as, program, signature)); err != nil {
		return errors.Join(err, a.box.Discard(c.txid))
	}
	return nil
}

// start starts the unit of the upgrade.
func (a *acceptor) start(ctx context.Context, c *carried, argv []string) error {
	unit, err := a.f.transactionUnit(a.name, c.txid, argv)
	if err != nil {
		return err
	}
	err = c.s.sd.StartTransient(ctx, unit)
	if job := (*dbusctl.JobError)(nil); err != nil && !errors.As(err, &job) { // a unit whose job failed has ended, which is seen
		return fmt.Errorf("start %s: %w", unit.Name, err)
	}
	return nil
}

// follow watches the upgrade on a goroutine of its own, which leave ends and joins.
func (a *acceptor) follow(ctx context.Context, c *carried) {
	following, cancel := context.WithCancel(context.WithoutCancel(ctx))
	c.stop, c.updates, c.ended = cancel, make(chan upgrade.Update), make(chan watched, 1)
	observe := func(u upgrade.Update) {
		select {
		case c.updates <- u:
		case <-following.Done():
		}
	}
	a.running = c
	go func() {
		defer close(c.ended)
		e, err := a.watch(following, c, observe)
		c.ended <- watched{e, err}
	}()
}

// leave stops watching. What is carried out goes on.
func (c *carried) leave() {
	c.stop()
	for range c.ended { // the goroutine is done with c
	}
	c.s.close()
}

// watch returns how the upgrade ended.
func (a *acceptor) watch(ctx context.Context, c *carried, observe func(upgrade.Update)) (ending, error) {
	end, err := a.appear(ctx, c)
	if err != nil {
		return ending{}, err
	}
	w, err := a.f.openFollower(a.name, c.txid, observe)
	if err != nil {
		return ending{}, err
	}
	defer w.close()
	e, err := w.wait(ctx)
	if err != nil && end != nil {
		return ending{}, a.f.unitFailure(a.name, c.unit, *end)
	}
	return e, err
}

// appear waits until the zdt of the upgrade can be followed, or is gone: then it returns how its unit ended.
func (a *acceptor) appear(ctx context.Context, c *carried) (*dbusctl.Unit, error) {
	watching, cancel := context.WithCancel(ctx)
	ends := make(chan dbusctl.Unit, 1)
	go func() {
		defer close(ends)
		if u, err := c.s.sd.End(watching, c.unit); err == nil || errors.Is(err, dbusctl.ErrNoUnit) {
			ends <- u
		}
	}()
	defer func() {
		cancel()
		for range ends {
		}
	}()
	tick := time.NewTicker(look)
	defer tick.Stop()
	news := ends
	for {
		if b, err := openBroadcast(a.paths.Broadcast(a.name, c.txid)); err == nil {
			b.close()
			return nil, nil
		} else if !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		if h, alive, err := release.ReadHolder(a.paths.Lock(a.name)); err == nil && alive && h.TxID == c.txid {
			return nil, nil
		}
		select {
		case u, ok := <-news:
			if ok {
				return &u, nil
			}
			news = nil // the bus was lost, and the unit goes on
		case <-tick.C:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// order passes an order on, about what is carried out or what is left open. Operators decide about what operators have asked for. With a
// txid it is about that upgrade only: whoever undoes his own by Ctrl-C means no other.
func (a *acceptor) order(ctx context.Context, order upgrade.Order, txid string, who release.Who, answer *broadcast) error {
	if a.running == nil {
		done, err := a.adopt(ctx, order, txid, who, answer)
		if err != nil || done {
			return err
		}
	}
	c := a.running
	if err := a.meant(txid, c.txid); err != nil {
		return err
	}
	if err := c.s.mayOrder(order); err != nil {
		return err
	}
	if len(c.orders) == mostOrders {
		return fail(ExitBusy, a.f.zdt()+" status "+a.name, "%d orders about %s wait for its end already", mostOrders, c.txid)
	}
	h, alive, err := release.ReadHolder(a.paths.Lock(a.name))
	switch {
	case err != nil:
		return err
	case alive && h.TxID == c.txid && h.Orders:
		err = c.s.tell(h, order)
	case order == upgrade.Abort: // it waits for another one, or has not got far
		err = c.s.sd.Signal(ctx, c.unit, syscall.SIGTERM)
	default:
		return fail(ExitRefused, a.f.zdt()+" status "+a.name, "%s has not begun: there is nothing to promote", c.txid)
	}
	if err != nil {
		return &Failure{Code: ExitRefused, Err: fmt.Errorf("tell the zdt that works on %s: %w", a.name, err), Hint: a.f.zdt() + " status " + a.name}
	}
	c.orders = append(c.orders, asked{order, answer})
	return nil
}

// mostOrders bounds how many wait for the end of one upgrade.
const mostOrders = 64

// mayOrder keeps a promote from being a way round the bake that the service asks for, or round a gate that has failed: an operator
// may end early what he has asked for beyond that.
func (s *site) mayOrder(order upgrade.Order) error {
	if order != upgrade.Promote {
		return nil
	}
	if s.policy.Bake > 0 {
		return fail(ExitNotAuthorised, "wait for it, or ask root", "the service asks for a bake of %v, and an operator may not end it early", s.policy.Bake)
	}
	if len(s.policy.Gates) > 0 { // a promote does not wait for their answers
		return fail(ExitNotAuthorised, "wait for them, or ask root", "the service has gates, and an operator may not go round them")
	}
	if txn, err := s.store.ReadTxn(); err == nil && txn.Frozen {
		return fail(ExitNotAuthorised, "zdt abort "+s.service+", or ask root", "%s did not pass its bake (%s), and an operator may not promote it", txn.TxID, txn.Reason)
	}
	return nil
}

// meant refuses an order about another upgrade than the one that there is.
func (a *acceptor) meant(txid, open string) error {
	if txid == "" || txid == open {
		return nil
	}
	return fail(ExitRefused, a.f.zdt()+" history "+a.name, "%s is not the upgrade that is open: that is %s", txid, open)
}

// adopt finds the upgrade that an order is about when none was asked for in this run: one that goes on without the zdt that took the
// request, or one that is open and nobody works on. The latter is settled at once, and done is true.
func (a *acceptor) adopt(ctx context.Context, order upgrade.Order, txid string, who release.Who, answer *broadcast) (done bool, err error) {
	s, err := a.f.openAnySite(ctx, a.name)
	if err != nil {
		return false, err
	}
	defer func() {
		if err != nil || done {
			s.close()
		}
	}()
	theirs := func(w release.Who, txid string) error {
		if w.Operator {
			return nil
		}
		return fail(ExitNotAuthorised, "ask them", "%s began %s: only root may decide about it", clean(w.String()), txid)
	}
	h, alive, err := release.ReadHolder(a.paths.Lock(a.name))
	if err != nil {
		return false, err
	}
	if alive && h.TxID != "" {
		if err := errors.Join(theirs(h.Who, h.TxID), a.meant(txid, h.TxID)); err != nil {
			return false, err
		}
		none := &broadcast{} // whoever asked for it has gone
		a.follow(ctx, &carried{s: s, txid: h.TxID, unit: transactionName(a.name, h.TxID), who: h.Who, adopted: true, answer: none})
		return false, nil
	}
	// Asked under the lock, where nobody can put another one in its place.
	admit := func(context.Context) error {
		txn, err := s.store.ReadTxn()
		if errors.Is(err, release.ErrNoTxn) {
			return fail(ExitRefused, a.f.zdt()+" status "+a.name, "no upgrade of %s is open: there is nothing to decide", a.name)
		}
		if err != nil {
			return err
		}
		return errors.Join(theirs(txn.Who, txn.TxID), a.meant(txid, txn.TxID), s.mayOrder(order))
	}
	if err := admit(ctx); err != nil { // before anything is said of it
		return false, err
	}
	report, err := s.settled(ctx, order, &who, admit)
	if err != nil {
		return false, err
	}
	report.ExitCode = a.f.upgradeExit(ctx)(report)
	answer.end(asked{order: order}.document(ending{report: &report}))
	return true, nil
}
