//go:build linux

package helper

import (
	"errors"
	"fmt"
	"time"

	"github.com/zdt-dev/zdt/handoff/control"
	"github.com/zdt-dev/zdt/journal"
)

// attempt is one handoff, from SIGUSR2 until the new group serves or is gone.
type attempt struct {
	arm       control.Arm
	app       App
	started   time.Time
	candidate int    // pid of the group's leader; 0 before there is one
	exe       string // what was, or is to be, executed
	// Without an overlap the old group ends first.
	waits bool // for its end

	before *generation // whom it has replaced; nil before the commit
}

// refuse says why no handoff can start now; it returns "" when one can.
func (k *keeper) refuse() (code, why string) {
	if code, why := k.inTakeover(); why != "" {
		return code, why
	}
	switch {
	case k.phase == control.Starting:
		return control.CodeNotReady, "the program is not READY yet"
	case k.phase == control.Stopping || k.phase == control.Exited:
		return control.CodeNotReady, "the service stops"
	case k.undecided():
		return control.CodeBusy, "a handoff is in progress"
	case k.next != nil || k.phase == control.Aborting:
		return control.CodeBusy, "the candidate of the undone handoff is still ending"
	case k.crew.roll != nil:
		return control.CodeBusy, "the workers are still being replaced"
	case len(k.leaving()) > 0:
		return control.CodeBusy, "the predecessor still drains"
	}
	return "", ""
}

// undecided reports whether there is a handoff to commit or to undo.
func (k *keeper) undecided() bool {
	return k.phase == control.Forked || k.phase == control.Held
}

// start begins a handoff: SIGUSR2.
func (k *keeper) start() {
	if _, why := k.refuse(); why != "" {
		k.turnDown(why)
		return
	}
	a := &attempt{app: k.app, started: time.Now()}
	if k.armed != nil {
		a.arm = *k.armed
		k.disarm()
	}
	a.exe = a.arm.Exe
	k.attempts++
	k.attempt, k.tookOver = a, false
	if len(a.arm.Command) > 0 || len(a.arm.Environ) > 0 {
		app, err := k.opt.Parse(a.arm.Command, a.arm.Environ)
		if err != nil {
			k.couldNotStart(fmt.Errorf("read the unit's current ExecStart=: %w", err))
			return
		}
		a.app = app.Defaults()
		if n := app.Workers; n > 0 && n != k.slots() {
			k.events.Logger().Warn(fmt.Sprintf("the unit asks for %d workers, there are %d until the service is restarted", n, k.slots()))
		}
	}
	if !a.app.Overlap && k.several() {
		k.couldNotStart(errors.New("the unit says by now that the program cannot run twice at a time (--strategy restart), and there are several workers until the service is restarted"))
		return
	}
	k.phase = control.Forked
	if a.app.Overlap {
		k.fork()
		return
	}
	a.waits = true
	k.tellDrain(k.serving)
	k.serving.end(k.serving.app.Stop, k.serving.app.DrainTimeout)
}

// turnDown records and tells that no handoff was started.
func (k *keeper) turnDown(why string) {
	k.refused++
	k.refusal = why
	e := k.event(journal.Abort, k.serving, journal.Str(journal.FieldReason, string(journal.ReasonRefused)))
	e.Message = fmt.Sprintf("%s: handoff refused: %s", k.opt.Service, why)
	k.events.Write(e)
}

// fork starts the candidate.
func (k *keeper) fork() {
	a := k.attempt
	a.waits = false
	g, err := k.spawn(0, k.number+1, a.app, a.arm.Exe)
	if err != nil {
		k.couldNotStart(err)
		return
	}
	k.next, a.candidate, a.exe = g, g.leader(), g.exe
	timeout := g.app.ReadyTimeout
	if a.arm.ReadyTimeout > 0 {
		timeout = a.arm.ReadyTimeout
	}
	g.setDeadline(timeout)
	e := k.event(journal.Fork, k.serving, journal.Str(journal.FieldExe, g.exe))
	e.PeerPID = g.leader()
	k.events.Write(e)
}

