//go:build linux

package helper

import (
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/zdt-dev/zdt/handoff/control"
	"github.com/zdt-dev/zdt/internal/sdnotify"
	"github.com/zdt-dev/zdt/journal"
)

// keeper is the state of a helper. The goroutine in run owns it; all others send
// it functions (do) or news.
//
//	starting ─READY─▶ idle ─SIGUSR2─▶ forked ─READY─▶ held ─commit─▶ idle, and the old group drains
//	                   ▲                │ crash, timeout │ abort
//	                   └───aborting◀────┴────────────────┘
//
// A process group is a generation. The one that serves is serving, the one that
// shall serve is next, and the one that served is old until it has ended. With
// Options.Workers a generation has several groups, each in a slot of its own: serving is
// the one in the first slot, and crew has the others.
type keeper struct {
	opt      Options
	app      App // of the last committed generation
	started  time.Time
	reaper   *reaper
	sockets  []Socket
	stored   []Socket      // of systemd's store; until the first generation has them
	bound    int           // how many of sockets, the last ones, were bound here
	watchdog time.Duration // within which systemd wants a heartbeat; 0: never
	beat     *time.Ticker  // of the helper's own heart, see heartbeat
	// systemd starts its services with SIGPIPE ignored, and the program shall be as it was there.
	ignoreSIGPIPE bool
	server        *control.Server
	courier       *courier // to systemd
	events        *journal.Log
	notifier      sdnotify.Notifier // what courier speaks through
	exe           string            // the file this process was executed from
	crossing      crossing          // from and to other containers

	phase   control.Phase
	number  int // of the generation that serves
	serving *generation
	next    *generation
	old     *generation
	crew    crew

	armed    *control.Arm
	armTimer *time.Timer
	attempt  *attempt
	last     *control.Outcome
	attempts uint64
	refused  uint64
	refusal  string
	tookOver bool
	nobody   time.Time // since then nobody serves; zero: somebody does

	wanted         bool     // to become a newer helper, once at rest
	renewal        *renewal // under way
	renewals       int      // how often this process has become another helper
	renewalError   string   // why the last try came to nothing
	renewalsFailed int

	stopped  bool // the service stops
	finished bool
	spent    bool // a group has ended: see thrift
	end      Exit // how this process shall end
	settled  bool // nothing changes end any more

	signals  []chan os.Signal
	news     chan news
	calls    chan func()
	deaf     chan struct{} // closed when nobody takes calls and news any more
	watchers control.Watchers
	said     string
}

// armTimeout is how long an arming waits for its signal.
const armTimeout = 10 * time.Second

// killGrace is how long what is left of a group, or a group that was never
// READY, has between the signal that asks and SIGKILL.
const killGrace = 2 * time.Second

// Run starts the program and keeps it until it or the service ends. The caller
// then ends the process as the Exit says. It takes all children of this
// process, and its signals.
func Run(o Options) (Exit, error) {
	fd, err := stateFD()
	if err != nil {
		return Exit{}, err
	}
	var k *keeper
	if fd >= 0 {
		if k, err = resume(o, fd); err != nil {
			return Exit{}, fmt.Errorf("go on as the helper: %w", err)
		}
		defer k.close()
	} else {
		if k, err = open(o); err != nil {
			return Exit{}, err
		}
		defer k.close()
		if err := k.begin(); err != nil {
			k.declineTakeover(err)
			return Exit{}, err
		}
	}
	k.run()
	return k.end, nil
}

// begin starts the first generation.
func (k *keeper) begin() error {
	k.number, k.phase = k.first(), control.Starting
	for slot := range k.slots() {
		g, err := k.spawn(slot, k.number, k.app, "")
		if err != nil {
			k.killAll()
			return err
		}
		g.setDeadline(g.app.ReadyTimeout)
		k.seat(g)
	}
	k.closeStored()
	k.announce()
	return nil
}

