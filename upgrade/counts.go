package upgrade

import (
	"github.com/zdt-dev/zdt/handoff/control"
	"github.com/zdt-dev/zdt/journal"
)

// settleCounts completes what the report says of the incumbent's connections,
// when the watching has ended and the story is told. The incumbent's last
// status has the numbers; where it was not heard, because the control
// connection broke, the exit event in the journal has them.
func (r *run) settleCounts() {
	rep, ev := &r.report, r.ev
	if !r.committing {
		return
	}
	pid := ev.server.pid
	if rep.Outcome != Upgraded {
		r.settleLost()
		return
	}
	last, told := r.story.find(journal.Exit, pid)
	switch {
	case ev.helper:
		r.settleProgram()
	case ev.status.Phase == control.Exited:
		c := ev.status.Connections
		rep.Connections = &c
	case told && last.Get(journal.FieldExitCode) == "unknown": // its successor tells it, from what it knew
		c := countsOf(last)
		rep.Connections = &c
		r.warn("the previous process %d ended without its last word: the connections that it still had are lost (last known: %s)", pid, c.Summary())
		return
	case told:
		c := countsOf(last)
		rep.Connections = &c
	case ev.incumbent.isGone():
		known := ""
		if c := rep.Connections; c != nil {
			known = " (last known: " + c.Progress() + ")"
		}
		r.warn("the previous process %d ended without its last word: what became of its last connections is not known%s", pid, known)
		return
	}
	r.tellCut()
}

// tellCut says clearly that clients have noticed.
func (r *run) tellCut() {
	c := r.report.Connections
	if c == nil {
		return
	}
	if c.Cut > 0 {
		r.warn("%s cut, still busy at the drain deadline: clients have noticed; to allow more time: %s",
			were(c.Cut, "connection"), r.zdt("init", r.Options.Service, "--drain-timeout D"))
	}
	if c.TasksLeft > 0 {
		r.warn("%s left behind: still running at the drain deadline, they ended with their process", were(c.TasksLeft, "task"))
	}
}

// tellRefused says of connections that should have moved why they did not.
func (r *run) tellRefused(m *control.Moves) {
	if m == nil {
		return
	}
	if m.Refused > 0 {
		r.warn("the new process could not take %s, most likely for want of descriptors (LimitNOFILE=): the clients have to reconnect",
			plural(m.Refused, "connection", "", "s"))
	}
	if m.Differing > 0 {
		r.warn("%s not as sent when it arrived, the last: %s", were(m.Differing, "connection"), m.LastDifference)
	}
}

// settleLost counts the connections that had moved to a process that is not
// there any more.
func (r *run) settleLost() {
	rep, ev := &r.report, r.ev
	switch s := ev.status; {
	case undone(s, rep.TxID): // the incumbent took the service back
		rep.Lost = s.Last.Lost
		rep.Connections = nil // it has not come to its end
	case rep.Connections != nil && ev.candidateGone():
		rep.Lost = rep.Connections.Moved
	}
	if rep.Lost == 0 {
		if e, ok := r.story.find(journal.Abort, ev.server.pid); ok {
			rep.Lost = number(e, journal.FieldConnsLost)
		}
	}
	if rep.Lost > 0 {
		r.warn("%s moved to the new process and ended with it", had(rep.Lost, "connection"))
	}
}

// countsOf reads the counts of an exit event. ZDT_CONNS_DRAINED includes the
// politely closed ones.
func countsOf(e journal.Event) control.Counts {
	c := control.Counts{
		Moved: number(e, journal.FieldConnsMoved), Closed: number(e, journal.FieldConnsClosed),
		Cut: number(e, journal.FieldConnsCut), TasksLeft: number(e, journal.FieldTasksLeft),
	}
	c.Drained = max(0, number(e, journal.FieldConnsDrained)-c.Closed)
	return c
}

// number is a count in an event of the service: 0 when it is absent, or nonsense.
func number(e journal.Event, field string) int {
	n, _ := e.Int(field)
	return int(min(max(n, 0), 1<<31-1))
}
