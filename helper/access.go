//go:build linux

package helper

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// access says which processes of a generation may speak for it.
type access int

const (
	accessMain  access = iota // the leader of its process group alone, as NotifyAccess=main
	accessGroup               // every process of that group
)

// parseAccess reads the value of --notify-access.
func parseAccess(text string) (access, error) {
	switch text {
	case "", "main":
		return accessMain, nil
	case "group":
		return accessGroup, nil
	}
	return 0, fmt.Errorf("read notify access %q: it is main (the first process of the app) or group (all of its process group)", text)
}

// band is a generation's processes, as the kernel tells them from others.
type band struct {
	// Leader is the pid of the first process and the id of the group. Whoever uses a band keeps the
	// leader from being reaped meanwhile, or the number may be another's.
	Leader int
	Access access
}

// sender is who sent a datagram, as the kernel says.
type sender struct {
	PID int // 0: not visible from this pid namespace
	UID uint32
	// PIDFD is a pidfd of that very process (SCM_PIDFD, Linux 6.5), or -1.
	PIDFD int
}

var (
	errSenderUID    = errors.New("is of another user")
	errSenderHidden = errors.New("is of another pid namespace")
	errSenderGroup  = errors.New("is not of this generation")
	errSenderGone   = errors.New("is gone already, nobody can tell what it was")
)

// admit says why the sender may not speak for the band; nil if it may.
//
// The credentials are the kernel's word: only root can send those of another process. The leader is known by
// its pid, which nobody else has until it is reaped. Of another
// process the pid says nothing by itself: it may be gone since, and the number another's. So a
// pidfd holds on to it, its group is looked up, and a signal that is none then proves that the process
// was not reaped meanwhile. A process that has ended but was not waited for still has
// its group.
func (b band) admit(s sender) error {
	// A real and an effective id: of a program that changes between them, either may be in the credentials.
	if s.UID != 0 && int(s.UID) != unix.Getuid() && int(s.UID) != unix.Geteuid() {
		return errSenderUID
	}
	if s.PID <= 0 {
		return errSenderHidden
	}
	if s.PID == b.Leader {
		return nil
	}
	if b.Access != accessGroup {
		return errSenderGroup
	}
	fd := s.PIDFD
	if fd < 0 {
		var err error
		if fd, err = unix.PidfdOpen(s.PID, 0); err != nil {
			return errSenderGone
		}
		defer unix.Close(fd)
	}
	p, found := readProcess(s.PID)
	if !found || unix.PidfdSendSignal(fd, 0, nil, 0) == unix.ESRCH {
		return errSenderGone
	}
	if p.group != b.Leader {
		return errSenderGroup
	}
	return nil
}
