package helper

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// kernels runs the test as it goes here and as it goes before Linux 6.9.
func kernels(t *testing.T, r *reaper, f func(t *testing.T)) {
	t.Run("pidfd", f)
	r.do(func() { r.toGroup = func(int, syscall.Signal) error { return unix.EINVAL } })
	t.Run("number", f)
}

func TestDoneWaitsForMembers(t *testing.T) {
	if !alone(t) {
		return
	}
	r := stageReaper(t)
	kernels(t, r, func(t *testing.T) {
		o := newOutput(t)
		g := start(t, r, shell(o, "sleep 1000 & echo $!; sleep 1000 & echo $!; exit 6"))
		waitFor(t, "the leader's end", g.LeaderDone())
		if e, _ := g.LeaderExit(); e != (Exit{cldExited, 6}) {
			t.Errorf("leader %v", e)
		}
		members := o.pids(t, 2)
		if !living(members[0]) || !living(members[1]) {
			t.Error("the members ended with their leader")
		}
		select {
		case <-g.Done():
			t.Error("done while members live")
		case <-time.After(3 * lingerInterval):
		}
		if err := g.Signal(unix.SIGTERM); !errors.Is(err, os.ErrProcessDone) {
			t.Errorf("signal to the leader that has ended: %v", err)
		}
		if err := g.SignalAll(unix.SIGTERM); err != nil {
			t.Errorf("signal to all: %v", err)
		}
		finish(t, g)
		for _, pid := range members {
			if living(pid) {
				t.Errorf("done and %d lives", pid)
			}
		}
	})
}

