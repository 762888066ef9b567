package handoff

import (
	"context"
	"sync/atomic"
	"time"

	"github.com/zdt-dev/zdt/handoff/control"
)

// drainer finishes a generation's work in stages: the sockets are paused
// already, hooks run, connections move as they fall idle, requests finish, idle
// connections that cannot move are closed when no request can be on its
// way, and what is left at the deadline is cut.
//
// One goroutine runs it, and the mover's beside it; both have ended when done is closed.
// They end when everything is finished or cancel is called.
type drainer struct {
	tracker *tracker
	mover   *mover                    // nil: there is nobody to move connections to
	hooks   func(ctx context.Context) // OnDrain hooks and tasks; returns when they are done
	timeout time.Duration
	stream  time.Duration
	grace   atomic.Int64 // nanoseconds; shortened when the service stops
	keep    atomic.Bool  // end nothing any more: this generation serves again

	started time.Time
	wake    chan struct{}
	ctx     context.Context // cancel: stop draining, cut nothing
	done    chan struct{}   // closed at the end
	counts  atomic.Pointer[control.Counts]
}

func startDrain(ctx context.Context, t *tracker, o Options, grace time.Duration, mover *mover, hooks func(context.Context)) *drainer {
	d := &drainer{
		tracker: t, mover: mover, hooks: hooks, timeout: o.DrainTimeout, stream: o.StreamTimeout,
		started: time.Now(), wake: make(chan struct{}, 1), ctx: ctx, done: make(chan struct{}),
	}
	d.grace.Store(int64(grace))
	d.counts.Store(&control.Counts{})
	t.resetEnded()
	d.look() // so that the first counts are those of the beginning
	if mover != nil {
		go mover.run()
	}
	go d.run()
	return d
}

// hurry shortens the grace of idle connections.
func (d *drainer) hurry(grace time.Duration) {
	if int64(grace) < d.grace.Load() {
		d.grace.Store(int64(grace))
		select {
		case d.wake <- struct{}{}:
		default:
		}
	}
}

// drainTick is how often idle connections are looked at. The end of the last
// connection and that of the hooks wake the drain at once; those before do
// not, since looking at ten thousand connections as each of them ends would take
// the processor from those that still work.
const drainTick = 50 * time.Millisecond

func (d *drainer) run() {
	defer close(d.done)
	if d.mover != nil {
		defer d.mover.halt()
	}
	ctx, cancel := context.WithDeadline(d.ctx, d.started.Add(d.timeout))
	defer cancel()
	hooksDone := make(chan struct{})
	go func() {
		defer close(hooksDone)
		d.hooks(ctx)
	}()
	tick := time.NewTicker(drainTick)
	defer tick.Stop()
	hooks := hooksDone
	for {
		if d.look() == 0 && hooks == nil {
			return
		}
		select {
		case <-d.tracker.changed:
		case <-d.wake:
		case <-tick.C:
		case <-hooks:
			hooks = nil
		case <-d.ctx.Done():
			return
		}
		if hooks != nil && time.Since(d.started) > d.timeout {
			hooks = nil // hooks that ignore their context are not waited for
		}
	}
}

// look closes what may be closed, counts, and returns how many connections and
// tasks are left, those connections included that an Accept may still bring.
func (d *drainer) look() int {
	now := time.Now()
	tasks := d.tracker.tasks.count()
	accepting := int(d.tracker.accepting.Load()) // before the snapshot: one that is not counted any more is in there
	old := d.counts.Load()
	c := control.Counts{Closed: old.Closed, Cut: old.Cut}
	open, _, _ := d.tracker.snapshot()
	grace := time.Duration(d.grace.Load())
	keep := d.keep.Load()
	late := now.Sub(d.started) >= d.timeout && !keep
	for _, conn := range open {
		news := conn.news.Load()
		if news != conn.seen || conn.seenAt.Before(d.started) {
			conn.seen, conn.seenAt = news, now
		}
		switch connState(conn.state.Load()) {
		case connIdle:
			// Bytes the server has not read are a request: let it be answered.
			// So are those it has read while we looked.
			switch {
			case now.Sub(conn.seenAt) >= grace && !keep && !conn.awaited.Load() && !conn.isParked() && conn.unread() == 0 && conn.news.Load() == news:
				count(&c.Closed, conn.end())
			case late:
				count(&c.Cut, conn.end())
			default:
				c.Idle++
			}
		case connActive:
			if late {
				count(&c.Cut, conn.end())
				continue
			}
			c.Active++
		default:
			if now.Sub(d.started) >= d.stream && !keep {
				count(&c.Cut, conn.end())
				continue
			}
			c.Streams++
		}
	}
	// Ended also counts those that end closed: take them out, whether or not
	// their removal came before the snapshot.
	_, ended, moved := d.tracker.snapshot()
	c.Moved = moved
	c.Drained = max(0, ended-c.Moved-c.Closed-c.Cut)
	d.counts.Store(&c)
	if now.Sub(d.started) >= d.timeout {
		return c.Open() + accepting // tasks are left behind
	}
	// Counted before and after the connections: a task may track one, a request start a task.
	return c.Open() + accepting + max(tasks, d.tracker.tasks.count())
}

func count(n *int, ended bool) {
	if ended {
		*n++
	}
}