func (k *keeper) couldNotStart(err error) {
	k.failed(journal.ReasonStart, err.Error(), nil)
	k.restored()
}

// held: the candidate accepts from now on, and so does the old group, unless it
// can be told to pause.
func (k *keeper) held() {
	a, g := k.attempt, k.next
	k.phase = control.Held
	k.serving.pause()
	k.tellListen(g, k.serving)
	if !a.arm.Hold {
		k.commit()
		return
	}
	hold := k.opt.HoldTimeout
	if a.arm.HoldFor > 0 {
		hold = a.arm.HoldFor
	}
	g.setDeadline(hold)
}

// commit makes the candidate the service and lets the old group drain. systemd
// has nothing to learn: its main process is this one.
func (k *keeper) commit() error {
	if k.crossing.guest != nil {
		k.handOver()
		return nil
	}
	a, g := k.attempt, k.next
	select {
	case <-g.group.LeaderDone(): // READY was its last word, and the news of its end is on its way
		k.leaderEnded(g)
		return fmt.Errorf("the candidate ended (%s) before it was committed", g.exit())
	default:
	}
	g.clearDeadline()
	before := k.serving
	k.old, k.serving, k.next = before, g, nil
	k.number, k.app, k.phase = g.number, a.app, control.Idle
	k.last = &control.Outcome{
		TxID: a.arm.TxID, Exe: g.exe, Candidate: g.leader(), Committed: true,
		ReadyAfter: g.readyAt.Sub(g.started), EndedAt: time.Now(),
	}
	if !k.nobody.IsZero() {
		k.last.Gap = k.gap(g)
		k.last.Detail = fmt.Sprintf("new clients waited for %s at most: the program cannot run twice at a time", k.last.Gap.Round(time.Millisecond))
	}
	if k.old.isGone() {
		k.old = nil
		if !k.several() {
			k.attempt = nil
		}
	} else {
		k.tellDrain(k.old)
		k.old.end(k.old.app.Stop, k.old.app.DrainTimeout)
	}
	k.serves(g)
	if k.several() {
		a.before, k.crew.roll = before, &roll{like: g}
		k.rollOn()
	}
	k.tellSystemd()
	return nil
}

// serves: g is the one now that systemd hears.
func (k *keeper) serves(g *generation) {
	k.nobody = time.Time{}
	g.beat = true
	if k.watchdog > 0 && k.number > 1 {
		// What it said of its life before did not count, and its turn may be as late as that of
		// the one before it was early.
		k.courier.say(heartbeat)
	}
	k.sayLater(g)
}

// gap is how long nobody has served when g was ready.
func (k *keeper) gap(g *generation) time.Duration { return g.readyAt.Sub(k.nobody) }

// undo takes a handoff back before its commit.
func (k *keeper) undo(reason journal.Reason, detail string) {
	if k.crossing.guest != nil {
		k.dismiss(reason, detail)
		return
	}
	g := k.next
	k.serving.resume()
	k.phase = control.Aborting
	k.failed(reason, detail, nil)
	if g == nil { // the old group is still ending, to make room
		return
	}
	grace := killGrace
	if !g.readyAt.IsZero() { // it has accepted connections: it may finish them
		grace = g.app.DrainTimeout
	}
	g.end(g.app.Stop, grace)
}

// lost: the candidate ended before it was committed.
func (k *keeper) lost(g *generation) {
	exit := g.exit()
	reason := journal.ReasonCrashed
	if exit == (Exit{cldExited, 0}) {
		reason = journal.ReasonExited
	}
	k.serving.resume()
	k.phase = control.Aborting
	detail := fmt.Sprintf("the candidate ended (%s) before it was committed", exit)
	if g.trouble != "" {
		detail += "; it said " + g.trouble
	}
	k.failed(reason, detail, exit.outcome())
}