// The last member is the child of a process that lives and is in another session: nobody
// tells the helper of its end.
func TestDoneSeesMembersOfOthers(t *testing.T) {
	if !alone(t) {
		return
	}
	r := stageReaper(t)
	kernels(t, r, func(t *testing.T) {
		o := newOutput(t)
		g := start(t, r, asRole(o, "role:leaves"))
		pids := o.pids(t, 2) // the member, its parent
		waitFor(t, "the leader's end", g.LeaderDone())
		select {
		case <-g.Done():
			t.Fatal("done while a member lives")
		case <-time.After(3 * lingerInterval):
		}
		// Its parent does not reap it: a zombie is nothing that runs.
		if err := syscall.Kill(pids[0], syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		finish(t, g)
		if !living(pids[1]) {
			t.Error("the parent ended too: the test shows nothing")
		}
		g.Kill() // after Done: the parent shows the marker
		eventually(t, "the parent is gone", func() bool { return !living(pids[1]) })
	})
}

func leavesMain([]string) error {
	return startSelf("role:parent-leaves")
}

func parentLeavesMain([]string) error {
	member := exec.Command("sleep", "1000")
	if err := member.Start(); err != nil {
		return err
	}
	if _, err := syscall.Setsid(); err != nil {
		return err
	}
	fmt.Printf("%d\n%d\n", member.Process.Pid, os.Getpid())
	time.Sleep(time.Hour)
	return nil
}

func startSelf(args ...string) error {
	cmd := exec.Command("/proc/self/exe", args...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	return cmd.Start()
}

func TestKill(t *testing.T) {
	if !alone(t) {
		return
	}
	r := stageReaper(t)
	kernels(t, r, func(t *testing.T) {
		o, spared, hidden := newOutput(t), newOutput(t), newOutput(t)
		// Another group, and its stray, are not touched.
		other := start(t, r, shell(spared, `(setsid sh -c 'echo $$; exec sleep 1000' &); echo $$; exec sleep 1000`))
		g := start(t, r, asRole(o, "role:family"))
		family := o.pids(t, 5)
		h := start(t, r, shell(hidden, `(setsid env -i sh -c 'echo $$; exec sleep 1000' &); exit 0`))
		hider := hidden.pids(t, 1)[0]
		others := spared.pids(t, 2)
		g.Kill()
		if e := finish(t, g); e != (Exit{cldKilled, int(unix.SIGKILL)}) {
			t.Errorf("leader %v", e)
		}
		for i, pid := range family {
			eventually(t, fmt.Sprintf("member %d of the family (%d) is gone", i, pid), func() bool { return !living(pid) })
		}
		for _, pid := range append(others, hider) {
			if !living(pid) {
				t.Errorf("%d of another group was killed", pid)
			}
		}
		other.Kill()
		finish(t, other)
		for _, pid := range others {
			eventually(t, "the other group is gone", func() bool { return !living(pid) })
		}
		// What group.Kill says it cannot find.
		finish(t, h)
		h.Kill()
		if !living(hider) {
			t.Error("a process that hides its environment was killed: say so in the comment")
		}
		syscall.Kill(hider, syscall.SIGKILL) // our child, reaped by r only when it has ended
		eventually(t, "no child is left", func() bool { return len(children()) == 0 })
	})
}

// familyMain prints the pids of all kinds of relatives: itself, a member, a child that
// left, its child, an orphan that left.
func familyMain([]string) error {
	fmt.Println(os.Getpid())
	cmd := exec.Command("sh", "-c", `
		trap '' TERM
		sleep 1000 & echo $!
		setsid sh -c 'trap "" TERM; echo $$; env -i sleep 1000 & echo $!; wait' &
		(setsid sh -c 'echo $$; exec sleep 1000' &)
		wait`)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	return cmd.Run()
}

func TestSignals(t *testing.T) {
	if !alone(t) {
		return
	}
	r := stageReaper(t)
	kernels(t, r, func(t *testing.T) {
		o := newOutput(t)
		g := start(t, r, shell(o, `trap 'echo 1' TERM; trap 'echo 2' USR1; (trap 'echo 3' USR1; echo 4; while :; do sleep 0.01; done) & while :; do sleep 0.01; done`))
		eventually(t, "the traps are set", func() bool { return strings.Contains(o.text(), "4") })
		if err := g.Signal(unix.SIGTERM); err != nil {
			t.Error(err)
		}
		eventually(t, "the leader has TERM", func() bool { return strings.Contains(o.text(), "1") })
		if _, ended := g.LeaderExit(); ended {
			t.Error("ended by a signal that it catches")
		}
		if err := g.SignalAll(unix.SIGUSR1); err != nil {
			t.Error(err)
		}
		eventually(t, "both have USR1", func() bool { return strings.Contains(o.text(), "2") && strings.Contains(o.text(), "3") })
		g.Kill()
		finish(t, g)
	})
}

func TestRun(t *testing.T) {
	if !alone(t) {
		return
	}
	r := stageReaper(t)
	e, out, err := r.run(t.Context(), []string{"sh", "-c", "echo out; echo err >&2; exit 9"}, os.Environ())
	if err != nil || e != (Exit{cldExited, 9}) || string(out) != "out\nerr\n" {
		t.Errorf("%v %q %v", e, out, err)
	}
	if _, _, err := r.run(t.Context(), []string{"/nonexistent"}, nil); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("nothing to run: %v", err)
	}
	if _, _, err := r.run(t.Context(), nil, nil); !errors.Is(err, errNoCommand) {
		t.Errorf("no command: %v", err)
	}
	// Much output neither blocks the command nor is kept; what it leaves running is ended.
	e, out, err = r.run(t.Context(), []string{"sh", "-c", "sleep 1000 & head -c 1000000 /dev/zero"}, os.Environ())
	if err != nil || e != (Exit{cldExited, 0}) || len(out) != outputLimit {
		t.Errorf("%v %d bytes %v", e, len(out), err)
	}
	// One that has left and holds the pipe holds up nothing.
	o := newOutput(t)
	e, out, err = r.run(t.Context(), []string{"sh", "-c", `(setsid env -i sh -c 'echo $$ >'"$0"'; exec sleep 1000' &); until test -s "$0"; do :; done; echo here`, o.Name()}, os.Environ())
	if err != nil || e != (Exit{cldExited, 0}) || string(out) != "here\n" {
		t.Errorf("%v %q %v", e, out, err)
	}
	holder := o.pids(t, 1)[0]
	if !living(holder) {
		t.Error("the one that left was killed: the test shows nothing")
	}
	syscall.Kill(holder, syscall.SIGKILL) // our child, reaped by r only when it has ended
	why := errors.New("deadline of the probe")
	ctx, cancel := context.WithTimeoutCause(t.Context(), 50*time.Millisecond, why)
	defer cancel()
	e, _, err = r.run(ctx, []string{"sh", "-c", "trap '' TERM; sleep 1000"}, os.Environ())
	if !errors.Is(err, why) || e != (Exit{cldKilled, int(unix.SIGKILL)}) {
		t.Errorf("%v %v", e, err)
	}
	eventually(t, "no child is left", func() bool { return len(children()) == 0 })
}
