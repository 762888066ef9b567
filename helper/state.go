//go:build linux

package helper

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/zdt-dev/zdt/handoff/control"
	"github.com/zdt-dev/zdt/internal/memfile"
)

// stateFormat is the version of state. A helper refuses to become one that does not
// know it, before anything has changed.
const stateFormat = 1

// crewFormat is that of a helper with several workers, which one that knows stateFormat alone would forget.
const crewFormat = 2

// state is what a helper leaves to the one that is executed in its place. Descriptors keep
// their numbers. Only a helper at rest leaves one: one group serves, or all workers do, and no other is there.
type state struct {
	Format  int      `json:"format"`
	Number  int      `json:"number"`
	App     App      `json:"app"`
	Sockets []Socket `json:"sockets"`
	Bound   int      `json:"bound"`
	Control int      `json:"control"` // -1: no control socket
	// Takeover is the takeover socket; 0 or less: there is none.
	Takeover int              `json:"takeover,omitempty"`
	Given    int              `json:"given,omitempty"` // how many of Sockets, the first ones, another process gave
	Serving  servingState     `json:"serving"`
	Crew     []servingState   `json:"crew,omitempty"`    // the workers but the first
	Signals  []syscall.Signal `json:"signals,omitempty"` // received and not yet acted on

	Last          *control.Outcome `json:"last,omitempty"`
	Attempts      uint64           `json:"attempts,omitempty"`
	Refused       uint64           `json:"refused,omitempty"`
	Refusal       string           `json:"refusal,omitempty"`
	TookOver      bool             `json:"took_over,omitempty"`
	Renewals      int              `json:"renewals"`
	Watchdog      time.Duration    `json:"watchdog,omitempty"`
	IgnoreSIGPIPE bool             `json:"ignore_sigpipe,omitempty"`

	Starts   int           `json:"starts,omitempty"`
	Restarts int           `json:"restarts,omitempty"`
	Queues   map[int][]int `json:"queues,omitempty"`
}

// servingState is a group that serves.
type servingState struct {
	Number   int       `json:"number,omitempty"` // 0: the state's
	App      App       `json:"app"`
	Pinned   []string  `json:"pinned"` // App.Command as it was executed
	Exe      string    `json:"exe"`
	Leader   int       `json:"leader"`
	PIDFD    int       `json:"pidfd"`
	Marker   string    `json:"marker"`
	Mailbox  int       `json:"mailbox"`
	MailPath string    `json:"mail_path"`
	Started  time.Time `json:"started"`
	Ready    time.Time `json:"ready"`
	Words    string    `json:"words,omitempty"`
}

// check finds what a helper could not go on with.
func (s state) check() error {
	switch {
	case s.Format != s.format():
		return fmt.Errorf("the state has format %d, this zdt knows %d, and %d of several workers", s.Format, stateFormat, crewFormat)
	case s.Number < 1 || slices.ContainsFunc(s.groups(), servingState.bad):
		return errors.New("the state names no program that serves")
	case slices.ContainsFunc(slices.Collect(maps.Values(s.Queues)), func(fds []int) bool { return len(fds) != len(s.Crew) }):
		return errors.New("the state has sockets of other workers than there are")
	case slices.ContainsFunc(s.descriptors(), func(fd int) bool { return fd < 0 }):
		return errors.New("the state lacks a descriptor")
	case s.Bound < 0 || s.Given < 0 || s.Bound > len(s.Sockets)-s.Given:
		return errors.New("the state has more sockets bound than there are")
	}
	return nil
}

// format is the one that the state has to have.
func (s state) format() int {
	if len(s.Crew) > 0 {
		return crewFormat
	}
	return stateFormat
}

// groups are those that serve, in the order of their slots.
func (s state) groups() []servingState { return append([]servingState{s.Serving}, s.Crew...) }

// bad: it is none.
func (s servingState) bad() bool { return s.Leader <= 1 || s.Exe == "" || len(s.Pinned) == 0 }

// descriptors are those that go on to the next helper.
func (s state) descriptors() []int {
	var fds []int
	for _, g := range s.groups() {
		fds = append(fds, g.PIDFD, g.Mailbox)
	}
	for _, own := range s.Queues {
		fds = append(fds, own...)
	}
	if s.Control != -1 {
		fds = append(fds, s.Control)
	}
	if s.Takeover > 0 {
		fds = append(fds, s.Takeover)
	}
	for _, sock := range s.Sockets {
		fds = append(fds, sock.FD)
	}
	return fds
}

// write puts the state into a file in memory. The caller closes it.
func (s state) write() (int, error) {
	data, err := json.Marshal(s)
	if err != nil {
		return -1, err
	}
	return memfile.Write("zdt-state", data)
}

// stateLimit bounds what is read of a state, in bytes. An environment of the largest kind fits.
const stateLimit = 16 << 20

// readState reads a state from fd, which it closes.
func readState(fd int) (state, error) {
	var s state
	f := os.NewFile(uintptr(fd), "state")
	if f == nil {
		return s, fmt.Errorf("read the state: %w", os.ErrInvalid)
	}
	defer f.Close()
	data, err := io.ReadAll(io.NewSectionReader(f, 0, stateLimit))
	if err != nil {
		return s, fmt.Errorf("read the state: %w", err)
	}
	return s, s.decode(data)
}

func (s *state) decode(data []byte) error {
	if err := json.Unmarshal(data, s); err != nil {
		return fmt.Errorf("read the state: %w", err)
	}
	return s.check()
}

// MarshalText is the value as it was given.
func (r Readiness) MarshalText() ([]byte, error) { return []byte(r.text), nil }

// UnmarshalText reads what ParseReadiness does.
func (r *Readiness) UnmarshalText(text []byte) (err error) {
	*r, err = ParseReadiness(string(text))
	return err
}

// keepOnExec says whether descriptors stay open when this process executes another program.
func keepOnExec(fds []int, keep bool) error {
	flags := unix.FD_CLOEXEC
	if keep {
		flags = 0
	}
	for _, fd := range fds {
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_SETFD, flags); err != nil {
			return fmt.Errorf("descriptor %d: %w", fd, err)
		}
	}
	return nil
}
