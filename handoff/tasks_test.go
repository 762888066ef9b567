package handoff

import (
	"bytes"
	"context"
	"log/slog"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/zdt-dev/zdt/handoff/control"
	"github.com/zdt-dev/zdt/journal"
)

// logTo makes h's log readable.
func logTo(h *Handoff) *lockedBuffer {
	b := &lockedBuffer{}
	h.do(func(m *machine) {
		h.events = journal.NewLog(h.opt.Service, journal.NewWriter(journal.DefaultSocket), slog.New(slog.NewTextHandler(b, nil)))
	})
	return b
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

func statusOf(h *Handoff) (s control.Status) {
	h.do(func(m *machine) { s = m.status() })
	return s
}

// Tasks are told of the drain and waited for, those too that are started by
// tasks and by the last request when the hooks have long returned.
func TestDrainWaitsForTasks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := bareHandoff(t, Options{DrainTimeout: time.Minute, StreamTimeout: time.Minute})
		h.Ready()
		log := logTo(h)
		var mu sync.Mutex
		var order []string
		note := func(what string) { mu.Lock(); defer mu.Unlock(); order = append(order, what) }
		h.Go(func(ctx context.Context) {
			<-ctx.Done()
			time.Sleep(time.Second)
			h.Go(func(ctx context.Context) {
				if ctx.Err() == nil {
					t.Error("a task of the drain does not know of it")
				}
				time.Sleep(time.Second)
				note("task of a task")
			})
			note("task")
		})
		h.Go(func(ctx context.Context) {
			<-ctx.Done()
			runtime.Goexit() // as t.FailNow does, and others
		})
		h.OnDrain(func(context.Context) { h.Go(func(context.Context) { note("task of a hook") }) })
		request := &conn{}
		h.tracker.add(request, &fakeConn{closed: make(chan struct{})}, "http")
		request.set(connActive)
		synctest.Wait()
		if c := statusOf(h).Connections; c.Tasks != 2 || c.TasksLeft != 0 {
			t.Errorf("serving: %+v, want 2 tasks", c)
		}
		began := time.Now()
		h.do(func(m *machine) { m.stop() })
		time.Sleep(5 * time.Second)
		if c := statusOf(h).Connections; c.Tasks != 0 || c.Active != 1 {
			t.Errorf("draining: %+v, want no task and one request", c)
		}
		h.Go(func(context.Context) { time.Sleep(3 * time.Second); note("task of a request") })
		request.ended()
		h.OnRelease(func(context.Context) { note("release") })
		<-h.Done()
		if took := time.Since(began); took < 8*time.Second || took > 8*time.Second+2*drainTick {
			t.Errorf("took %v, want 8s", took)
		}
		if got, want := strings.Join(order, ", "), "task of a hook, task, task of a task, task of a request, release"; got != want {
			t.Errorf("order %q, want %q", got, want)
		}
		if strings.Contains(log.String(), "left behind") {
			t.Errorf("log: %s", log)
		}
	})
}

// What does not return by the deadline is counted and told, once.
func TestTasksLeftBehind(t *testing.T) {
	for _, tt := range []struct {
		name string
		end  func(h *Handoff, m *machine)
		took time.Duration
	}{
		{"at the deadline", func(h *Handoff, m *machine) { m.stop() }, 10 * time.Second},
		{"at once", func(h *Handoff, m *machine) { m.quit() }, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := bareHandoff(t, Options{DrainTimeout: 10 * time.Second, StreamTimeout: time.Minute})
				h.Ready()
				log := logTo(h)
				var tasks sync.WaitGroup
				leave := make(chan struct{})
				for range 2 {
					tasks.Add(1)
					h.Go(func(context.Context) { defer tasks.Done(); <-leave })
				}
				last := make(chan control.Status, 1)
				h.do(func(m *machine) { m.watchers[last] = struct{}{} })
				began := time.Now()
				h.do(func(m *machine) { tt.end(h, m) })
				<-h.Done()
				if took := time.Since(began); took < tt.took || took > tt.took+2*drainTick {
					t.Errorf("took %v, want %v", took, tt.took)
				}
				if s := <-last; s.Phase != control.Exited || s.Connections.TasksLeft != 2 || s.Connections.Tasks != 0 {
					t.Errorf("last status: %s, %+v", s.Phase, s.Connections)
				}
				if text := log.String(); strings.Count(text, "2 tasks left behind") != 1 || !strings.Contains(text, "ZDT_TASKS_LEFT=2") {
					t.Errorf("log: %s", text)
				}
				ran := make(chan error)
				h.Go(func(ctx context.Context) { ran <- ctx.Err() })
				if err := <-ran; err == nil {
					t.Error("a task after the end does not know of it")
				}
				if text := log.String(); !strings.Contains(text, "nobody waits for it") {
					t.Errorf("log after a task that was started too late: %s", text)
				}
				close(leave)
				tasks.Wait()
			})
		})
	}
}

