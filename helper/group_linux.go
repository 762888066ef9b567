package helper

import (
	"errors"
	"os"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// group is a program that was started, with all it starts that stays in its process
// group. It needs no closing: what it holds is let go when Done is closed.
type group struct {
	r      *reaper
	leader int    // its pid and the number of the process group
	marker string // the variable that only processes of this group have

	leaderDone, done chan struct{}

	// The reaper's own.
	pidfd    int
	exit     Exit // also whoever's has seen leaderDone closed
	finished bool
}

// Leader returns the pid of the leader, for people to read.
func (g *group) Leader() int { return g.leader }

// LeaderDone is closed when the leader has ended.
func (g *group) LeaderDone() <-chan struct{} { return g.leaderDone }

// LeaderExit is how the leader ended. It reports false while it has not.
func (g *group) LeaderExit() (Exit, bool) {
	select {
	case <-g.leaderDone:
		return g.exit, true
	default:
		return Exit{}, false
	}
}

// Done is closed when the leader has ended and nothing of its process group
// is left. A member that has ended and whose own parent never asked counts as gone.
func (g *group) Done() <-chan struct{} { return g.done }

// Signal sends a signal to the leader. It returns os.ErrProcessDone when that has ended.
func (g *group) Signal(sig syscall.Signal) error {
	return g.send(func() error {
		if g.finished {
			return os.ErrProcessDone
		}
		return unix.PidfdSendSignal(g.pidfd, sig, nil, 0)
	})
}

// SignalAll sends a signal to every member of the process group, the leader or not. It
// returns os.ErrProcessDone when there is none.
func (g *group) SignalAll(sig syscall.Signal) error {
	return g.send(func() error {
		if g.finished {
			return os.ErrProcessDone
		}
		return g.signalMembers(sig)
	})
}

func (g *group) send(f func() error) (err error) {
	if stopped := g.r.do(func() { err = f() }); stopped != nil {
		return stopped
	}
	if errors.Is(err, unix.ESRCH) {
		return os.ErrProcessDone
	}
	return err
}

// signalMembers is done by the reaper.
//
// The number of a process group is given to nothing else while the group has a
// member or its leader is not reaped, but it may be right after. Hence the
// ways to send: by the pidfd, which stays with the group and is never another's; by number only
// while the leader is in the table, as nobody but this goroutine can reap it; and
// else to each member by a pidfd of its own. The last may miss one that is just being
// forked; Kill, which must have them all, looks until there is none.
func (g *group) signalMembers(sig syscall.Signal) error {
	err := g.r.toGroup(g.pidfd, sig)
	if err != unix.EINVAL {
		return err
	}
	if g.r.leaders[g.leader] == g {
		return unix.Kill(-g.leader, sig)
	}
	err = unix.ESRCH
	for _, p := range g.members(processes()) {
		if fd, ok := p.hold(); ok {
			err = unix.PidfdSendSignal(fd, sig, nil, 0)
			unix.Close(fd)
		}
	}
	return err
}

// members are those of the table that belong to the process group and live. All are
// in the helper's session: one can leave a session, and its groups with it, but
// a process of another session cannot come into the group.
func (g *group) members(table []process) []process {
	session, _ := unix.Getsid(0)
	return slices.DeleteFunc(slices.Clone(table), func(p process) bool {
		return p.group != g.leader || p.session != session || p.ended()
	})
}

// populated reports whether the process group has a member that lives. The leader has
// been reaped.
func (g *group) populated() bool {
	if errors.Is(g.probe(), unix.ESRCH) {
		return false
	}
	// Something is there, if only a zombie; those end with their parents.
	table := processes()
	if len(g.members(table)) > 0 {
		return true
	}
	for _, p := range table {
		if p.group == g.leader {
			return false // zombies, nothing else
		}
	}
	// What /proc does not show, as with ProtectProc=invisible, may live. It may
	// also have ended while the table was read.
	return !errors.Is(g.probe(), unix.ESRCH)
}

// probe asks whether the number of the process group leads to anything.
func (g *group) probe() error {
	err := g.r.toGroup(g.pidfd, 0)
	if err == unix.EINVAL {
		err = unix.Kill(-g.leader, 0)
	}
	return err
}

// Kill ends all that is left of the group: its members, and those who left it
// (setsid, setpgid) and still can be told to be of it. These are the descendants of
// members, as long as the processes between them live; and orphans that came to
// the helper and show the variable ZDT_GROUP in the environment they were executed
// with. It may be called after Done, for the latter.
//
// A process that made itself an orphan, left the group, and hides its environment
// (it was executed with another one, wrote over it, is not dumpable, or runs as
// a user whose processes the helper may not read) is not ended. It ends with
// the unit's cgroup or with the container.
func (g *group) Kill() {
	g.r.do(g.kill)
}

// end kills the group and waits until it is gone.
func (g *group) end() {
	g.Kill()
	select {
	case <-g.done:
	case <-g.r.stopped:
	case <-time.After(killTimeout):
	}
}

func (g *group) kill() {
	killed := map[process]bool{}
	for {
		var held []int
		for _, p := range g.remains(processes()) {
			who := process{pid: p.pid, start: p.start}
			if fd, ok := p.hold(); ok && !killed[who] {
				killed[who] = true
				held = append(held, fd)
			} else if ok {
				unix.Close(fd)
			}
		}
		// Whose children they are is known: now the parents may end. The group is
		// killed as one, so that no member forks past it.
		if !g.finished {
			g.signalMembers(unix.SIGKILL)
		}
		for _, fd := range held {
			unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0)
			unix.Close(fd)
		}
		// Once more for what they forked meanwhile, until there is nothing new.
		if len(held) == 0 {
			return
		}
	}
}

// remains are the processes of the table that Kill ends.
func (g *group) remains(table []process) []process {
	self := os.Getpid()
	children := map[int][]process{}
	for _, p := range table {
		children[p.parent] = append(children[p.parent], p)
	}
	var remains []process
	seen := map[int]bool{self: true}
	add := func(p process) {
		leads := g.r.leaders[p.pid]
		if !seen[p.pid] && !p.ended() && (leads == nil || leads == g) {
			seen[p.pid] = true
			remains = append(remains, p)
		}
	}
	if !g.finished {
		for _, p := range g.members(table) {
			add(p)
		}
	}
	for _, p := range children[self] {
		if !seen[p.pid] && !p.ended() && environHolds(p.pid, g.marker) {
			add(p)
		}
	}
	for i := 0; i < len(remains); i++ {
		for _, p := range children[remains[i].pid] {
			add(p)
		}
	}
	return remains
}
