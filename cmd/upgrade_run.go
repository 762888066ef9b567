package cmd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"github.com/zdt-dev/zdt/handoffcheck"
	"github.com/zdt-dev/zdt/release"
	"github.com/zdt-dev/zdt/unitgen"
	"github.com/zdt-dev/zdt/upgrade"
)

// site is a service with everything that a transaction needs: its host, its store and its policy.
type site struct {
	*host
	f      *factory
	store  *release.Store
	policy unitgen.Policy
	// policyErr is a line of [X-Zdt] that cannot be read; policy has what the others say. Nothing is begun then, but what
	// is open can be settled.
	policyErr error
}

// openSite opens the site of a service that zdt manages. The caller closes it.
func (f *factory) openSite(ctx context.Context, service string) (*site, error) {
	s, err := f.openAnySite(ctx, service)
	if err == nil && s.policyErr != nil {
		s.close()
		return nil, s.policyErr
	}
	return s, err
}

// openAnySite is openSite for what must work whatever somebody has written into the unit.
func (f *factory) openAnySite(ctx context.Context, service string) (_ *site, err error) {
	h, err := f.openHost(ctx, service)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			h.close()
		}
	}()
	u, err := h.ask(ctx)
	if err != nil {
		return nil, err
	}
	s := &site{host: h, f: f}
	if s.policy, err = h.policy(u); err != nil {
		s.policyErr = &Failure{Code: ExitRefused, Err: fmt.Errorf("read [X-Zdt] of %s: %w", h.unit, err), Hint: hintOf(err)}
	}
	program := filepath.Base(unitgen.Program(u.ExecStartPath, u.ExecStart))
	if u.LoadState == "masked" { // then systemd does not know it, and nothing will be staged; what is open can be settled
		program = service
	}
	s.store, err = release.Open(h.paths.disk(h.paths.StateDir(service)), release.Options{Program: program})
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fail(ExitRefused, f.zdt()+" init "+service+" --exec FILE", "%s has no release store: zdt does not manage it", service)
	}
	if err != nil {
		return nil, &Failure{Code: ExitRefused, Err: err, Hint: hintOf(err)}
	}
	return s, nil
}

func (s *site) close() {
	s.store.Close()
	s.host.close()
}

// engine is a transaction with all that has a say in it.
func (s *site) engine(ctx context.Context, o upgradeOptions, observe func(upgrade.Update)) (upgrade.Engine, error) {
	e, err := s.settler(ctx, o, observe)
	if err != nil {
		return e, err
	}
	operator := o.as.who().Operator
	if operator {
		e.Admit = s.admitOperator(o)
	}
	if o.Kind != release.KindRollback || operator { // what has served is asked for no signature, if root goes back to it
		e.Options.Stage, err = s.f.stageOptions(s.policy, sourceOptions{Binary: o.Binary, SHA256: o.SHA256, Exec: o.Exec, Signature: o.Signature, Why: o.Why})
		if err != nil {
			return e, refused(err)
		}
	}
	if o.Kind != release.KindRollback { // nor for gates
		if e.Gates, err = s.gates(o); err != nil {
			return e, err
		}
	}
	e.Findings = func(ctx context.Context) ([]handoffcheck.Finding, error) { return s.findings(ctx, o.Binary) }
	e.Check = func(path string) error { return s.blockers(ctx, path) }
	if e.Hooks, err = s.hooks(); err != nil {
		return e, err
	}
	e.Rehearsal, e.Sight = s.rehearsalOf(o, s.roomBeside), s.sight(o)
	return e, nil
}

// settler is a transaction that nothing and nobody has a say in: a gate that is not understood, a key or a hook that is not
// trusted must not keep anybody from undoing what is open.
func (s *site) settler(ctx context.Context, o upgradeOptions, observe func(upgrade.Update)) (upgrade.Engine, error) {
	if err := o.as.check(s.f.globals.user, release.Identify().LoginUID); err != nil {
		return upgrade.Engine{}, err
	}
	return upgrade.Engine{
		Options: upgrade.Options{
			Service: o.Service, Kind: o.Kind, Binary: o.Binary, Release: o.Release, Why: o.Why,
			User: s.f.globals.user, Wait: o.Wait, IgnoreHold: o.IgnoreHold, Strategy: o.Strategy, PlanID: o.PlanID, AcceptRisk: slices.Concat(s.policy.AcceptRisk, o.AcceptRisk),
			Bake:         given(o.Bake, s.policy.Bake),
			ReadyTimeout: given(o.ReadyTimeout, s.policy.ReadyTimeout),
			DrainTimeout: given(o.DrainTimeout, s.policy.DrainTimeout),
			OnFailure:    upgrade.OnFailure(given(o.OnFailure, s.policy.OnFailure)),
			TxID:         o.as.TxID,
			Retain:       s.retention(),
			Restricted:   o.as.who().Operator,
		},
		Host: s.seams(), Store: stepped(s.store), LockPath: s.paths.Lock(o.Service), Who: o.as.who(),
		Check:    func(path string) error { return handoffcheck.Blockers(handoffcheck.Candidate(path)) },
		Observe:  observe,
		ExitCode: s.f.upgradeExit(ctx),
	}, nil
}

// retention is how many old releases an upgrade leaves behind. With a policy that cannot be read nobody knows.
func (s *site) retention() *upgrade.Retention {
	if s.policyErr != nil {
		return nil
	}
	return &upgrade.Retention{Keep: s.policy.Keep, KeepFailed: s.policy.KeepFailed}
}

// transact wires package upgrade to systemd, the runtime, the journal and the store.
func (f *factory) transact(ctx context.Context, o upgradeOptions, observe func(upgrade.Update)) (upgrade.Report, error) {
	orders, stop := takeOrders() // before the lock says that they are taken
	defer stop()
	s, err := f.openSite(ctx, o.Service)
	if err != nil {
		return upgrade.Report{}, err
	}
	defer s.close()
	if err := s.nameRelease(&o); err != nil {
		return upgrade.Report{}, err
	}
	s.noteUnits(ctx)
	e, err := s.engine(ctx, o, observe)
	if err != nil {
		return upgrade.Report{}, err
	}
	e.Orders = orders
	return e.Run(ctx), nil
}

// takeOrders delivers what an operator decides about the transaction of this process: zdt promote sends SIGUSR1, zdt abort
// SIGUSR2. Only root, or the same user, can.
func takeOrders() (<-chan upgrade.Order, func()) {
	signals := make(chan os.Signal, 4)
	orders := make(chan upgrade.Order, 1)
	quit, done := make(chan struct{}), make(chan struct{})
	signal.Notify(signals, syscall.SIGUSR1, syscall.SIGUSR2)
	go func() {
		defer close(done)
		for {
			var order upgrade.Order
			select {
			case s := <-signals:
				order = upgrade.Promote
				if s == syscall.SIGUSR2 {
					order = upgrade.Abort
				}
			case <-quit:
				return
			}
			select {
			case orders <- order:
			case <-quit:
				return
			}
		}
	}()
	return orders, func() {
		// From here on they do nothing, and still kill nobody.
		close(quit)
		<-done
	}
}

// given is what the command line says, or else the unit.
func given[T any](flag *T, policy T) T {
	if flag != nil {
		return *flag
	}
	return policy
}

// timeoutCause bounds ctx with --timeout; 0: not at all.
func timeoutCause(ctx context.Context, d time.Duration) (context.Context, context.CancelFunc) {
	if d <= 0 {
		return ctx, func() {}
	}
	return context.WithTimeoutCause(ctx, d, timedOut{d})
}