// A stream may outlast the tasks' deadline; then the tasks are not what the end
// waits for, and one that returns after all is not left behind.
func TestTasksAndStreams(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := bareHandoff(t, Options{DrainTimeout: time.Second, StreamTimeout: time.Minute})
		h.Ready()
		log := logTo(h)
		stream := &conn{}
		h.tracker.add(stream, &fakeConn{closed: make(chan struct{})}, "http")
		h.Go(func(context.Context) { time.Sleep(10 * time.Second) })
		h.do(func(m *machine) { m.stop() })
		time.Sleep(5 * time.Second)
		if c := statusOf(h).Connections; c.TasksLeft != 1 || c.Tasks != 0 || c.Streams != 1 {
			t.Errorf("after the deadline: %+v", c)
		}
		time.Sleep(10 * time.Second)
		if c := statusOf(h).Connections; c.TasksLeft != 0 || c.Tasks != 0 || c.Streams != 1 {
			t.Errorf("after the task: %+v", c)
		}
		stream.ended()
		<-h.Done()
		if strings.Contains(log.String(), "left behind") {
			t.Errorf("log: %s", log)
		}
	})
}

// A pool that is used from everywhere, for the race detector.
func TestTasksFromEverywhere(t *testing.T) {
	h := bareHandoff(t, Options{DrainTimeout: patience})
	h.Ready()
	var done, started sync.WaitGroup
	var count struct {
		sync.Mutex
		n int
	}
	task := func(depth int) func(context.Context) {
		var f func(depth int) func(context.Context)
		f = func(depth int) func(context.Context) {
			return func(ctx context.Context) {
				defer done.Done()
				if depth > 0 {
					done.Add(1)
					h.Go(f(depth - 1))
				}
				if depth%2 == 0 {
					<-ctx.Done()
				}
				count.Lock()
				count.n++
				count.Unlock()
			}
		}
		return f(depth)
	}
	for range 8 {
		started.Go(func() {
			for range 20 {
				done.Add(1)
				h.Go(task(3))
			}
		})
	}
	for range 20 {
		statusOf(h)
	}
	started.Wait()
	h.do(func(m *machine) { m.stop() })
	<-h.Done()
	done.Wait()
	count.Lock()
	defer count.Unlock()
	if count.n != 8*20*4 {
		t.Errorf("%d tasks, want %d", count.n, 8*20*4)
	}
	if n := h.tracker.tasks.count(); n != 0 {
		t.Errorf("%d tasks are counted as running", n)
	}
}

// The time after a resume: its tasks end with the next drain, and neither with
// the one that was called off nor with one that is late.
func TestTasksAfterResume(t *testing.T) {
	var p taskPool
	gone, end := context.WithCancel(t.Context())
	end()
	first, _ := p.begin(gone)
	if first != gone {
		t.Error("the first tasks do not run under the generation's context")
	}
	p.onResume = append(p.onResume, func(context.Context) {})
	if n := len(p.resume()); n != 1 {
		t.Errorf("%d hooks", n)
	}
	ctx, waited := p.begin(gone)
	if ctx.Err() != nil || !waited {
		t.Fatalf("after the resume: %v, waited for %v", ctx.Err(), waited)
	}
	p.drain(gone) // the drain that was called off, late
	if ctx.Err() != nil {
		t.Error("a drain that was called off ends the tasks of the time after it")
	}
	p.drain(t.Context())
	if ctx.Err() == nil {
		t.Error("the next drain does not end the tasks")
	}
	p.resume()
	again, _ := p.begin(gone)
	p.close()
	if again.Err() == nil {
		t.Error("the end of the generation does not end the tasks")
	}
}