// failed records and tells why a handoff came to nothing.
func (k *keeper) failed(reason journal.Reason, detail string, exit *control.Exit, more ...journal.Field) {
	a := k.attempt
	k.last = &control.Outcome{
		TxID: a.arm.TxID, Exe: a.exe, Candidate: a.candidate,
		Reason: string(reason), Detail: detail, Exit: exit, EndedAt: time.Now(),
	}
	if g := k.next; g != nil && !g.readyAt.IsZero() {
		k.last.ReadyAfter = g.readyAt.Sub(g.started)
	}
	fields := append([]journal.Field{journal.Str(journal.FieldReason, string(reason)), journal.Str(journal.FieldExe, a.exe)}, more...)
	if exit != nil {
		fields = append(fields, journal.Str(journal.FieldExitCode, exit.Code), journal.Str(journal.FieldExitStatus, exit.Status))
	}
	e := k.event(journal.Abort, k.serving, fields...)
	e.PeerPID = a.candidate
	to := "a new process" // there was none yet
	if a.candidate != 0 {
		to = control.Process(a.candidate)
	}
	e.Message = fmt.Sprintf("%s: handoff to %s undone (%s): %s", k.opt.Service, to, reason, detail)
	k.events.Write(e)
}

// settle: the group of an undone handoff is gone. If that is how it ended before
// anybody decided, its exit belongs to the outcome.
func (k *keeper) settle(g *generation) {
	if last := *k.last; last.Candidate == g.leader() && last.Exit == nil { // the old value may be on its way to a client
		last.Exit = g.exit().outcome()
		k.last = &last
	}
	if !k.nobody.IsZero() && !g.readyAt.IsZero() {
		k.nobody = g.endsAt // it has served until then
	}
	k.restored()
}

// restored ends an undone handoff: the old group serves. Where it had to make
// room, its program is started again.
func (k *keeper) restored() {
	if k.stopped {
		return
	}
	if !k.serving.stopping || k.several() {
		k.attempt, k.phase = nil, control.Idle
		return
	}
	if k.serving.isGone() {
		k.again(k.serving)
	}
}

// madeRoom: the group that served has ended to make room.
func (k *keeper) madeRoom() {
	a := k.attempt
	if k.stopped || a == nil {
		return
	}
	k.nobody = time.Now()
	switch {
	case k.phase == control.Forked && a.waits:
		k.fork()
	case k.phase == control.Aborting && k.next == nil:
		k.again(k.serving)
	}
}

// fallBack: the new program died while the old one still drained. That cannot be
// called back, so it is started again.
func (k *keeper) fallBack(dead *generation) {
	exit := dead.exit()
	k.nobody = time.Now()
	k.serving, k.next = k.old, dead // until the rest of it has ended
	k.failed(journal.ReasonCrashed, fmt.Sprintf("the new program ended (%s) while its predecessor still drained, whose program was started again", exit), exit.outcome())
	k.again(k.old)
}

// again starts the program of g as the next generation, which serves. There is no
// third try: if this one does not come up the service ends with a failure.
func (k *keeper) again(g *generation) {
	k.attempt, k.tookOver = nil, true
	next, err := k.spawnLike(g, g.slot, k.number+1)
	if err != nil {
		k.events.Logger().Error("start the earlier program again", "error", err)
		k.wane(Exit{cldExited, 1})
		return
	}
	k.number++
	k.serving, k.app, k.phase = next, g.asked, control.Starting
	next.setDeadline(next.app.ReadyTimeout)
	k.tellSystemd()
}

// spawnLike starts the program of g once more.
func (k *keeper) spawnLike(g *generation, slot, number int) (*generation, error) {
	app := g.app
	app.Command = g.pinned // its own release, wherever "current" leads by now
	next, err := k.spawn(slot, number, app, "")
	if err != nil {
		return nil, err
	}
	next.exe, next.asked = g.exe, g.asked
	return next, nil
}
