package cmd

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/zdt-dev/zdt/dbusctl"
	"github.com/zdt-dev/zdt/handoff/control"
	"github.com/zdt-dev/zdt/journal"
)

// watchDoc is one line of zdt watch -o ndjson.
type watchDoc struct {
	Schema string    `json:"schema"` // zdt.watch/1
	Type   string    `json:"type"`   // event, runtime, unit
	At     time.Time `json:"at"`
	Text   string    `json:"text"` // what the text output says

	Event   *eventDoc       `json:"event,omitempty"`
	Runtime *control.Status `json:"runtime,omitempty"`
	Unit    *unitStatus     `json:"unit,omitempty"`
}

// eventDoc is an event of the journal.
type eventDoc struct {
	Kind       string            `json:"kind"`
	TxID       string            `json:"txid,omitempty"`
	Generation uint64            `json:"generation,omitempty"`
	PID        int               `json:"pid,omitempty"`
	PeerPID    int               `json:"peer_pid,omitempty"`
	Fields     map[string]string `json:"fields,omitempty"`
}

func newWatchCmd(f *factory) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "watch NAME",
		Short: "Follow a service: handoffs, connections, state",
		Long: `Follow a service until Ctrl-C: the handoff events of the journal, what the
runtime says of itself, and the unit's state. Takes no lock and changes nothing.`,
		Example: `  zdt watch web
  zdt watch web -o ndjson | jq -r .text`,
		Args:              arguments(1, 1, "the NAME of the service"),
		ValidArgsFunction: f.completeServices(1),
	}
	return f.command(cmd, func(ctx context.Context, args []string) error {
		name, err := serviceName(args[0])
		if err != nil {
			return err
		}
		return runWatch(ctx, f, name)
	}, ExitOK, ExitNoService, ExitUsage, ExitUnavailable, ExitNotAuthorised, ExitInt, ExitTerm)
}

func runWatch(ctx context.Context, f *factory, name string) error {
	p, err := f.paths()
	if err != nil {
		return err
	}
	bus, err := f.dialSystemd(ctx, f.globals.user)
	if err != nil {
		return err
	}
	defer bus.Close()
	unit := name + ".service"
	if _, err := bus.Unit(ctx, unit); errors.Is(err, dbusctl.ErrNoUnit) {
		return fail(ExitNoService, f.zdt()+" status lists the services", "there is no service %s", name)
	} else if err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	units, err := bus.Watch(ctx, unit)
	if err != nil {
		return err
	}
	source := journal.Source{Unit: unit, User: f.globals.user, UID: f.euid}
	entries, closeJournal := f.followEvents(ctx, source)
	defer closeJournal()
	w := &watcher{f: f, paths: p, name: name, source: source}
	defer w.leaveRuntime()
	if err := w.loop(ctx, units, entries); err != nil {
		return err
	}
	if ctx.Err() == nil {
		return fail(ExitUnavailable, "", "the connection to systemd was lost")
	}
	return &Failure{Code: codeOf(context.Cause(ctx)), Err: context.Cause(ctx), Told: true}
}

// followEvents follows the journal from now on. Without a readable journal the
// rest is worth watching, too.
func (f *factory) followEvents(ctx context.Context, source journal.Source) (<-chan journal.Entry, func()) {
	q := journal.Query{Source: source, EventsOnly: true, Command: f.journalctl}
	cursor, err := journal.Cursor(ctx, q)
	if err != nil {
		f.say("%s the journal cannot be read, events are missing: %v", f.errStyle().warn.Render("note:"), err)
		return nil, func() {}
	}
	q.AfterCursor = cursor
	follower := journal.Follow(ctx, q)
	return follower.Entries(), follower.Close
}

// watcher is the state of zdt watch; the goroutine in loop owns it.
type watcher struct {
	f      *factory
	paths  Paths
	name   string
	source journal.Source

	unit     dbusctl.Unit
	unitSeen string
	runtime  string // what was last said of it
	said     time.Time
	statuses <-chan control.Status // of the main process's runtime; nil: none
	leave    context.CancelFunc
	retry    *time.Timer
}

func (w *watcher) loop(ctx context.Context, units <-chan dbusctl.Unit, entries <-chan journal.Entry) error {
	w.retry = time.NewTimer(time.Hour)
	defer w.retry.Stop()
	for {
		var err error
		select {
		case <-ctx.Done():
			return nil
		case u, ok := <-units:
			if !ok {
				return nil
			}
			err = w.unitChanged(ctx, u)
		case e, ok := <-entries:
			if !ok {
				entries = nil
				continue
			}
			err = w.entry(e)
		case s, ok := <-w.statuses:
			if !ok {
				w.leaveRuntime()
				w.retry.Reset(retryRuntime)
				continue
			}
			err = w.status(s)
		case <-w.retry.C:
			w.joinRuntime(ctx)
		}
		if errors.Is(err, syscall.EPIPE) {
			return &Failure{Code: ExitOK, Told: true} // the reader has seen enough
		}
		if err != nil {
			return err
		}
	}
}

