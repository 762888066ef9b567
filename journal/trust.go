package journal

import (
	"strconv"
	"strings"
)

// Source says whose events count.
type Source struct {
	Unit string // unit of the service, with its suffix: web.service
	User bool   // a unit of the user manager of UID
	UID  int    // the user manager's user; only with User
	// Helper is the pid of "zdt run", when that is the unit's main process: it writes the
	// events of the programs it starts. 0: the programs write them themselves.
	Helper int
}

// Service returns the unit's name without .service.
func (s Source) Service() string { return strings.TrimSuffix(s.Unit, ".service") }

// Trusted reports whether e was written by a process of s, or is an event of
// the zdt command about s, going by journald's own fields alone. journald
// drops fields with a leading underscore when a client sends them, takes
// _PID and _UID from the socket's credentials and _SYSTEMD_UNIT from the
// sender's control group.
//
// A log line is trusted if it comes from the unit, or from systemd and is
// about the unit. An event is trusted if
// also its claim about who wrote it is true: ZDT_PID, or for some kinds
// ZDT_PEER_PID, is the sender (the package comment has the table), so that
// one process of a unit cannot speak as another. Operator events must come
// from outside of the unit and from root, or with s.User from the user. The
// helper of s may write the others for any process of the unit.
//
// A process in a pid namespace of its own (a container, PrivatePIDs=) knows
// itself by another number than journald does; its events are not trusted.
// Neither are those of a process that was gone before journald looked at it,
// unless journald knew it from an earlier message: then there is no
// _SYSTEMD_UNIT.
func Trusted(e Entry, s Source) bool {
	kind, isEvent := kindOf(e)
	if !isEvent {
		return claimsNoEvent(e) && (fromUnit(e, s) || fromManager(e, s))
	}
	pid, ok := e.one("_PID")
	if !ok {
		return false
	}
	// Only what came over the native socket has fields at all; the check
	// costs nothing and keeps other transports out.
	if transport, _ := e.one("_TRANSPORT"); transport != "journal" {
		return false
	}
	signed := is(e, FieldPID, pid)
	byHelper := s.Helper != 0 && pid == strconv.Itoa(s.Helper)
	switch kind.def().signer {
	case byOperator:
		return signed && !inUnit(e, s) && is(e, "_UID", s.operatorUID()) && is(e, FieldService, s.Service())
	case byEither:
		return (signed || byHelper || is(e, FieldPeerPID, pid)) && fromUnit(e, s)
	default:
		return (signed || byHelper) && fromUnit(e, s)
	}
}

// Decode returns the event in e, if e is one and is [Trusted]. All text in
// it went through [Printable]: the writer may be a hostile service, the
// reader's terminal root's.
func Decode(e Entry, s Source) (Event, bool) {
	kind, ok := kindOf(e)
	if !ok || !Trusted(e, s) {
		return Event{}, false
	}
	ev := Event{Kind: kind}
	for _, f := range e.Fields {
		switch f.Name {
		case "MESSAGE":
			ev.Message = Printable(f.Value)
		case "PRIORITY":
			if n, err := strconv.Atoi(f.Value); err == nil {
				ev.Priority = Priority(n)
			}
		case FieldTxID:
			ev.TxID = Printable(f.Value)
		case FieldGeneration:
			ev.Generation, _ = strconv.ParseUint(f.Value, 10, 64) // 0: does not say
		case FieldPID:
			ev.PID, _ = strconv.Atoi(f.Value)
		case FieldPeerPID:
			ev.PeerPID, _ = strconv.Atoi(f.Value)
		case FieldService, FieldEvent, "MESSAGE_ID", "SYSLOG_IDENTIFIER":
		default:
			if !strings.HasPrefix(f.Name, "_") {
				ev.Fields = append(ev.Fields, Field{f.Name, Printable(f.Value)})
			}
		}
	}
	ev.Service = s.Service() // proved by the unit; ZDT_SERVICE is a claim
	return ev, true
}

// kindOf returns the kind of event e is, judged by its form.
func kindOf(e Entry) (Kind, bool) {
	id, ok := e.one("MESSAGE_ID")
	if !ok {
		return "", false
	}
	kind, ok := KindOf(id)
	if !ok || !is(e, FieldEvent, string(kind)) {
		return "", false
	}
	// Which of two values counts would be up to the reader.
	for _, name := range []string{FieldTxID, FieldService, FieldGeneration, FieldPID, FieldPeerPID} {
		if len(e.All(name)) > 1 {
			return "", false
		}
	}
	return kind, true
}

// claimsNoEvent reports that e is a mere log line. What looks like half of an
// event is neither.
func claimsNoEvent(e Entry) bool {
	_, known := KindOf(e.Get("MESSAGE_ID"))
	return !known && len(e.All(FieldEvent)) == 0
}

func fromUnit(e Entry, s Source) bool {
	return inUnit(e, s) && (!s.User || is(e, "_UID", strconv.Itoa(s.UID)))
}

// fromManager reports whether systemd says this about the unit. UNIT= and
// USER_UNIT= may be set by anybody, so the sender counts.
func fromManager(e Entry, s Source) bool {
	if s.Unit == "" {
		return false
	}
	if s.User {
		return is(e, "_SYSTEMD_USER_UNIT", "init.scope") && is(e, "_UID", strconv.Itoa(s.UID)) && is(e, "USER_UNIT", s.Unit)
	}
	return is(e, "_PID", "1") && is(e, "UNIT", s.Unit)
}

// inUnit leaves the uid out: it also answers who is *not* outside.
func inUnit(e Entry, s Source) bool {
	if s.Unit == "" {
		return false
	}
	if s.User {
		return is(e, "_SYSTEMD_USER_UNIT", s.Unit)
	}
	// A user manager's units are all in user@UID.service; the name of a
	// user unit proves nothing here.
	return is(e, "_SYSTEMD_UNIT", s.Unit)
}

func (s Source) operatorUID() string {
	if s.User {
		return strconv.Itoa(s.UID)
	}
	return "0"
}

func is(e Entry, name, want string) bool {
	got, ok := e.one(name)
	return ok && got == want && want != ""
}
