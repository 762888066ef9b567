package helper

import (
	"errors"
	"fmt"
	"os"
	"strconv"

	"github.com/zdt-dev/zdt/handoff/control"
	"github.com/zdt-dev/zdt/internal/netfd"
)

// CheckState answers a helper that asks, when args (those behind the program's name)
// say that this process was started for it, and does not return then.
func CheckState(args []string) {
	if len(args) != 1 || args[0] != checkWord {
		return
	}
	if _, err := readState(listenFDs); err != nil {
		fmt.Fprintln(os.Stderr, "zdt:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// regain makes of s the group that it was, but for its mailbox.
func (s state) regain(slot int) *generation {
	v := s.groups()[slot]
	g := &generation{
		number: v.Number, slot: slot, app: v.App, asked: s.App, pinned: v.Pinned, exe: v.Exe, started: v.Started, readyAt: v.Ready, words: v.Words,
		beat: true, said: make(chan struct{}), ports: ports(s.Sockets), group: resumeGroup(v.Leader, v.PIDFD, v.Marker),
	}
	if g.number == 0 {
		g.number = s.Number
	}
	return g
}

// comeBack takes up again what become had let go.
func (k *keeper) comeBack(s state, mail []int, unheard []news) error {
	var errs []error
	k.courier = startCourier(k.notifier)
	r, err := startReaper(groupsOf(k.workers())...)
	if err == nil {
		k.reaper = r
	}
	errs = append(errs, err)
	if s.Control >= 0 {
		server, err := control.Adopt(s.Control, k.opt.ControlSocket, control.Runtime{Answer: k.answer, Watch: k.subscribe})
		if err == nil {
			k.server = server
			server.Own()
		}
		errs = append(errs, err)
	}
	errs = append(errs, k.serveTakeovers(s.Takeover))
	k.announce()
	for i, g := range k.workers() {
		if mail[i] >= 0 {
			errs = append(errs, k.hearAgain(g, mail[i]))
		}
	}
	k.watch()
	for _, n := range unheard {
		k.hear(n)
	}
	for _, sig := range s.Signals {
		k.signal(sig)
	}
	return errors.Join(errs...)
}

// hearAgain goes on to read the notification socket fd of g.
func (k *keeper) hearAgain(g *generation, fd int) error {
	m, err := adoptMailbox(fd, g.mailbox.Path())
	if err != nil {
		return err
	}
	g.mailbox = m
	if err := m.listen(g.band()); err != nil {
		return err
	}
	k.listenTo(g)
	return nil
}

// resume makes a keeper of the state that an earlier helper has left.
func resume(o Options, fd int) (*keeper, error) {
	s, err := readState(fd)
	if err != nil {
		return nil, err
	}
	if err := keepOnExec(s.descriptors(), false); err != nil {
		return nil, err
	}
	k := newKeeper(o)
	k.app, k.sockets, k.bound = s.App, s.Sockets, s.Bound
	k.phase, k.number = control.Idle, s.Number
	k.last, k.attempts, k.refused, k.refusal, k.tookOver = s.Last, s.Attempts, s.Refused, s.Refusal, s.TookOver
	k.renewals, k.watchdog, k.ignoreSIGPIPE = s.Renewals, s.Watchdog, s.IgnoreSIGPIPE
	if k.server, err = k.adoptControl(s.Control); err != nil {
		return nil, err
	}
	k.crossing.owner, k.crossing.given = true, s.Given
	if err := k.serveTakeovers(s.Takeover); err != nil {
		return nil, err
	}
	k.crew = crew{others: make([]*generation, len(s.Crew)), starts: s.Starts, restarts: s.Restarts, queues: s.Queues}
	groups := s.groups()
	for slot := range groups {
		k.seat(s.regain(slot))
	}
	// All are in the table before the first child is reaped.
	if k.reaper, err = startReaper(groupsOf(k.workers())...); err != nil {
		return nil, err
	}
	for slot, g := range k.workers() {
		k.follow(g)
		if g.mailbox, err = adoptMailbox(groups[slot].Mailbox, groups[slot].MailPath); err == nil {
			if err = g.mailbox.listen(g.band()); err == nil {
				k.listenTo(g)
			}
		}
		if err != nil {
			return nil, err
		}
	}
	k.watch()
	for _, sig := range s.Signals {
		k.signal(sig)
	}
	k.announce()
	return k, nil
}

func (k *keeper) adoptControl(fd int) (*control.Server, error) {
	runtime := control.Runtime{Answer: k.answer, Watch: k.subscribe}
	if fd < 0 {
		return control.Listen("", runtime)
	}
	return control.Adopt(fd, k.opt.ControlSocket, runtime)
}

// resumeGroup is a group that an earlier helper has started, for startReaper.
func resumeGroup(leader, pidfd int, marker string) *group {
	return &group{leader: leader, marker: marker, pidfd: pidfd, leaderDone: make(chan struct{}), done: make(chan struct{})}
}

func groupsOf(all []*generation) []*group {
	var groups []*group
	for _, g := range all {
		groups = append(groups, g.group)
	}
	return groups
}

// stateFD is the descriptor with the state of an earlier helper; -1: there was none.
func stateFD() (int, error) {
	text, ok := os.LookupEnv(envState)
	if !ok {
		return -1, nil
	}
	os.Unsetenv(envState)
	fd, err := strconv.Atoi(text)
	if err != nil || fd < listenFDs {
		return -1, fmt.Errorf("environment %s=%q: not a descriptor", envState, text)
	}
	netfd.Claim(fd)
	return fd, nil
}
