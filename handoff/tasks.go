package handoff

import (
	"context"
	"slices"
	"sync"

	"github.com/zdt-dev/zdt/handoff/control"
)

// Go runs f as a task of this generation: a worker, a consumer, work that a
// request left to be done after its answer. ctx ends when the drain begins. The
// drain waits until f has returned, DrainTimeout at most; tasks that still run then are
// counted (control.Counts.TasksLeft), told in the exit event, and end with the process.
//
// Tasks may be started at any time, also by requests and other tasks during the
// drain: such a task finds its ctx ended and is waited for like all others, until
// the same deadline. One that is started after Done has nobody who waits for
// it, which the log says.
//
// A panic of f ends the process, as one in any other goroutine does: a service
// that lost a worker and goes on would look well and not be. A candidate that
// dies so is undone; while its predecessor still drains, that one serves again.
//
// A generation that takes the service back because its successor died does
// not start its tasks anew, since those that do a thing once would do it twice: see OnResume.
func (h *Handoff) Go(f func(ctx context.Context)) {
	p := &h.tracker.tasks
	ctx, waited := p.begin(h.ctx)
	if !waited {
		h.events.Logger().Warn("a task was started after this generation was done: nobody waits for it", "service", h.opt.Service)
	}
	go func() {
		defer func() {
			// A task that panics does not end: if it did, the drain could be over, and the process
			// gone with status 0, before the runtime has told of the panic.
			if r := recover(); r != nil {
				panic(r)
			}
			p.end() // runtime.Goexit too ends a task
		}()
		f(ctx)
	}()
}

// OnResume registers f to run as a task (see Go) when this generation takes the
// service back because its successor died while it drained. By then the drain has
// told the tasks to end and run the OnDrain hooks; f starts again what the service needs:
//
//	h.Go(consume)
//	h.OnResume(consume)
//
// ctx ends when the next drain begins, unlike Context, which has ended for good.
// A task of before may still be ending when f runs.
func (h *Handoff) OnResume(f func(ctx context.Context)) {
	p := &h.tracker.tasks
	p.mu.Lock()
	defer p.mu.Unlock()
	p.onResume = append(p.onResume, f)
}

// taskPool counts the tasks of a generation and holds the context they run
// under. The zero value is one without tasks.
type taskPool struct {
	mu       sync.Mutex
	running  int
	idle     chan struct{}      // closed when no task is left; nil unless somebody waits for it
	closed   bool               // nobody waits any more
	ctx      context.Context    // of the tasks since the last resume; nil before the first
	cancel   context.CancelFunc // ctx's
	onResume []func(context.Context)
}

// begin counts a task in and returns its context. It reports false when nobody
// will wait for it.
func (p *taskPool) begin(first context.Context) (ctx context.Context, waited bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.running++
	if p.ctx != nil {
		first = p.ctx
	}
	return first, !p.closed
}

func (p *taskPool) end() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.running--
	if p.running == 0 && p.idle != nil {
		close(p.idle)
		p.idle = nil
	}
}

// wait returns when no task runs, or when ctx ends.
func (p *taskPool) wait(ctx context.Context) {
	p.mu.Lock()
	if p.running == 0 {
		p.mu.Unlock()
		return
	}
	if p.idle == nil {
		p.idle = make(chan struct{})
	}
	idle := p.idle
	p.mu.Unlock()
	select {
	case <-idle:
	case <-ctx.Done():
	}
}

func (p *taskPool) count() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.running
}

// tell puts the running tasks into c; over says that they are not waited for any more.
func (p *taskPool) tell(c *control.Counts, over bool) {
	if over {
		c.TasksLeft = p.count()
	} else {
		c.Tasks = p.count()
	}
}

// drain ends the context of the tasks since a resume, unless that drain was
// called off already: then they belong to a time after it.
func (p *taskPool) drain(drain context.Context) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cancel != nil && drain.Err() == nil {
		p.cancel()
	}
}

// resume begins a new time for tasks and returns what is to be run in it.
func (p *taskPool) resume() []func(context.Context) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cancel != nil {
		p.cancel()
	}
	p.ctx, p.cancel = context.WithCancel(context.Background())
	return slices.Clone(p.onResume)
}

// close ends the waiting for tasks. The exit event tells how many are left behind.
func (p *taskPool) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	if p.cancel != nil {
		p.cancel()
	}
}

// resumeTasks lets this generation's tasks begin again: it serves again.
func (h *Handoff) resumeTasks() {
	for _, f := range h.tracker.tasks.resume() {
		h.Go(f)
	}
}

// finishWork runs the OnDrain hooks and waits for them and for the tasks of
// this moment. Requests that still run may start more: those the drain itself waits for.
func (h *Handoff) finishWork(ctx context.Context) {
	h.tracker.tasks.drain(ctx)
	h.mu.Lock()
	hooks := slices.Clone(h.onDrain)
	h.mu.Unlock()
	var wg sync.WaitGroup
	for _, hook := range hooks {
		wg.Go(func() { hook(ctx) })
	}
	wg.Wait()
	h.tracker.tasks.wait(ctx)
}
