//go:build linux

package helper

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/zdt-dev/zdt/internal/journalstream"
	"github.com/zdt-dev/zdt/internal/netfd"
)

// generation is one process group and everything that is its own. The keeper's
// goroutine owns it; its goroutines send news and end with close.
type generation struct {
	number  int
	slot    int // 0: the first worker, and the only one without others
	app     App
	asked   App      // the same as the unit has it, without a release in its command
	pinned  []string // app.Command with the release that it leads to at the start
	exe     string   // the release's file, or the program
	program program
	group   *group
	mailbox *mailbox

	started, readyAt, endsAt time.Time
	timer                    *time.Timer
	deadline                 time.Time
	stopping                 bool     // it was told to end
	failed                   bool     // it was not ready in time, and is ended for that
	beat                     bool     // its heartbeat has come since the last one that systemd got
	ended                    bool     // nothing of it is left but its last words
	killed                   bool     // nothing more can be done to end it
	paused                   bool     // it was told to stop accepting
	words                    string   // STATUS= of the program
	trouble                  string   // ERRNO= and its like of the program
	later                    promises // for systemd, once it serves
	dropped                  int      // of later
	cut                      int      // connections that were open when it was killed

	said   chan struct{}           // closed when it has said READY=1
	ready  bool                    // said is closed
	late   bool                    // its time to be ready is over
	giveUp context.CancelCauseFunc // ends the wait for it to be ready
	ports  []int                   // of the sockets

	ctx    context.Context // ends with close
	cancel context.CancelFunc
	wg     sync.WaitGroup
	shut   bool
}

// errLate is why nobody waits any more for a group to be ready.
var errLate = errors.New("its time is over")

// news is what happened to a generation.
type news struct {
	from        *generation
	notice      *notice // its descriptors are the keeper's
	ready       bool
	unfit       error
	leaderEnded bool
	ended       bool
	silent      bool // nothing comes to its notification socket any more
}

// spawn starts a generation in a slot. exe is a release's file, "" for what the command says.
func (k *keeper) spawn(slot, number int, app App, exe string) (*generation, error) {
	g := &generation{number: number, slot: slot, app: app, asked: app, exe: exe, said: make(chan struct{}), ports: ports(k.sockets)}
	g.app.Command = withRelease(app.Command, exe)
	g.pinned = pinned(g.app.Command, filepath.EvalSymlinks)
	var err error
	if g.mailbox, err = openMailbox(k.opt.NotifyDir, k.mailNumbers(number)...); err != nil {
		return nil, fmt.Errorf("open a notification socket for the program: %w", err)
	}
	if err := k.launch(g); err != nil {
		g.mailbox.Close()
		return nil, err
	}
	if g.exe == "" {
		g.exe = releaseFile(g.app.Command, g.pinned, g.program.Path)
	}
	if err := g.mailbox.listen(g.band()); err != nil {
		g.group.Kill()
		g.mailbox.Close()
		return nil, err
	}
	k.follow(g)
	k.listenTo(g)
	return g, nil
}

// launch executes the program of g.
func (k *keeper) launch(g *generation) error {
	passing := g.app.Passing
	passing.generation, passing.worker = g.number, g.slot+1
	p, err := passing.arrange(k.socketsFor(g.slot), g.app.Command, k.environ(g))
	if err != nil {
		return fmt.Errorf("arrange the program's sockets: %w", err)
	}
	if passing.Nginx {
		// nginx uses an inherited socket as it is, and accepts from it with several workers: with one that blocks, all
		// but one of them would hang in accept(2) at each connection.
		for _, s := range k.socketsFor(g.slot) {
			if err := netfd.SetNonblock(s.FD); err != nil {
				return fmt.Errorf("make socket %q non-blocking: %w", s.Name, err)
			}
		}
	}
	p.Dir, p.IgnoreSIGPIPE = g.app.Dir, k.ignoreSIGPIPE
	out, release := journalstream.StandardFDs(k.opt.Service)
	defer release()
	p.Stdio[1], p.Stdio[2] = out[1], out[2]
	g.program, g.started = p, time.Now()
	if g.group, err = k.reaper.start(p); err != nil {
		return err
	}
	return nil
}

// follow begins to watch g.
func (k *keeper) follow(g *generation) {
	var ctx context.Context
	ctx, g.cancel = context.WithCancel(context.Background())
	g.ctx = ctx
	tell := func(n news) bool { return k.tell(g, n) }
	g.wg.Go(func() {
		select {
		case <-g.group.LeaderDone():
		case <-ctx.Done():
			return
		}
		if !tell(news{leaderEnded: true}) {
			return
		}
		select {
		case <-g.group.Done():
			tell(news{ended: true})
		case <-ctx.Done():
		}
	})
	if !g.readyAt.IsZero() { // an earlier helper has seen it
		return
	}
	waiting, giveUp := context.WithCancelCause(ctx)
	g.giveUp = giveUp
	w := witness{
		Band: g.band(), Generation: g.number, Ready: g.said, Ended: g.group.LeaderDone(),
		Dropped: g.mailbox.Dropped, Run: k.reaper.run, Env: g.program.Env, Alone: !k.several() && k.crossing.host == nil && (k.serving == nil || k.serving.isGone()),
	}
	g.wg.Go(func() {
		if err := g.app.Readiness.wait(waiting, w); err != nil {
			tell(news{unfit: err})
			return
		}
		tell(news{ready: true})
	})
}

