package control

import "time"

// Version is the version of this protocol. A runtime reports it in every
// status; a client that knows only an older one still understands the fields
// it knows.
const Version = 1

// RuntimeHelper is the Status.Runtime of "zdt run".
const RuntimeHelper = "helper"

// Phase says where a runtime stands in the handoff.
type Phase string

const (
	Starting  Phase = "starting"  // opened, not READY yet
	Candidate Phase = "candidate" // READY, accepts, waits for its predecessor's commit
	Idle      Phase = "idle"      // serves; no handoff in progress
	Forked    Phase = "forked"    // a candidate was started and is not READY yet
	Held      Phase = "held"      // the candidate is READY; commit or abort decides
	Aborting  Phase = "aborting"  // serves again; the undone candidate is still ending
	Draining  Phase = "draining"  // committed; finishing its connections
	Stopping  Phase = "stopping"  // told to stop; finishing its connections
	Exited    Phase = "exited"    // the last status a runtime sends
)

// Status is what a runtime says of itself.
type Status struct {
	Version    int    `json:"version"`
	Service    string `json:"service"`
	PID        int    `json:"pid"`
	Generation int    `json:"generation"`
	Phase      Phase  `json:"phase"`
	Exe        string `json:"exe"` // the file this generation was executed from

	// Runtime is RuntimeHelper when the process that answers is not the program but starts
	// it ("zdt run"). Then PID, systemd's main process, stays the same through a handoff: after the
	// commit the status has the next Generation, Last.Committed, and the old processes as
	// Predecessor until they have ended. Empty: the program itself, with package handoff.
	Runtime string `json:"runtime,omitempty"`
	// App is the first process of the program that serves; set by a helper only.
	App int `json:"app,omitempty"`
	// Helper is the helper itself; set by a helper only.
	Helper *Helper `json:"helper,omitempty"`

	StartedAt   time.Time `json:"started_at"`
	Sockets     []Socket  `json:"sockets,omitempty"`
	Connections Counts    `json:"connections"`

	// MigrateReq is net.ipv4.tcp_migrate_req in the runtime's network namespace, where it
	// holds TCP sockets with SO_REUSEPORT. Unless it is 1, connections that wait in such a
	// socket are lost when it is closed while others of its address go on. A handoff
	// closes none. Absent on kernels before 5.14, which lose them.
	MigrateReq *int `json:"tcp_migrate_req,omitempty"`

	// Armed is set between "arm" and the signal that starts the handoff.
	Armed *Arm `json:"armed,omitempty"`
	// Handoff is the handoff in progress (forked, held, aborting, draining).
	Handoff *Handoff `json:"handoff,omitempty"`
	// Last is how the most recent handoff of this generation ended.
	Last *Outcome `json:"last,omitempty"`
	// Predecessor is the generation before this one while it still drains.
	Predecessor *Peer `json:"predecessor,omitempty"`

	// Refused counts handoffs asked for and refused since this generation
	// started, LastRefusal says why the last one was.
	Refused     uint64 `json:"refused,omitempty"`
	LastRefusal string `json:"last_refusal,omitempty"`
	// Attempts counts handoffs started since this generation started.
	Attempts uint64 `json:"attempts,omitempty"`
	// TookOver is set when this generation serves again after its successor
	// died while it drained. systemd may still believe the dead process to be the
	// main one; MainPID tells, and "reclaim" mends it once systemd would listen.
	TookOver bool `json:"took_over,omitempty"`
	// Moves are the connections that came to this generation from another one.
	Moves *Moves `json:"moves,omitempty"`
	// EventsLost counts journal events that could not be written.
	EventsLost uint64 `json:"events_lost,omitempty"`
	// Workers are the processes that serve side by side under a helper; absent when there is but one. App is
	// the first of them that serves, and Predecessor stays until the last one of before has ended.
	Workers *Workers `json:"workers,omitempty"`
}

// Workers are the process groups of a helper that keeps several (zdt run --workers).
type Workers struct {
	Want     int      `json:"want"`
	Ready    int      `json:"ready"`              // those that serve: READY, and not told to stop
	Left     int      `json:"left,omitempty"`     // those that still have to be replaced in this handoff
	Restarts int      `json:"restarts,omitempty"` // how often one was started again that had ended by itself
	List     []Worker `json:"list"`
}

// Worker is one of them.
type Worker struct {
	Index      int  `json:"index"` // from 1
	PID        int  `json:"pid"`   // of the first process; 0: it has ended
	Generation int  `json:"generation"`
	Ready      bool `json:"ready"` // it serves
}

// Helper is "zdt run" itself.
type Helper struct {
	Version string `json:"version"`
	Exe     string `json:"exe"` // the file it was executed from
	// Renewals counts how often the process became another helper (SIGHUP). Failures counts the
	// tries since that came to nothing, Error says why the last one did.
	Renewals int    `json:"renewals"`
	Failures int    `json:"failures,omitempty"`
	Error    string `json:"error,omitempty"`
}