// retryRuntime is the pause before a runtime that did not answer is asked again.
const retryRuntime = 500 * time.Millisecond

func (w *watcher) unitChanged(ctx context.Context, u dbusctl.Unit) error {
	before := w.unit.MainPID
	w.unit = u
	if u.MainPID != before {
		w.leaveRuntime()
		w.joinRuntime(ctx)
	}
	text := fmt.Sprintf("%s (%s)", cmp.Or(u.ActiveState, "unknown"), u.SubState)
	if u.MainPID != 0 {
		text += fmt.Sprintf(", main process %d", u.MainPID)
	}
	if u.Result != "" && u.Result != "success" {
		text += ", result " + u.Result
	}
	if text == w.unitSeen {
		return nil
	}
	w.unitSeen = text
	return w.print(watchDoc{Type: "unit", At: w.f.now(), Text: clean(text), Unit: &unitStatus{
		Name: u.Name, Load: u.LoadState, Active: u.ActiveState, Sub: u.SubState, Result: u.Result, MainPID: int(u.MainPID), StatusText: u.StatusText,
	}})
}

func (w *watcher) entry(e journal.Entry) error {
	ev, ok := journal.Decode(e, w.source)
	if !ok {
		return nil
	}
	doc := &eventDoc{Kind: string(ev.Kind), TxID: ev.TxID, Generation: ev.Generation, PID: ev.PID, PeerPID: ev.PeerPID}
	for _, field := range ev.Fields {
		if doc.Fields == nil {
			doc.Fields = make(map[string]string)
		}
		doc.Fields[field.Name] = field.Value
	}
	return w.print(watchDoc{Type: "event", At: e.Realtime, Text: ev.Text(), Event: doc})
}

// status says what changed; numbers of connections alone at most once a second.
func (w *watcher) status(s control.Status) error {
	w.source.Helper = 0
	if isHelper(s) {
		w.source.Helper = s.PID // which is the main process
	}
	now := w.f.now()
	what := fmt.Sprintf("pid %d, generation %d: %s", serving(s), s.Generation, runtimeWords(s))
	if isHelper(s) {
		what += fmt.Sprintf(", under helper %d", s.PID)
	}
	counts := ""
	if sees(s) {
		counts = ", " + countsWords(s.Connections)
	}
	if fate := fateWords(s.Connections); fate != "" {
		counts += ", " + fate
	}
	if p := s.Predecessor; p != nil {
		what += "; " + control.Process(p.PID) + " drains"
		if !isHelper(s) || p.Connections != (control.Counts{}) {
			counts += ", and there " + p.Connections.Progress()
		}
	}
	if what == w.runtime && (now.Sub(w.said) < time.Second || s.Phase == control.Idle && s.Predecessor == nil) {
		return nil
	}
	w.runtime, w.said = what, now
	return w.print(watchDoc{Type: "runtime", At: now, Text: clean(what + counts), Runtime: &s})
}

func runtimeWords(s control.Status) string {
	if s.Phase == control.Idle {
		return "serving"
	}
	return phaseWords(&s)
}

// joinRuntime begins to watch the runtime of the present main process.
func (w *watcher) joinRuntime(ctx context.Context) {
	if w.statuses != nil || w.unit.MainPID == 0 || ctx.Err() != nil {
		return
	}
	ctx, cancel := context.WithCancel(ctx)
	statuses := make(chan control.Status)
	w.statuses, w.leave = statuses, cancel
	unit, path := w.unit, w.paths.Control(w.name)
	go func() {
		defer close(statuses)
		uid, err := mainUID(unit)
		if err != nil {
			return
		}
		client, _, err := w.f.connectRuntime(ctx, path, int(unit.MainPID), uid)
		if err != nil {
			return
		}
		defer client.Close()
		for s, err := range client.Watch(ctx) {
			if err != nil {
				return
			}
			select {
			case statuses <- s:
			case <-ctx.Done():
				return
			}
		}
	}()
}

// leaveRuntime ends and joins what joinRuntime started.
func (w *watcher) leaveRuntime() {
	if w.statuses == nil {
		return
	}
	w.leave()
	for range w.statuses {
	}
	w.statuses = nil
}

func (w *watcher) print(d watchDoc) error {
	d.Schema = "zdt.watch/1"
	if w.f.globals.output != outputText {
		return printJSON(w.f.Out, d, false)
	}
	st := w.f.outStyle()
	kind := d.Type
	paint := st.dim
	if d.Event != nil {
		kind, paint = d.Event.Kind, st.note
		switch journal.Kind(kind) {
		case journal.Abort, journal.UpgradeRollback:
			paint = st.warn
		case journal.UpgradeCommit:
			paint = st.good
		}
	}
	_, err := fmt.Fprintf(w.f.Out, "%s  %s  %s\n", st.dim.Render(d.At.Local().Format("15:04:05.000")), paint.Render(fmt.Sprintf("%-16s", kind)), d.Text)
	return err
}