// tell gives news of g to the keeper; false: nobody wants them any more.
func (k *keeper) tell(g *generation, n news) bool {
	n.from = g
	select {
	case k.news <- n:
		return true
	case <-g.ctx.Done():
		return false
	}
}

// listenTo begins to take what comes to the notification socket of g.
func (k *keeper) listenTo(g *generation) {
	messages := g.mailbox.Messages()
	g.wg.Go(func() {
		for n := range messages {
			if !k.tell(g, news{notice: &n}) {
				closeAll(n.FDs)
			}
		}
		k.tell(g, news{silent: true})
	})
}

// band is the group as the kernel tells it from other processes.
func (g *generation) band() band {
	b := band{Leader: g.group.Leader()}
	if g.app.Group {
		b.Access = accessGroup
	}
	return b
}

// connections are those of clients that the group has open.
func (g *generation) connections() int { return g.band().connections(g.ports) }

// end tells the group to end, with SIGKILL for what is left after grace. Of one that was told
// already the time is cut down to that.
func (g *generation) end(sig syscall.Signal, grace time.Duration) {
	if !g.stopping {
		g.stopping, g.endsAt = true, time.Now()
		g.clearDeadline()
		g.group.Signal(sig) // if its first process has ended, that news is orphan's
	}
	if g.killed || g.isGone() {
		return
	}
	if g.timer == nil || time.Until(g.deadline) > grace {
		g.setDeadline(grace)
	}
}

// orphan ends what the first process of the group has left behind. When it was told
// to end, that is what it was about to tell the others, or, being the shell of a start
// script, has not: they are told, and have the time that it had. When it ended by
// itself nobody is left who knows what they are for.
func (g *generation) orphan() {
	if g.stopping {
		g.group.SignalAll(g.app.Stop)
		return
	}
	g.end(syscall.SIGTERM, killGrace)
	g.group.SignalAll(syscall.SIGTERM)
}

// kill ends the group at once and counts the connections that are cut by it.
func (g *generation) kill() {
	g.cut = g.connections()
	g.killed = true
	g.clearDeadline()
	g.group.Kill()
}

// pause has the group stop accepting, if it can and can be told to go on.
func (g *generation) pause() {
	if g.app.Pause != 0 && g.app.Resume != 0 && !g.isGone() {
		g.group.Signal(g.app.Pause)
		g.paused = true
	}
}

// resume has the group accept again.
func (g *generation) resume() {
	if g.paused && !g.stopping {
		g.group.Signal(g.app.Resume)
		g.paused = false
	}
}

// isOver reports whether its first process has ended.
func (g *generation) isOver() bool {
	_, over := g.group.LeaderExit()
	return over
}

// isGone reports whether nothing of the group is left.
func (g *generation) isGone() bool {
	select {
	case <-g.group.Done():
		return true
	default:
		return false
	}
}

func (g *generation) setDeadline(d time.Duration) {
	g.clearDeadline()
	g.timer, g.deadline = time.NewTimer(d), time.Now().Add(d)
}

func (g *generation) clearDeadline() {
	if g.timer != nil {
		g.timer.Stop()
	}
	g.timer, g.deadline = nil, time.Time{}
}

// extend puts the deadline off: it is not to come earlier than in d from now.
func (g *generation) extend(d time.Duration) {
	if until := time.Now().Add(d); until.After(g.deadline) {
		g.setDeadline(d)
	}
}

// expiry is nil, which nothing is ever received from, without a deadline.
func (g *generation) expiry() <-chan time.Time {
	if g == nil || g.timer == nil {
		return nil
	}
	return g.timer.C
}

// exit is how the group's first process ended.
func (g *generation) exit() Exit {
	e, _ := g.group.LeaderExit()
	return e
}

// leader is the pid of the group's first process.
func (g *generation) leader() int { return g.group.Leader() }

// name is the program's name for people.
func (g *generation) name() string { return filepath.Base(g.exe) }

// close ends what watches the group.
func (g *generation) close() {
	if g.shut {
		return
	}
	g.shut = true
	g.clearDeadline()
	if g.cancel != nil {
		g.cancel()
	}
	g.mailbox.Close()
	g.wg.Wait()
	g.later.drop()
}
