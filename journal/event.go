package journal

import (
	"fmt"
	"strconv"
	"time"
)

// Kind names an event. Its value is what ZDT_EVENT carries.
type Kind string

// The events of a handoff, written by the runtime inside of the service, and
// those of an upgrade, written by the zdt command. The names and their
// message IDs never change; fields are only ever added.
const (
	Fork            Kind = "fork"             // the candidate was started
	Listen          Kind = "listen"           // the candidate is READY with its listeners
	Drain           Kind = "drain"            // the incumbent stopped serving new work
	Exit            Kind = "exit"             // a generation ended
	Abort           Kind = "abort"            // the handoff was undone, the incumbent serves on
	UpgradeBegin    Kind = "upgrade-begin"    // the transaction started
	UpgradeCommit   Kind = "upgrade-commit"   // the new release is the one that stays
	UpgradeRollback Kind = "upgrade-rollback" // the transaction goes back to the old release
	UpgradeEnd      Kind = "upgrade-end"      // the transaction is over, ZDT_OUTCOME says how
)

// Kinds returns all kinds in the order in which an upgrade meets them.
func Kinds() []Kind {
	return []Kind{Fork, Listen, Drain, Exit, Abort, UpgradeBegin, UpgradeCommit, UpgradeRollback, UpgradeEnd}
}

// Names of the fields an event carries. Those up to FieldPeerPID are set from
// the members of [Event]; the others go into Event.Fields.
const (
	FieldEvent      = "ZDT_EVENT"      // the kind's name
	FieldTxID       = "ZDT_TXID"       // the upgrade this belongs to; absent for a bare handoff
	FieldService    = "ZDT_SERVICE"    // the service's name, without .service
	FieldGeneration = "ZDT_GENERATION" // generation of the process in ZDT_PID
	FieldPID        = "ZDT_PID"        // the process the event is about
	FieldPeerPID    = "ZDT_PEER_PID"   // the other process of the handoff

	FieldExe           = "ZDT_EXE"           // absolute path the candidate was executed from
	FieldRelease       = "ZDT_RELEASE"       // its release, if it has one
	FieldListenPID     = "LISTEN_PID"        // pid that owns the listeners now
	FieldListenFDs     = "LISTEN_FDS"        // how many
	FieldListenFDNames = "LISTEN_FDNAMES"    // their names, separated by colons
	FieldElapsed       = "ZDT_ELAPSED_USEC"  // listen: since fork; exit: since the drain began; microseconds
	FieldConnsIdle     = "ZDT_CONNS_IDLE"    // connections without a request when the drain began
	FieldConnsActive   = "ZDT_CONNS_ACTIVE"  // connections that were busy when the drain began, streams included
	FieldConnsStreams  = "ZDT_CONNS_STREAMS" // those of the busy ones that were no HTTP (any more)
	FieldConnsMoved    = "ZDT_CONNS_MOVED"   // connections that live on in the other generation
	FieldConnsDrained  = "ZDT_CONNS_DRAINED" // connections that came to their own end here, those in FieldConnsClosed included
	FieldConnsClosed   = "ZDT_CONNS_CLOSED"  // those of the drained ones that were idle through the whole grace and closed politely
	FieldConnsCut      = "ZDT_CONNS_CUT"     // connections that were cut at the deadline
	FieldConnsLost     = "ZDT_CONNS_LOST"    // connections that had moved to the other process and ended with it
	FieldTasksLeft     = "ZDT_TASKS_LEFT"    // tasks that still ran at the end
	FieldStatus        = "STATUS"            // progress in words
	FieldExitCode      = "EXIT_CODE"         // as systemd has it: exited, killed or dumped
	FieldExitStatus    = "EXIT_STATUS"       // as systemd has it: the status, or the signal's name without SIG
	FieldReason        = "ZDT_REASON"        // a Reason
	FieldFrom          = "ZDT_FROM"          // release before the upgrade
	FieldTo            = "ZDT_TO"            // release it goes to
	FieldOutcome       = "ZDT_OUTCOME"       // the transaction's outcome, as in the JSON documents
	FieldLoginUID      = "ZDT_LOGINUID"      // audit login uid of who asked, from /proc/self/loginuid
	FieldSudoUser      = "ZDT_SUDO_USER"     // SUDO_USER of who asked; a claim, not a proof

	FieldEventsLost = "ZDT_EVENTS_LOST" // added by Writer: events dropped before this one
	FieldCut        = "ZDT_CUT"         // added by Writer: names of the fields whose values were shortened
)

// Reason says in one stable word why a handoff was undone. It is the value of
// ZDT_REASON. Scripts branch on it: words are added, never changed.
type Reason string

