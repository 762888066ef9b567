package helper

import (
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// role is what a generation is to the unit when it says something.
type role int

const (
	roleStarting  role = iota // the first one, not READY yet: the unit is starting
	roleCandidate             // beside the one that serves, until the commit
	roleServing
	roleDraining // told to stop, by the commit or with the unit
	roleBeside   // serves, one of several: their heartbeats are the service's together, and one can be ended without the others
)

// standing is how matters are when a generation says something.
type standing struct {
	Role role
	// Stopping: the unit as a whole is stopping, whatever the role of the generation was.
	Stopping bool
}

// message is one datagram to systemd.
type message struct {
	Assignments []string
	FDs         []int
}

func (m message) empty() bool { return len(m.Assignments) == 0 }

// decision is what is done about a notice. Each descriptor of the notice is in exactly one of Now.FDs, Later.FDs,
// Barrier and Close.
type decision struct {
	Ready bool // it is ready: READY=1, said while that was being waited for

	// Status is what it says of itself; one line without control characters,
	// of statusLimit bytes at most. Only if HasStatus: an empty one takes the text back.
	Status    string
	HasStatus bool
	// Trouble is what it says went wrong (ERRNO=2 …), for the report of an abort.
	Trouble string
	// Broken: it wants to be ended (WATCHDOG=trigger). Only of a candidate, which is to be aborted, of one that drains, which
	// is to be killed, and of one of several workers. systemd would end all that serve with them.
	Broken bool
	// Beat: a heartbeat of one of several workers.
	Beat bool
	// Extend is for the helper's own deadline for this generation, that to be READY or that to be gone: it
	// is not to come earlier than in Extend from now. Zero: not asked for.
	Extend time.Duration

	Now   message // goes on to systemd
	Later message // goes to systemd once this generation serves, and nowhere if it never does

	// Barrier is to be closed when systemd has processed all that was sent to it before; -1 when there is none.
	Barrier int
	Close   []int // of no use

	Ignored []string // the keys of assignments that had no effect; not all when there are many
}

const (
	// statusLimit bounds a text of the app in the helper's own, in bytes.
	statusLimit = 256
	// extendLimit bounds what one EXTEND_TIMEOUT_USEC= can ask of the helper. It can be repeated, as it has to be
	// with systemd, which has no bound.
	extendLimit = time.Hour
	// ignoredLimit bounds decision.Ignored.
	ignoredLimit = 16
)

// relay decides what is done about a notice. It is a list of what is allowed: an assignment that it does not
// know goes nowhere, for systemd takes the helper for its sender and obeys.
//
//   - READY=1 counts while it is waited for. systemd gets it from the helper, once.
//   - STATUS= and errors become text in what the helper says. Errors (ERRNO=, BUSERROR=,
//     VARLINKERROR=) go to systemd too, from the generation that the unit is about.
//   - WATCHDOG=1 is the heartbeat of the service: the one that serves has it alone. A candidate
//     that beats would hide that the one that serves does not. Of several workers all have to beat for one to systemd.
//   - WATCHDOG_USEC= and RESTART_RESET=1 change the unit. From a candidate they wait for the commit.
//   - EXTEND_TIMEOUT_USEC= goes to systemd where systemd's clock runs for what this generation does: at
//     the start and stop of the unit, and while it serves (RuntimeMaxSec=). systemd extends
//     its watchdog with it, so the word of a candidate, and of one that drains, stays here.
//   - FDSTORE=1, FDSTOREREMOVE=1, FDNAME=, FDPOLL= are about what the next start of the unit gets. From a
//     candidate they wait for the commit: the store is not to have what an aborted program left, nor lose
//     what the one that goes on serving relies on. One that drains has no say, its
//     successor has taken over.
//   - STOPPING=1 goes nowhere: it would stop the unit. The helper says it when the unit stops.
//   - RELOADING=1 and MONOTONIC_USEC= go nowhere: a unit that waits for the end of a reload would wait for
//     ever if this generation is replaced meanwhile.
//   - MAINPID=, MAINPIDFD=1, MAINPIDFDID= go nowhere: the helper is the main process and
//     stays it. NOTIFYACCESS= goes nowhere: it would let everybody speak for the unit.
//   - EXIT_STATUS= and X_…= go nowhere: they are for the manager of a virtual machine.
//
// Where a key comes twice the first counts, as in systemd.
func relay(n notice, s standing) decision {
	d := decision{Barrier: -1}
	if n.says("BARRIER", "1") {
		// systemd ignores the rest of such a datagram too.
		if len(n.Vars) == 1 && len(n.FDs) == 1 {
			d.Barrier = n.FDs[0]
			return d
		}
		d.Close = n.FDs
		d.ignore(n, nil)
		return d
	}

	// unit: what it says is about the unit. goes is where such a word goes.
	unit := s.Role == roleStarting || s.Role == roleServing || s.Role == roleBeside
	goes := &d.Now
	switch s.Role {
	case roleCandidate:
		goes = &d.Later
	case roleDraining:
		goes = nil
	}
	used := map[string]bool{}
	pass := func(to *message, key, value string) {
		if to != nil {
			to.Assignments = append(to.Assignments, key+"="+value)
			used[key] = true
		}
	}

	if n.says("READY", "1") && (s.Role == roleStarting || s.Role == roleCandidate) {
		d.Ready, used["READY"] = true, true
	}
	if v, found := n.first("STATUS"); found {
		d.Status, d.HasStatus, used["STATUS"] = cleanText(v, statusLimit), true, true
	}
	for _, key := range []string{"ERRNO", "BUSERROR", "VARLINKERROR"} {
		v, found := n.first(key)
		if !found {
			continue
		}
		if d.Trouble == "" {
			d.Trouble = cleanText(key+"="+v, statusLimit)
		}
		used[key] = true
		if unit {
			pass(&d.Now, key, v)
		}
	}

	switch {
	case n.says("WATCHDOG", "trigger"):
		if unit && s.Role != roleBeside {
			pass(&d.Now, "WATCHDOG", "trigger")
		} else {
			d.Broken, used["WATCHDOG"] = true, true
		}
	case n.says("WATCHDOG", "1") && s.Role == roleBeside:
		d.Beat, used["WATCHDOG"] = true, true
	case n.says("WATCHDOG", "1") && s.Role == roleServing:
		pass(&d.Now, "WATCHDOG", "1")
	}
	if v, found := n.first("WATCHDOG_USEC"); found && isUint64(v) {
		pass(goes, "WATCHDOG_USEC", v)
	}
	if n.says("RESTART_RESET", "1") {
		pass(goes, "RESTART_RESET", "1")
	}

	if v, found := n.first("EXTEND_TIMEOUT_USEC"); found && isUint64(v) {
		if s.Stopping || unit {
			pass(&d.Now, "EXTEND_TIMEOUT_USEC", v)
		}
		if s.Stopping || s.Role != roleServing && s.Role != roleBeside {
			d.Extend, used["EXTEND_TIMEOUT_USEC"] = extension(v), true
		}
	}

	d.Close = n.FDs
	store, remove := n.says("FDSTORE", "1") && len(n.FDs) > 0, n.says("FDSTOREREMOVE", "1")
	name, named := n.first("FDNAME")
	if goes != nil && (store || remove && named) {
		if remove && named {
			pass(goes, "FDSTOREREMOVE", "1")
		}
		if store {
			pass(goes, "FDSTORE", "1")
			goes.FDs, d.Close = n.FDs, nil
			if n.says("FDPOLL", "0") {
				pass(goes, "FDPOLL", "0")
			}
		}
		if named {
			pass(goes, "FDNAME", name)
		}
	}
	d.ignore(n, used)
	return d
}

// ignore notes the keys that are not used.
func (d *decision) ignore(n notice, used map[string]bool) {
	for _, v := range n.Vars {
		if len(d.Ignored) == ignoredLimit {
			return
		}
		if key := cleanText(v.Key, 64); !used[v.Key] && !slices.Contains(d.Ignored, key) {
			d.Ignored = append(d.Ignored, key)
		}
	}
}

func isUint64(s string) bool {
	_, err := strconv.ParseUint(s, 10, 64)
	return err == nil
}

// extension is a number of microseconds, bounded.
func extension(usec string) time.Duration {
	n, _ := strconv.ParseUint(usec, 10, 64)
	return time.Duration(min(n, uint64(extendLimit/time.Microsecond))) * time.Microsecond
}

// cleanText makes a text of the app one that can stand in the helper's own and on a terminal: valid
// UTF-8, printable, limit bytes at most. Spaces of any kind become one.
func cleanText(s string, limit int) string {
	if len(s) > 4*limit {
		s = s[:4*limit] // what is looked at is bounded too
	}
	s = strings.ToValidUTF8(s, string(utf8.RuneError))
	s = strings.Map(func(r rune) rune {
		switch {
		case unicode.IsSpace(r):
			return ' '
		case !unicode.IsPrint(r):
			return -1
		}
		return r
	}, s)
	s = strings.Join(strings.Fields(s), " ")
	if len(s) <= limit {
		return s
	}
	const more = "…"
	cut := limit - len(more)
	for !utf8.RuneStart(s[cut]) {
		cut--
	}
	return s[:cut] + more
}
