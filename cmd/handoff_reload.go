package cmd

import (
	"context"
	"errors"
	"time"

	"github.com/zdt-dev/zdt/dbusctl"
)

// reloading is a reload of the unit by systemd, whose ExecReload= delivers a handoff that
// is armed. One goroutine waits for its end; join ends it.
type reloading struct {
	cancel      context.CancelFunc
	over, ended chan struct{} // the reload; the goroutine
}

// reloadError is why nobody needs to wait for the handoff any longer.
type reloadError struct{ error }

func (e *reloadError) Unwrap() error { return e.error }

const (
	// reloadGrace is how much later than the end of ExecReload= the news of the handoff may
	// come. It has seen the same statuses before it ended.
	reloadGrace = 2 * time.Second
	// reloadEnd is how long the end of ExecReload= may take after the handoff, as it looks
	// at the drain, too. A next reload would be refused while this one runs.
	reloadEnd = 2 * time.Second
)

// beginReload has systemd reload the unit. When that ends or fails, and there was no handoff, giveUp is
// called with a *reloadError.
func (f *factory) beginReload(ctx context.Context, t handoffTarget, giveUp context.CancelCauseFunc) *reloading {
	ctx, cancel := context.WithCancel(ctx)
	r := &reloading{cancel: cancel, over: make(chan struct{}), ended: make(chan struct{})}
	go func() {
		defer close(r.ended)
		err := f.reloadUnit(ctx, t)
		close(r.over)
		job := (*dbusctl.JobError)(nil)
		switch {
		case err == nil:
			err = errors.New("the reload ended without a handoff")
		case !errors.As(err, &job): // there was none
			giveUp(&reloadError{err})
			return
		}
		if pause(ctx, reloadGrace) == nil {
			giveUp(&reloadError{err})
		}
	}()
	return r
}

func (f *factory) reloadUnit(ctx context.Context, t handoffTarget) error {
	bus, err := f.dialSystemd(ctx, t.user)
	if err != nil {
		return err
	}
	defer bus.Close()
	return bus.Reload(ctx, t.unit)
}

// join waits for the end of the reload, though not for long.
func (r *reloading) join() {
	limit := time.NewTimer(reloadEnd)
	defer limit.Stop()
	select {
	case <-r.over:
	case <-limit.C:
	}
	r.cancel()
	<-r.ended
}
