package helper

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/zdt-dev/zdt/handoff/control"
)

// This file is how a helper becomes a newer one: it executes the zdt that is on disk now in
// its own place. The process stays, and with it the program, the sockets, and
// what systemd knows. The new zdt is asked first whether it could go on with the
// state; until the exec nothing has changed.

// envState carries the number of the descriptor with the state. Only a helper that
// executes another one sets it.
const envState = "ZDT_STATE_FD"

// checkWord is the first argument that makes a zdt say whether it understands the
// state in descriptor 3. It is no command, as shimWord is none.
const checkWord = "__state"

// checkTimeout bounds that.
const checkTimeout = 10 * time.Second

// renewal is one try to become a newer helper.
type renewal struct {
	path    string
	checked chan error // one value
}

// listenFDs is where a program finds the first descriptor that it was given.
const listenFDs = 3

// atRest reports whether there is only the group that serves, or all workers do.
func (k *keeper) atRest() bool {
	return k.phase == control.Idle && k.next == nil && len(k.leaving()) == 0 && k.armed == nil && k.crossing.guest == nil && k.crossing.host == nil && k.allReady()
}

// renew begins to become a newer helper: SIGHUP. While a handoff is under way it
// waits for its end.
func (k *keeper) renew() {
	k.wanted = true
	k.renewAtRest()
}

// renewAtRest asks the zdt on disk whether it could go on.
func (k *keeper) renewAtRest() {
	if !k.wanted || k.renewal != nil || !k.atRest() {
		return
	}
	k.wanted = false
	r := &renewal{checked: make(chan error, 1)}
	var err error
	if r.path, err = zdtOnDisk(); err == nil {
		err = k.askOnDisk(r)
	}
	if err != nil {
		k.notRenewed(err)
		return
	}
	k.renewal = r
}

// zdtOnDisk is the path this process was started by.
func zdtOnDisk() (string, error) {
	path, err := exec.LookPath(os.Args[0])
	if err != nil {
		return "", fmt.Errorf("find the zdt on disk: %w", err)
	}
	return path, nil
}

// askOnDisk starts the zdt on disk to look at the state as it is.
func (k *keeper) askOnDisk(r *renewal) error {
	fd, err := k.state().write()
	if err != nil {
		return fmt.Errorf("write the state: %w", err)
	}
	defer unix.Close(fd)
	g, err := k.reaper.start(program{Path: r.path, Argv: []string{"zdt", checkWord}, Env: []string{"GOMAXPROCS=1"}, FDs: []int{fd}, Stdio: [3]int{-1, -1, 2}})
	if err != nil {
		return fmt.Errorf("ask the zdt on disk: %w", err)
	}
	go func() { // ends with the process, which has its time
		select {
		case <-g.Done():
		case <-time.After(checkTimeout):
			g.Kill()
			<-g.LeaderDone()
		}
		exit, _ := g.LeaderExit()
		if exit != (Exit{cldExited, 0}) {
			r.checked <- fmt.Errorf("%s cannot go on with the state of this one (it ended: %s)", r.path, exit)
			return
		}
		r.checked <- nil
	}()
	return nil
}

// checked: the zdt on disk has answered.
func (k *keeper) renewalChecked(err error) {
	r := k.renewal
	k.renewal = nil
	switch {
	case err != nil:
		k.notRenewed(err)
	case !k.atRest(): // a handoff has begun meanwhile: after it, and asked again
		k.wanted = true
	default:
		k.notRenewed(k.become(r.path))
	}
}

func (k *keeper) notRenewed(err error) {
	k.renewalError = err.Error()
	k.renewalsFailed++
	k.events.Logger().Error("become the zdt on disk; this one goes on", "error", err)
}

// renewalDone is nil, which nothing is ever received from, when none is under way.
func (k *keeper) renewalDone() <-chan error {
	if k.renewal == nil {
		return nil
	}
	return k.renewal.checked
}

// state is what the next helper needs, but for what become adds.
func (k *keeper) state() state {
	s := state{
		Number: k.number, App: k.app, Sockets: k.sockets, Bound: k.bound, Control: k.server.FD(), Takeover: k.crossing.server.FD(), Given: k.crossing.given,
		Serving: k.serving.state(),
		Last:    k.last, Attempts: k.attempts, Refused: k.refused, Refusal: k.refusal, TookOver: k.tookOver,
		Renewals: k.renewals + 1, Watchdog: k.watchdog, IgnoreSIGPIPE: k.ignoreSIGPIPE,
		Starts: k.crew.starts, Restarts: k.crew.restarts, Queues: k.crew.queues,
	}
	for _, g := range k.crew.others {
		s.Crew = append(s.Crew, g.state())
	}
	s.Format = s.format()
	return s
}