// Socket is one socket a runtime holds.
type Socket struct {
	Name    string `json:"name"`    // FileDescriptorName= of the socket unit, or the name given to Listen
	Network string `json:"network"` // tcp, udp, unix, unixgram, unixpacket
	Address string `json:"address"`
	Origin  string `json:"origin"` // systemd, predecessor, bound
	InUse   bool   `json:"in_use"` // false: inherited and passed on, but this release does not use it
	// ReusePort says that other sockets may have the same address, each with an
	// accept queue of its own (SO_REUSEPORT).
	ReusePort bool `json:"reuse_port,omitempty"`
}

// Counts are a generation's connections and tasks. Idle, Active and Streams are those of
// now, the other connections have been counted since the drain began. Each connection is
// in one of the numbers only.
type Counts struct {
	Idle    int `json:"idle"`    // between two requests, or before the first
	Active  int `json:"active"`  // within a request
	Streams int `json:"streams"` // hijacked, or of a protocol of the program's own
	Moved   int `json:"moved"`   // handed to the other generation: the successor, after an abort the predecessor
	Drained int `json:"drained"` // ended by themselves or after their last response
	Closed  int `json:"closed"`  // idle through the whole grace, closed politely
	Cut     int `json:"cut"`     // still busy at the deadline
	// Tasks are those of Handoff.Go that run now. TasksLeft are those that still run after the
	// drain's deadline: nothing waits for them any more.
	Tasks     int `json:"tasks,omitempty"`
	TasksLeft int `json:"tasks_left,omitempty"`
}

// Open returns the number of connections that are open now.
func (c Counts) Open() int { return c.Idle + c.Active + c.Streams }

// Moves counts connections that another generation offered to this one.
type Moves struct {
	Taken   int `json:"taken"`             // those this generation went on with
	Refused int `json:"refused,omitempty"` // those the other generation had to keep
	// With Options.VerifyMoves: connections that came as they were sent, those
	// of which the kernel says otherwise, and those that could not be looked at.
	Verified       int    `json:"verified,omitempty"`
	Differing      int    `json:"differing,omitempty"`
	Unverified     int    `json:"unverified,omitempty"`
	LastDifference string `json:"last_difference,omitempty"` // a sentence
}

// Handoff is a handoff in progress.
type Handoff struct {
	TxID      string    `json:"txid,omitempty"` // empty: nobody armed it (bare SIGUSR2)
	Exe       string    `json:"exe"`
	Candidate int       `json:"candidate"` // pid; 0: in another pid namespace, see handoff.Options.Takeover
	Hold      bool      `json:"hold,omitempty"`
	StartedAt time.Time `json:"started_at"`
	ReadyAt   time.Time `json:"ready_at,omitzero"`
	// Deadline is when the runtime decides by itself: abort a candidate that
	// is not READY or that nobody committed, cut what has not drained.
	Deadline time.Time `json:"deadline,omitzero"`
}

// Steady returns h with times that are true to each other whatever was done to the clock meanwhile, for what is sent has lost
// its monotonic reading: ReadyAt is as long after StartedAt as it took, and Deadline as far from now as it is.
func (h Handoff) Steady(now time.Time) *Handoff {
	if !h.ReadyAt.IsZero() {
		h.ReadyAt = h.StartedAt.Add(h.ReadyAt.Sub(h.StartedAt))
	}
	if !h.Deadline.IsZero() {
		h.Deadline = now.Add(h.Deadline.Sub(now))
	}
	return &h
}

// Outcome is how a handoff ended.
type Outcome struct {
	TxID      string `json:"txid,omitempty"`
	Exe       string `json:"exe"`
	Candidate int    `json:"candidate,omitempty"` // pid; 0 when it could not be started, or is in another pid namespace
	Committed bool   `json:"committed"`
	// Reason is a stable word, the ZDT_REASON of the abort event (package
	// journal lists them). Detail is a sentence.
	Reason string `json:"reason,omitempty"`
	Detail string `json:"detail,omitempty"`
	// Exit is the candidate's end as waitid(2) reported it, once it ended.
	Exit *Exit `json:"exit,omitempty"`
	// Lost counts the connections that had moved to the candidate when it died as the
	// service: they are lost with it, but for those that had ended before.
	Lost int `json:"lost,omitempty"`
	// ReadyAfter is the time from the fork to READY in nanoseconds, 0 when it never was.
	ReadyAfter time.Duration `json:"ready_after,omitempty"`
	// Gap is how long nobody served, in nanoseconds, where the program cannot run twice at
	// a time: clients that came meanwhile waited in the sockets' queues.
	Gap     time.Duration `json:"gap,omitempty"`
	EndedAt time.Time     `json:"ended_at"`
}

// Exit is the end of a process.
type Exit struct {
	Code   string `json:"code"`   // exited, killed, dumped: the words systemd uses for EXIT_CODE
	Status string `json:"status"` // the exit status, or the signal's name without SIG
}

// Peer is another generation of the same service.
type Peer struct {
	PID         int    `json:"pid"` // 0: in another pid namespace
	Generation  int    `json:"generation"`
	Connections Counts `json:"connections"`
}
