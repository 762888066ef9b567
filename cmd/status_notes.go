package cmd

import (
	"cmp"
	"fmt"
	"time"

	"github.com/zdt-dev/zdt/dbusctl"
	"github.com/zdt-dev/zdt/release"
)

// addNotes says what an operator would otherwise find out too late.
func (f *factory) addNotes(s *serviceStatus, u dbusctl.Unit) {
	add := func(id, next, format string, args ...any) {
		s.Notes = append(s.Notes, note{ID: id, Text: fmt.Sprintf(format, args...), Next: next})
	}
	unit := s.Unit.Name
	switch {
	case s.Unit.Load == "masked":
		add("masked", f.systemctl()+" unmask "+unit, "the unit is masked")
	case s.Unit.Load != "loaded" && s.Unit.Load != "not-found":
		add("load", f.systemctl()+" status "+unit, "systemd could not load the unit: %s", cmp.Or(u.LoadError, s.Unit.Load))
	}
	if s.State == stateNone && s.Managed {
		add("no-unit", f.zdt()+" init "+s.Name+" --exec FILE", "there are releases in the store, but no unit")
	}
	if s.State == stateFailed {
		add("failed", f.journal(unit), "the service failed: %s", u.Result)
	}
	if s.Unit.NeedDaemonReload {
		add("daemon-reload", f.systemctl()+" daemon-reload", "unit files changed on disk since systemd read them")
	}
	if t := s.Txn; t != nil {
		what := "an upgrade"
		if t.Kind == string(release.KindRollback) {
			what = "a rollback"
		}
		switch {
		case t.Running:
			add("upgrade-running", f.zdt()+" watch "+s.Name, "%s is in phase %s (pid %d, by %s)", what, t.Phase, t.PID, cmp.Or(t.Who, "somebody"))
		case t.Frozen && s.Runtime != nil && s.Runtime.Handoff != nil && s.Runtime.Handoff.TxID == t.TxID:
			add("frozen", f.zdt()+" promote "+s.Name+", or "+f.zdt()+" abort "+s.Name, "%s is frozen (%s): both programs run until somebody decides; at %s it is undone",
				what, cmp.Or(t.Reason, "?"), t.Deadline.Local().Format(time.DateTime))
		default:
			add("upgrade-open", f.zdt()+" resume "+s.Name, "%s was interrupted: it stopped in phase %s, and pid %d, which worked on it, is gone", what, t.Phase, t.PID)
		}
	}
	if l := s.Lock; l != nil && (s.Txn == nil || !s.Txn.Running) {
		text := fmt.Sprintf("somebody works on it: pid %d, by %s", l.PID, cmp.Or(l.Who, "somebody"))
		if l.Phase.Valid() {
			text += ", in phase " + string(l.Phase)
			if l.Phase.Before(release.PhaseTrigger) {
				text += "; the service is untouched so far"
			}
		}
		add("busy", f.zdt()+" watch "+s.Name, "%s", text)
	}
	if h := s.Hold; h != nil {
		add("held", f.zdt()+" hold "+s.Name+" --off", "held by %s since %s: %s", h.Who, h.Since.Local().Format(time.DateTime), h.Why)
	}
	if s.RuntimeProblem != "" && s.State == stateServing {
		add("runtime", "", "%s", s.RuntimeProblem)
	}
	if r := s.Runtime; r != nil {
		if s.Running != nil && s.Current != nil && s.Running.ID != s.Current.ID && s.Txn == nil && r.Handoff == nil {
			add("drift", f.zdt()+" upgrade "+s.Name+" --binary FILE", "a restart would start release %s, which is not the one that runs", s.Current.ID)
		}
		switch {
		case !r.TookOver || s.RuntimeProblem != "":
		case isHelper(*r):
			add("took-over", f.journal(unit), "the program was started again because its successor died")
		default:
			add("took-over", f.journal(unit), "this generation serves again because its successor died")
		}
		if m := r.Moves; m != nil && m.Differing > 0 {
			add("moves-differ", f.journal(unit), "the kernel says other things of %s than before the move: %s", plural(m.Differing, "moved connection"), m.LastDifference)
		}
		if r.EventsLost > 0 {
			add("events-lost", "", "%s could not be written to the journal", plural(int(r.EventsLost), "event"))
		}
		if l := r.Last; l != nil && !l.Committed {
			add("last-handoff", f.journal(unit), "the last handoff was undone (%s): %s", l.Reason, l.Detail)
		}
	}
	if s.State != stateNone && !s.Managed {
		add("unmanaged", f.zdt()+" init "+s.Name+" --exec FILE", "zdt does not manage this service")
	}
}
