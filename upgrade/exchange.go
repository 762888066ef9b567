package upgrade

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/zdt-dev/zdt/handoff/control"
	"github.com/zdt-dev/zdt/journal"
)

// Strategy is how one program takes the place of the other.
type Strategy string

const (
	// StrategyHandoff: the program that serves hands its sockets over. Nobody waits.
	StrategyHandoff Strategy = "handoff"
	// StrategyRestart: systemd stops one and starts the other. Clients wait meanwhile, if the unit has a
	// socket; how long is measured.
	StrategyRestart Strategy = "restart"
)

// exchange is a transaction without a handoff: systemd restarts the service, or starts one that is down. What it shall
// start has to be the current release before, not at the end; that is the price, and the record says what to put back.
type exchange struct {
	r     *run
	down  bool         // it was down before
	units <-chan Unit  // nil once systemd cannot be heard any more
	done  <-chan error // the end of systemd's job; nil when it is over
	main  *process     // the new main process
	since time.Time    // nobody serves since then
	// workers are those of the new program, as its helper had them when it came up; nil: it has no workers.
	workers *control.Workers
	jobs    sync.WaitGroup
}

// exchange carries it out. Whatever fails behind the record is put back.
func (r *run) exchange() error {
	ctx, cancel := context.WithCancel(context.WithoutCancel(r.ctx))
	x := &exchange{r: r, down: r.down}
	defer func() {
		cancel()
		x.jobs.Wait()
		x.main.close()
	}()
	r.skipped(Commit, Drain, Exit)
	for _, step := range []step{
		{Trigger, func() (string, error) { return x.trigger(ctx) }},
		{Listen, func() (string, error) { return x.comeUp(ctx) }},
		{Bake, func() (string, error) { return x.bake(ctx) }},
		{Record, x.record},
	} {
		r.begin(step.phase, "")
		text, err := step.do()
		if err != nil {
			return x.putBack(ctx, err)
		}
		r.end(Done, text)
	}
	return nil
}

// trigger makes the new release the current one and has systemd start it.
func (x *exchange) trigger(ctx context.Context) (string, error) {
	r := x.r
	if err := r.ctx.Err(); err != nil {
		return "", &Failure{Outcome: Refused, Err: context.Cause(r.ctx)}
	}
	if err := r.firstRecord(); err != nil {
		return "", err
	}
	r.noteJournal()
	var err error
	if x.units, err = r.Host.WatchUnit(ctx); err != nil {
		return "", refuse(hintOf(err), "watch the service: %w", err)
	}
	if err := r.Store.Flip(r.to); err != nil {
		return "", &Failure{Outcome: Refused, Reason: reasonRecord, Err: fmt.Errorf("make the release the current one: %w", err), Hint: hintOf(err)}
	}
	x.since = r.now()
	x.job(ctx)
	if x.down {
		return "started by systemd", nil
	}
	return "restarted by systemd", nil
}

// job has systemd start what is current, and stop what runs before.
func (x *exchange) job(ctx context.Context) {
	done := make(chan error, 1)
	x.done = done
	x.jobs.Go(func() { done <- x.r.Host.Restart(ctx) })
}

// limit bounds the end of one program and the start of the other. systemd's own limits come first.
func (x *exchange) limit() time.Duration {
	return x.r.Options.DrainTimeout + x.r.Options.ReadyTimeout + 4*x.r.slack
}

// comeUp waits until the new program serves.
func (x *exchange) comeUp(ctx context.Context) (string, error) {
	r := x.r
	if err := r.writeAhead(Listen); err != nil {
		return "", err
	}
	if err := x.awaitJob(r.ctx); err != nil {
		return "", err
	}
	s, err := x.awaitServing(r.ctx, ctx)
	if err != nil {
		return "", err
	}
	pid := x.main.pid
	if s.PID != 0 {
		pid = serving(s)
		r.report.Generation = s.Generation
		x.workers = s.Workers
	}
	r.report.Candidate = pid
	id, exe, err := r.runs(pid, said(s))
	switch {
	case err != nil:
		return "", failure(reasonForeign, "find what the new process %d executes: %w", pid, err)
	case id != "" && id != r.to.ID:
		return "", failure(reasonForeign, "process %d executes %s, and not the new release", pid, exe)
	case id == "":
		r.warn("the new process %d executes %s, which is no release", pid, exe)
	}
	gap := r.now().Sub(x.since)
	if err := r.objects(r.hook(r.ctx, HookPostListen, "")); err != nil {
		return "", err
	}
	if x.down {
		return fmt.Sprintf("pid %d serves after %s", pid, round(gap)), nil
	}
	r.report.Gap = gap
	queue := "new clients waited"
	if !r.unit.Socket {
		queue = "new clients were refused: the unit has no socket"
	}
	r.warn("nobody served for %s: %s", round(gap), queue)
	return fmt.Sprintf("pid %d serves, after %s in which nobody did", pid, round(gap)), nil
}