const (
	// ReasonStart: the candidate could not be executed at all: no such file,
	// not executable, another architecture, no permission.
	ReasonStart Reason = "start-failed"
	// ReasonExited: the candidate ended with status 0 before the commit.
	ReasonExited Reason = "exited"
	// ReasonCrashed: the candidate ended before the commit with another
	// status or by a signal; EXIT_CODE and EXIT_STATUS tell.
	ReasonCrashed Reason = "crashed"
	// ReasonReadyTimeout: the candidate was not READY in time.
	ReasonReadyTimeout Reason = "ready-timeout"
	// ReasonHoldTimeout: whoever was to decide about a held candidate did
	// not do so before the deadline.
	ReasonHoldTimeout Reason = "hold-timeout"
	// ReasonHealth: the candidate was READY but failed its health check.
	ReasonHealth Reason = "health"
	// ReasonRequested: the control socket was told to abort.
	ReasonRequested Reason = "requested"
	// ReasonSignal: SIGUSR1 arrived.
	ReasonSignal Reason = "signal"
	// ReasonStopping: the service was stopped during the handoff.
	ReasonStopping Reason = "stopping"
	// ReasonProtocol: incumbent and candidate do not speak a common version
	// of the wire, or one of them broke it.
	ReasonProtocol Reason = "protocol"
	// ReasonResources: the incumbent ran out of descriptors, processes or
	// memory while it prepared the handoff.
	ReasonResources Reason = "resources"
	// ReasonRefused: no handoff was started, because one is in progress or
	// this generation cannot start one now.
	ReasonRefused Reason = "refused"
	// ReasonSystemd: systemd was told of the new main process and did not
	// take it.
	ReasonSystemd Reason = "systemd"
)

// Priority is a syslog priority. Its zero value means the kind's own, so
// emerg, which would be 0 and goes to every terminal, cannot be had.
type Priority int

// The priorities zdt uses, as in syslog(3).
const (
	PriErr     Priority = 3
	PriWarning Priority = 4
	PriNotice  Priority = 5
	PriInfo    Priority = 6
	PriDebug   Priority = 7
)

// Field is one NAME=value of an event. Names are upper case letters, digits
// and underscores and start with a letter; values are any bytes.
type Field struct{ Name, Value string }

// Str returns a text field.
func Str(name, value string) Field { return Field{name, value} }

// Int returns a field with a decimal number.
func Int(name string, n int64) Field { return Field{name, strconv.FormatInt(n, 10)} }

// Usec returns a field with a duration in whole microseconds.
func Usec(name string, d time.Duration) Field { return Int(name, d.Microseconds()) }

// Event is one event, to be written or as read back. Members with their zero
// value are left out of the journal, except Kind.
type Event struct {
	Kind       Kind
	Message    string   // what a person reads; "" means Text
	Priority   Priority // 0 means Kind's own
	TxID       string   // the upgrade this belongs to
	Service    string   // service name, without .service
	Generation uint64   // generation of PID
	PID        int      // the process the event is about; the package comment has the table
	PeerPID    int      // the other process of the handoff
	Fields     []Field  // the others, in order; Kind.Fields lists what a kind promises
}

// Get returns the value of the first of e.Fields called name, or "".
func (e Event) Get(name string) string {
	for _, f := range e.Fields {
		if f.Name == name {
			return f.Value
		}
	}
	return ""
}

// Int returns a field as a number; ok is false if it is absent or is none.
func (e Event) Int(name string) (n int64, ok bool) {
	n, err := strconv.ParseInt(e.Get(name), 10, 64)
	return n, err == nil
}

// Text returns the message: e.Message, or a sentence made from the fields.
func (e Event) Text() string {
	if e.Message != "" {
		return e.Message
	}
	who := e.Service
	if who == "" {
		who = "service"
	}
	switch e.Kind {
	case Fork:
		return fmt.Sprintf("%s: generation %d (pid %d) started candidate %d%s", who, e.Generation, e.PID, e.PeerPID, e.opt(" from ", FieldExe, ""))
	case Listen:
		return fmt.Sprintf("%s: candidate %d is ready%s", who, e.PID, e.opt(" with ", FieldListenFDs, " listeners"))
	case Drain:
		return fmt.Sprintf("%s: pid %d drains: %s", who, e.PID, e.orElse(FieldStatus, e.orElse(FieldConnsIdle, "0")+" idle, "+e.orElse(FieldConnsActive, "0")+" active"))
	case Exit:
		return fmt.Sprintf("%s: generation %d (pid %d) ended%s", who, e.Generation, e.PID, e.opt(", ", FieldExitCode, e.opt(" ", FieldExitStatus, "")))
	case Abort:
		return fmt.Sprintf("%s: handoff undone%s, pid %d serves on", who, e.opt(" (", FieldReason, ")"), e.PID)
	case UpgradeBegin:
		return fmt.Sprintf("%s: upgrade%s%s begins", who, e.opt(" from ", FieldFrom, ""), e.opt(" to ", FieldTo, ""))
	case UpgradeCommit:
		return fmt.Sprintf("%s: upgrade%s committed", who, e.opt(" to ", FieldTo, ""))
	case UpgradeRollback:
		return fmt.Sprintf("%s: upgrade rolls back%s%s", who, e.opt(" to ", FieldFrom, ""), e.opt(" (", FieldReason, ")"))
	case UpgradeEnd:
		return fmt.Sprintf("%s: upgrade ended%s", who, e.opt(": ", FieldOutcome, ""))
	}
	return who + ": " + string(e.Kind)
}

