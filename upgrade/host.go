package upgrade

import (
	"context"
	"syscall"
	"time"

	"github.com/zdt-dev/zdt/handoff/control"
	"github.com/zdt-dev/zdt/journal"
	"github.com/zdt-dev/zdt/release"
)

// Unit is what systemd says of the service's unit.
type Unit struct {
	Name         string
	LoadState    string // loaded, not-found, masked …
	ActiveState  string // active, activating, deactivating, failed …
	SubState     string
	Result       string
	Type         string // of the service: notify …
	NotifyAccess string
	StatusText   string
	MainPID      int // 0: none
	UID          uint32
	ControlGroup string
	// Program is the file that ExecStart= starts as the service: its first word, or
	// under "zdt run" the one behind it. ExecStart and ExecReload are the whole
	// commands, with variables as they are written.
	Program    string
	ExecStart  []string
	ExecReload []string
	Stopped    bool // its last main process was stopped, and did not end by itself
	Job        bool // a job is queued or running
	Socket     bool // a socket unit holds its sockets while it is down
	Runtime    bool // zdt made it so that its main process answers on a control socket
}

// Store is the part of *release.Store that a transaction needs; tests make
// each of its steps fail, or kill the process in front of it.
type Store interface {
	Dir() string
	Current() (release.Release, error)
	Previous() (release.Release, error)
	Get(id string) (release.Release, error)
	Verify(ctx context.Context, r release.Release) error
	Stage(ctx context.Context, src string, o release.StageOptions) (release.Release, error)
	Recover(ctx context.Context, p release.Proc, o release.StageOptions) (release.Release, error)
	Flip(r release.Release) error
	WriteTxn(t release.Txn) error
	ReadTxn() (release.Txn, error)
	Hold() (release.Hold, error)
	ClearTxn() error
	History() (release.History, error)
	AppendHistory(e release.Entry) error
	MarkFailed(id string, f release.Failed) error
	Prune(ctx context.Context, o release.PruneOptions) (release.Pruned, error)
}

// Host is everything outside this process that a transaction touches. All
// fields are needed.
type Host struct {
	// Unit asks systemd; the error of an absent unit is the caller's own.
	Unit func(ctx context.Context) (Unit, error)
	// WatchUnit delivers the unit now and at every change until ctx ends. The
	// channel is closed then, and when systemd cannot be heard any more.
	WatchUnit func(ctx context.Context) (<-chan Unit, error)
	// Signal signals the unit's main process and nothing else.
	Signal func(ctx context.Context, sig syscall.Signal) error
	// Reload has systemd run the unit's ExecReload= and waits for its end.
	Reload func(ctx context.Context) error
	// Restart has systemd stop the unit, if it runs, and start it, also after too many failures; it waits for the
	// result. Stop stops it.
	Restart func(ctx context.Context) error
	Stop    func(ctx context.Context) error
	// Control connects to the runtime's control socket, and proves that it is
	// the service's.
	Control func(ctx context.Context) (*control.Client, error)
	// Reclaim makes systemd listen to a process of the unit that is not the
	// main one while ask runs.
	Reclaim func(ctx context.Context, ask func(ctx context.Context) error) error
	// Tidy removes what a killed zdt left of a Reclaim. nil: there is nothing
	// it could leave. The lock is held.
	Tidy func(ctx context.Context) error
	// Exe returns the file a process executes (/proc/PID/exe).
	Exe func(pid int) (string, error)
	// InUnit reports whether a process is inside the unit's control group.
	InUnit func(pid int, u Unit) (bool, error)

	// Cursor returns the journal's end, Follow the entries after it.
	Cursor func(ctx context.Context) (string, error)
	Follow func(ctx context.Context, cursor string) *journal.Follower
	// Decode returns the event in an entry if its writer proved to be who it says,
	// or is the helper with this pid; 0: there is none.
	Decode func(e journal.Entry, helper int) (journal.Event, bool)
	// Tail returns the last lines that a process of the unit logged; with pid 0 those of all.
	Tail func(ctx context.Context, pid int, since string, lines int) ([]string, error)
	// Write writes an event; it must not block for long.
	Write func(e journal.Event)

	Now func() time.Time
}