// state is what the next helper needs of g, but for its mailbox.
func (g *generation) state() servingState {
	return servingState{
		Number: g.number, App: g.app, Pinned: g.pinned, Exe: g.exe, Leader: g.leader(), PIDFD: g.group.pidfd, Marker: g.group.marker,
		Mailbox: 0, MailPath: g.mailbox.Path(), Started: g.started, Ready: g.readyAt, Words: g.words,
	}
}

// become executes path in this process. It returns only if that fails, and then
// everything is as before.
//
// Signals: those of waiting are blocked in every thread but the one of Go's runtime that
// receives them (see BlockSignals), and signal.Stop blocks them there too. So what comes
// from now on waits in the kernel for the next helper, across execve(2). Go blocks no
// SIGHUP, SIGINT, SIGTERM and SIGQUIT (1.26). The first two are ignored
// meanwhile: another SIGHUP asks for what is being done. The last two end the helper if
// they come within the few milliseconds until the next one listens, and the unit stops
// without finishing its requests.
func (k *keeper) become(path string) error {
	s := k.state()
	for _, c := range k.signals {
		signal.Stop(c)
		for len(c) > 0 {
			s.Signals = append(s.Signals, (<-c).(syscall.Signal))
		}
	}
	signal.Ignore(syscall.SIGHUP, syscall.SIGINT)
	k.whileAnswering(k.crossing.server.Leave)
	k.whileAnswering(k.server.Leave)
	mail, unheard, err := k.closeMail()
	k.reaper.leave() // before the look: who is reaped here cannot be reaped by the next helper
	switch {
	case err != nil:
	case slices.ContainsFunc(k.workers(), (*generation).isOver):
		err = errors.New("the program has ended meanwhile")
	case k.armed != nil: // by a request that was on its way; the next helper would not know of it
		k.wanted = true
		err = errors.New("a handoff was prepared meanwhile; it is tried again after that")
	case k.crossing.guest != nil:
		k.wanted = true
		err = errors.New("a takeover has begun meanwhile; it is tried again after that")
	}
	k.courier.Close() // what was said is said before the next helper speaks
	if err == nil {
		for i, g := range k.workers() {
			of := &s.Serving
			if i > 0 {
				of = &s.Crew[i-1]
			}
			of.Words, of.Mailbox = g.words, mail[i]
		}
		err = k.execute(path, s)
	}
	return errors.Join(err, k.comeBack(s, mail, unheard))
}

// closeMail ends the reading of what the workers say, and acts on all that they have said. It returns
// the sockets, -1 for one that is lost, and the other news that came meanwhile.
func (k *keeper) closeMail() (mail []int, unheard []news, err error) {
	for _, g := range k.workers() {
		fd, last, failed := g.mailbox.detach()
		if failed != nil {
			fd, err = -1, errors.Join(err, failed)
		}
		mail = append(mail, fd)
		unheard = append(unheard, k.hearOut(g)...)
		for _, n := range last {
			k.noticed(g, n)
		}
	}
	return mail, unheard, err
}

// hearOut acts on what the program had said before its mailbox was detached and nobody
// has heard. It returns the other news that came meanwhile.
func (k *keeper) hearOut(g *generation) (others []news) {
	for {
		n := <-k.news
		switch {
		case n.from == g && n.silent:
			return others
		case n.notice != nil:
			k.noticed(n.from, *n.notice)
		default:
			others = append(others, n)
		}
	}
}

// execute is the point of no return, if it works.
func (k *keeper) execute(path string, s state) error {
	fd, err := s.write()
	if err != nil {
		return fmt.Errorf("write the state: %w", err)
	}
	defer unix.Close(fd)
	kept := append(s.descriptors(), fd)
	if err := keepOnExec(kept, true); err != nil {
		return err
	}
	defer keepOnExec(kept, false)
	env := append(os.Environ(), envState+"="+strconv.Itoa(fd))
	if err := syscall.Exec(path, os.Args, env); err != nil {
		return &os.PathError{Op: "execute", Path: path, Err: err}
	}
	return nil
}

// whileAnswering runs leave, which ends a server but for its socket. Requests that were read
// are answered, by this goroutine.
func (k *keeper) whileAnswering(leave func()) {
	left := make(chan struct{})
	go func() {
		defer close(left)
		leave()
	}()
	for {
		select {
		case f := <-k.calls:
			f()
		case <-left:
			return
		}
	}
}