// opt returns the field's value between pre and post, or "" without a value.
func (e Event) opt(pre, name, post string) string {
	if v := e.Get(name); v != "" {
		return pre + v + post
	}
	return ""
}

func (e Event) orElse(name, def string) string {
	if v := e.Get(name); v != "" {
		return v
	}
	return def
}

// ID returns the kind's MESSAGE_ID, 32 hexadecimal digits, or "" for a kind
// this version does not know.
func (k Kind) ID() string { return k.def().id }

// Priority returns the priority of an event that does not set its own.
func (k Kind) Priority() Priority { return k.def().priority }

// Fields returns the names a writer of the kind sets besides the common ones.
// Readers must cope with their absence.
func (k Kind) Fields() []string { return k.def().fields }

// Operator reports whether the zdt command writes the kind, and not the
// runtime inside of the service.
func (k Kind) Operator() bool { return k.def().signer == byOperator }

// KindOf returns the kind that has the MESSAGE_ID id.
func KindOf(id string) (Kind, bool) {
	for _, k := range Kinds() {
		if k.ID() == id {
			return k, true
		}
	}
	return "", false
}

// signer says which process may write an event: the table in the package
// comment.
type signer int

const (
	bySubject  signer = iota // ZDT_PID
	byEither                 // ZDT_PID or ZDT_PEER_PID
	byOperator               // ZDT_PID, and not from inside of the unit
)

type definition struct {
	id       string
	priority Priority
	signer   signer
	fields   []string
}

// def is a switch and not a map so that nothing in the package can change.
func (k Kind) def() definition {
	switch k {
	case Fork:
		return definition{"185ea6feb9724408b5f295b5408d5a49", PriInfo, bySubject,
			[]string{FieldExe, FieldRelease}}
	case Listen:
		return definition{"fd171a478085481fbb28adffebb6798c", PriInfo, byEither,
			[]string{FieldListenPID, FieldListenFDs, FieldListenFDNames, FieldElapsed}}
	case Drain:
		return definition{"e17942d59c29495391976cd7b39f3fe1", PriInfo, bySubject,
			[]string{FieldConnsIdle, FieldConnsActive, FieldStatus, FieldConnsStreams}}
	case Exit:
		return definition{"249ebcf6f77f4b1b8cc3ee511f26c976", PriInfo, byEither,
			[]string{FieldExitCode, FieldExitStatus, FieldConnsMoved, FieldConnsDrained, FieldConnsCut, FieldElapsed, FieldConnsClosed, FieldTasksLeft}}
	case Abort:
		return definition{"002c62ab985342d580ea0ea4b581d4a4", PriWarning, bySubject,
			[]string{FieldReason, FieldExitCode, FieldExitStatus, FieldConnsLost}}
	case UpgradeBegin:
		return definition{"48b38e34e0fb4f58bc388529241f0dc8", PriNotice, byOperator,
			[]string{FieldFrom, FieldTo, FieldLoginUID, FieldSudoUser}}
	case UpgradeCommit:
		return definition{"022768fc39754415a68839b82c5e28a1", PriNotice, byOperator,
			[]string{FieldFrom, FieldTo}}
	case UpgradeRollback:
		return definition{"690310423fee41c8a9f53fa49252e472", PriWarning, byOperator,
			[]string{FieldFrom, FieldTo, FieldReason}}
	case UpgradeEnd:
		return definition{"6f7123ee8b23485885ddcf15bdf4fdc1", PriNotice, byOperator,
			[]string{FieldFrom, FieldTo, FieldOutcome, FieldElapsed, FieldLoginUID, FieldSudoUser}}
	}
	return definition{priority: PriNotice}
}
