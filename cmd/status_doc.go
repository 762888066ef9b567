package cmd

import (
	"time"

	"github.com/zdt-dev/zdt/handoff/control"
	"github.com/zdt-dev/zdt/release"
)

// statusDoc is the document of zdt status.
type statusDoc struct {
	Schema   string          `json:"schema"`  // zdt.status/1
	Outcome  string          `json:"outcome"` // running, not-running, no-such-service
	ExitCode ExitCode        `json:"exit_code"`
	Changed  bool            `json:"changed"` // always false
	Services []serviceStatus `json:"services"`
}

// serviceStatus is everything known of one service, from systemd, from the
// runtime in its main process, and from its store.
type serviceStatus struct {
	Name  string `json:"name"`
	State state  `json:"state"`
	// Managed: zdt init made its unit or imported a release.
	Managed bool       `json:"managed"`
	Unit    unitStatus `json:"unit"`

	// Runtime is what the runtime says of itself, when RuntimeProblem is empty
	// proved to be that of the main process.
	Runtime        *control.Status `json:"runtime,omitempty"`
	RuntimeProblem string          `json:"runtime_problem,omitempty"`

	Current *releaseStatus `json:"current,omitempty"` // what a restart would start
	Running *releaseStatus `json:"running,omitempty"` // what the main process was started from
	Txn     *txnStatus     `json:"txn,omitempty"`     // the open upgrade
	Lock    *lockStatus    `json:"lock,omitempty"`    // who works on it at this moment; only root sees it
	Hold    *release.Hold  `json:"hold,omitempty"`    // who keeps everybody from upgrading it
	Notes   []note         `json:"notes,omitempty"`
}

// state is a service's state in one word.
type state string

const (
	stateServing  state = "serving"
	stateStarting state = "starting"
	stateStopping state = "stopping"
	stateStopped  state = "stopped"
	stateFailed   state = "failed"
	stateNone     state = "no-such-service"
)

// unitStatus is systemd's part.
type unitStatus struct {
	Name             string     `json:"name"`
	Load             string     `json:"load"`
	Active           string     `json:"active"`
	Sub              string     `json:"sub"`
	Enabled          string     `json:"enabled,omitempty"`
	Result           string     `json:"result,omitempty"`
	MainPID          int        `json:"main_pid,omitempty"`
	Since            *time.Time `json:"since,omitempty"`
	Restarts         uint32     `json:"restarts,omitempty"`
	StatusText       string     `json:"status_text,omitempty"`
	NeedDaemonReload bool       `json:"need_daemon_reload,omitempty"`
}

// releaseStatus names a release.
type releaseStatus struct {
	ID       string    `json:"id"`
	Version  string    `json:"version,omitempty"`
	SHA256   string    `json:"sha256,omitempty"`
	StagedAt time.Time `json:"staged_at,omitzero"`
	Damage   string    `json:"damage,omitempty"`
}

// txnStatus is the open upgrade.
type txnStatus struct {
	TxID     string    `json:"txid"`
	Phase    string    `json:"phase"`
	From     string    `json:"from,omitempty"`
	To       string    `json:"to,omitempty"`
	Kind     string    `json:"kind,omitempty"`
	Undo     bool      `json:"undo,omitempty"`
	Reason   string    `json:"reason,omitempty"` // of Undo or Frozen
	Frozen   bool      `json:"frozen,omitempty"` // it waits for a decision, until Deadline
	Deadline time.Time `json:"deadline,omitzero"`
	Why      string    `json:"why,omitempty"`
	Running  bool      `json:"running"` // the zdt that works on it is alive
	PID      int       `json:"pid"`
	Started  time.Time `json:"started"`
	Who      string    `json:"who,omitempty"`
}

// lockStatus is who has the lock of a service. Before an upgrade touches the service there is a lock and no open upgrade.
type lockStatus struct {
	PID   int           `json:"pid"`
	TxID  string        `json:"txid,omitempty"`
	Phase release.Phase `json:"phase,omitempty"` // of an upgrade or a rehearsal
	Since time.Time     `json:"since,omitzero"`
	Who   string        `json:"who,omitempty"`
}

// note is something an operator should know, and what to do about it.
type note struct {
	ID   string `json:"id"` // stable
	Text string `json:"text"`
	Next string `json:"next,omitempty"`
}