// awaitJob waits for the end of systemd's job, and notes the process that it brings.
func (x *exchange) awaitJob(ctx context.Context) error {
	timer := time.NewTimer(x.limit())
	defer timer.Stop()
	for {
		select {
		case err := <-x.done:
			x.done = nil
			if err != nil {
				x.r.noteMain(x.unitNow(ctx).MainPID)
				return &Failure{Reason: string(journal.ReasonStart), Err: fmt.Errorf("systemd could not start %s: %w", x.r.unit.Name, err)}
			}
			return nil
		case u, ok := <-x.units:
			if !ok {
				x.units = nil
				continue
			}
			x.r.noteMain(u.MainPID)
		case <-timer.C:
			return failure(string(journal.ReasonReadyTimeout), "systemd did not start %s within %s", x.r.unit.Name, x.limit())
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// noteMain notes the process whose last words would tell what went wrong.
func (r *run) noteMain(pid int) {
	if pid != 0 && pid != r.unit.MainPID {
		r.report.Candidate = pid
	}
}

func (x *exchange) unitNow(ctx context.Context) Unit {
	u, err := x.r.Host.Unit(ctx)
	if err != nil {
		return Unit{}
	}
	return u
}

// awaitServing waits until the main process is up, and its runtime, where it has one, says that it serves. The status is
// empty where there is no runtime.
func (x *exchange) awaitServing(ctx, all context.Context) (control.Status, error) {
	r := x.r
	limit := time.Now().Add(r.Options.ReadyTimeout + r.slack)
	why := errors.New("it does not answer")
	for ; ; pause(ctx, poll) {
		u, err := r.Host.Unit(all)
		switch {
		case ctx.Err() != nil:
			return control.Status{}, context.Cause(ctx)
		case err != nil:
			return control.Status{}, &Failure{Reason: reasonSystemdLost, Err: fmt.Errorf("ask systemd for the main process: %w", err), Hint: hintOf(err)}
		case u.Stopped && u.MainPID == 0, u.MainPID != 0 && toldToStop(u):
			return control.Status{}, r.stopping()
		case !up(u) || u.MainPID == 0:
			return control.Status{}, failure(string(journal.ReasonCrashed), "%s is %s (%s) right after its start", u.Name, u.ActiveState, u.Result)
		}
		if x.main == nil || x.main.pid != u.MainPID {
			x.main.close()
			if x.main, err = openProcess(u.MainPID); err != nil {
				return control.Status{}, err
			}
		}
		s, err := r.statusNow(all)
		switch {
		case err == nil && s.PID == u.MainPID && s.Phase == control.Idle:
			return s, nil
		case err == nil:
			why = fmt.Errorf("process %d is %s, the main process is %d", s.PID, s.Phase, u.MainPID)
		case errors.Is(err, os.ErrNotExist) && !r.unit.Runtime:
			return control.Status{}, nil // it has none: that systemd holds it for started has to be enough
		default:
			why = err
		}
		if time.Now().After(limit) {
			return control.Status{}, failure(string(journal.ReasonReadyTimeout), "the new program does not serve within %s: %w", r.Options.ReadyTimeout, why)
		}
	}
}

// statusNow asks whoever answers now.
func (r *run) statusNow(ctx context.Context) (control.Status, error) {
	ctx, cancel := context.WithTimeout(ctx, r.slack)
	defer cancel()
	c, err := r.Host.Control(ctx)
	if err != nil {
		return control.Status{}, err
	}
	defer c.Close()
	return c.Status(ctx)
}

// bake watches the new program, which serves everybody by now.
func (x *exchange) bake(ctx context.Context) (string, error) {
	r := x.r
	if err := r.writeAhead(Bake); err != nil {
		return "", err
	}
	var w GateWatch
	var lines chan string
	within := time.Duration(0)
	if r.Gates != nil {
		asking, stop := context.WithCancel(ctx)
		lines = make(chan string, 16)
		w = r.Gates.Start(asking, r.candidate(r.report.Candidate, 0), func(text string) {
			select {
			case lines <- text:
			default:
			}
		})
		defer func() {
			stop()
			r.noteGates(w.Wait())
		}()
		within = r.Gates.Within + r.slack
	}
	alive, latest := time.NewTimer(r.probation()), time.NewTimer(max(r.probation(), within))
	defer alive.Stop()
	defer latest.Stop()
	lived, passed := false, r.Gates == nil
	watching, stopWatching := context.WithCancel(ctx)
	defer stopWatching()
	restarts := x.watchRestarts(watching)
	for !lived || !passed {
		select {
		case <-alive.C:
			lived = true
		case <-w.Passed:
			w.Passed, passed = nil, true
		case err := <-w.Failed:
			return "", failure(string(journal.ReasonHealth), "%w", err)
		case text := <-lines:
			r.progress(text)
		case u, ok := <-x.units:
			if !ok {
				x.units = nil
				continue
			}
			// Of this process, for the news may be of the one before; and while it lives, for a unit whose program has ended by
			// itself goes the same way a moment later.
			if u.MainPID == x.main.pid && toldToStop(u) && !x.main.isGone() {
				return "", r.stopping()
			}
		case <-x.main.gone:
			return "", x.ended(ctx)
		case n := <-restarts:
			return "", failure(string(journal.ReasonCrashed), "the helper %d had to start %s again", x.main.pid, plural(n, "worker", "", "s"))
		case o := <-r.Orders:
			if o == Abort {
				return "", r.aborted()
			}
			return "promoted after " + round(r.now().Sub(r.phaseStart)), nil
		case <-latest.C:
			if !passed {
				return "", failure(string(journal.ReasonHealth), "the gates did not come to an end within %s", r.Gates.Within)
			}
		case <-r.ctx.Done():
			return "", context.Cause(r.ctx)
		}
	}
	if w.Settle != nil {
		w.Settle(r.ctx)
		select {
		case err := <-w.Failed:
			return "", failure(string(journal.ReasonHealth), "%w", err)
		default:
		}
		if x.main.isGone() {
			return "", x.ended(ctx)
		}
	}
	return "alive for " + round(r.now().Sub(r.phaseStart)), nil
}

// toldToStop: somebody stops the unit while its main process lives. systemd does so by itself, too, because of a watchdog or
// another limit, and then has a result already.
func toldToStop(u Unit) bool { return u.ActiveState == "deactivating" && u.Result == "success" }

// ended tells why the new program is gone. A stop and a crash look the same from here: the news of the stop may come after the
// end of a program that obeys at once. systemd knows which it was, as soon as it has noticed the end. Who stops a service must
// not find it started again.
func (x *exchange) ended(ctx context.Context) error {
	r := x.r
	for limit := time.Now().Add(r.slack); ; pause(ctx, poll) {
		u, err := r.Host.Unit(ctx)
		switch {
		case err == nil && u.MainPID == 0 && u.Stopped:
			return r.stopping()
		case err == nil && u.MainPID != x.main.pid, ctx.Err() != nil, time.Now().After(limit):
			return failure(string(journal.ReasonCrashed), "the new main process %d ended", x.main.pid)
		}
	}
}

// watchRestarts delivers how many workers of the new program had to be started again, once there are any: systemd's own
// counter does not see them, for the main process is the helper, which lives. It ends with ctx.
func (x *exchange) watchRestarts(ctx context.Context) <-chan int {
	if x.workers == nil {
		return nil
	}
	out := make(chan int, 1)
	before, helper := x.workers.Restarts, x.main.pid
	x.jobs.Go(func() {
		for ; ctx.Err() == nil; pause(ctx, poll) {
			c, err := x.r.Host.Control(ctx)
			if err != nil {
				continue
			}
			for s, err := range c.Watch(ctx) {
				if err != nil {
					break
				}
				if s.PID == helper && s.Workers != nil && s.Workers.Restarts > before {
					out <- s.Workers.Restarts - before
					c.Close()
					return
				}
			}
			c.Close()
		}
	})
	return out
}

// record keeps the new release.
func (x *exchange) record() (string, error) {
	if err := x.r.objects(x.r.hook(x.r.ctx, HookPreCommit, "")); err != nil {
		return "", err
	}
	text, err := x.r.record()
	if err == nil {
		x.r.remark(HookPostCommit, "")
	}
	return text, err
}