func (k *keeper) run() {
	for !k.finished {
		k.publish()
		if k.spent && k.next == nil && !k.stopped {
			thrift()
			k.spent = false
		}
		due := k.crew.due()
		select {
		case f := <-k.calls:
			f()
		case n := <-k.news:
			k.hear(n)
		case s := <-k.signals[0]:
			k.signal(s)
		case s := <-k.signals[1]:
			k.signal(s)
		case s := <-k.signals[2]:
			k.signal(s)
		case s := <-k.signals[3]:
			k.signal(s)
		case s := <-k.signals[4]:
			k.signal(s)
		case s := <-k.signals[5]:
			k.signal(s)
		case err := <-k.renewalDone():
			k.renewalChecked(err)
		case <-k.serving.expiry():
			k.expired(k.serving)
		case <-k.next.expiry():
			k.expired(k.next)
		case <-k.old.expiry():
			k.expired(k.old)
		case <-due.expiry():
			k.expired(due)
		case <-k.crew.pauseOver():
			k.mend()
		case <-k.guestExpiry():
			k.guestExpired()
		case <-k.armExpiry():
			k.disarm()
		case <-k.heartbeat():
			k.courier.say(heartbeat)
		}
		k.lookAfter()
		k.renewAtRest()
	}
	close(k.deaf)
}

// do runs f on the deciding goroutine and waits for it; false: that has ended.
func (k *keeper) do(f func()) bool {
	ran := make(chan struct{})
	select {
	case k.calls <- func() { defer close(ran); f() }:
		<-ran
		return true
	case <-k.deaf:
		return false
	}
}

// hear takes in what a generation does.
func (k *keeper) hear(n news) {
	g := n.from
	switch {
	case n.notice != nil:
		k.noticed(g, *n.notice)
	case n.ready:
		k.isReady(g)
	case n.unfit != nil:
		k.isUnfit(g, n.unfit)
	case n.leaderEnded:
		k.leaderEnded(g)
	case n.ended:
		g.ended = true
		g.mailbox.finish() // its last words come before its end
	case n.silent && g.ended:
		k.ended(g)
	}
}

// isReady: the group can serve.
func (k *keeper) isReady(g *generation) {
	if !g.readyAt.IsZero() || g.stopping {
		return
	}
	g.readyAt = time.Now()
	g.clearDeadline()
	switch {
	case g == k.next && k.crew.roll != nil:
		k.rolled()
	case g == k.next:
		k.held()
	case !k.isWorker(g):
	case k.phase != control.Starting:
		k.joined(g)
	case !k.allReady():
		k.tellSystemd()
	case k.onProbation():
		k.candidateReady()
	default:
		k.phase = control.Idle
		if !k.nobody.IsZero() { // a handoff has failed, but for that nobody would have waited
			last := *k.last
			last.Gap = k.gap(g)
			k.last = &last
		}
		k.up(g)
	}
}

// up tells systemd that the service is up. g was the last that it has waited for.
func (k *keeper) up(g *generation) {
	k.said = k.statusText()
	k.courier.say("READY=1", "STATUS="+k.said)
	k.serves(g)
}

// isUnfit: the group will never be READY.
func (k *keeper) isUnfit(g *generation, why error) {
	reason := journal.ReasonHealth
	if g.late {
		reason = journal.ReasonReadyTimeout
		why = fmt.Errorf("the candidate was not ready in time: %w", why)
	}
	switch {
	case !g.readyAt.IsZero() || g.stopping || g.isOver():
	case g == k.next && k.crew.roll != nil:
		k.rollFailed(reason, why.Error(), nil)
	case g == k.next:
		k.undo(reason, why.Error())
	case k.isWorker(g) && k.phase != control.Starting:
		k.neverReady(g, why)
	case k.isWorker(g):
		k.events.Logger().Error("wait for the program to be ready", "error", why)
		k.giveIn(Exit{}, why.Error())
		k.fail()
	}
}

// groups are the generations that have processes.
func (k *keeper) groups() []*generation {
	return slices.DeleteFunc(k.all(), (*generation).isGone)
}

// all are the generations that are not yet forgotten.
func (k *keeper) all() []*generation {
	all := append(k.workers(), k.leaving()...)
	if k.next != nil {
		all = append(all, k.next)
	}
	return all
}

// expired: the deadline of a generation has come.
func (k *keeper) expired(g *generation) {
	g.clearDeadline()
	switch {
	case g.stopping:
		g.kill()
	case g == k.next && k.phase == control.Held:
		k.undo(journal.ReasonHoldTimeout, "nobody committed the candidate in time")
	default: // who waits for it knows what the matter is, and tells
		g.late = true
		g.giveUp(errLate)
	}
}

func (k *keeper) armExpiry() <-chan time.Time {
	if k.armTimer == nil {
		return nil
	}
	return k.armTimer.C
}
