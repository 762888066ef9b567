package dbusctl

import (
	"context"
	"reflect"
	"time"

	"github.com/godbus/dbus/v5"
)

// watch follows one unit. Its goroutine owns the reading; the dispatcher only
// ever pokes look.
type watch struct {
	name  string          // primary name
	path  dbus.ObjectPath // of the primary name, which signals carry
	look  chan struct{}   // room for one
	rules [][]dbus.MatchOption
}

// readAgain is how soon a watch tries again after a read that failed for no
// reason it understands.
const readAgain = time.Second

// Watch delivers the unit's state now, and again after every change of it.
// Only the latest state is kept for a slow receiver, so short-lived states may
// be skipped, but the last one is always delivered. A unit that disappears is
// delivered as not-found, and the watch goes on.
//
// The channel is closed when ctx ends, and when the connection does: ctx.Err()
// and m.Err() tell which.
func (m *Manager) Watch(ctx context.Context, name string) (<-chan Unit, error) {
	first, err := m.Unit(ctx, name)
	if err != nil {
		return nil, err
	}
	w := &watch{name: first.Name, path: unitPath(first.Name), look: make(chan struct{}, 1)}
	w.rules = watchRules(w.name, w.path)

	m.mu.Lock()
	if m.closed {
		m.mu.Unlock()
		return nil, m.lost("watch", name)
	}
	m.running.Add(1)
	m.mu.Unlock()

	m.sig.addWatch(w)
	if err := m.match(ctx, w); err != nil {
		m.unwatch(w)
		return nil, explain(ctx, "watch", name, err)
	}
	poke(w.look) // what changed since the first read
	states := make(chan Unit)
	go m.follow(ctx, w, first, states)
	return states, nil
}

// watchRules has the bus send what concerns this unit, of which systemd itself
// sends every subscriber everything. There is no filter for the interface in
// the first rule: Unit and Service (MainPID, StatusText) both matter.
func watchRules(name string, path dbus.ObjectPath) [][]dbus.MatchOption {
	return [][]dbus.MatchOption{
		{dbus.WithMatchSender(destination), dbus.WithMatchObjectPath(path),
			dbus.WithMatchInterface(propsIface), dbus.WithMatchMember("PropertiesChanged")},
		managerRule("UnitNew", dbus.WithMatchArg(0, name)),
		managerRule("UnitRemoved", dbus.WithMatchArg(0, name)),
		managerRule("Reloading"),
	}
}

func (m *Manager) match(ctx context.Context, w *watch) error {
	if m.direct {
		return nil
	}
	for _, rule := range w.rules {
		if err := m.conn.AddMatchSignalContext(ctx, rule...); err != nil {
			return err
		}
	}
	return nil
}

// unwatch ends the bookkeeping of w. The bus counts equal rules, so those of
// another watch of the same unit stay. Rules that were never added, or a bus
// that is gone, give errors that mean nothing to anyone.
func (m *Manager) unwatch(w *watch) {
	defer m.running.Done()
	m.sig.removeWatch(w)
	if m.direct {
		return
	}
	ctx, cancel := context.WithTimeout(m.life, time.Second)
	defer cancel()
	for _, rule := range w.rules {
		_ = m.conn.RemoveMatchSignalContext(ctx, rule...)
	}
}

// follow is the goroutine of a watch.
func (m *Manager) follow(ctx context.Context, w *watch, latest Unit, states chan<- Unit) {
	defer m.unwatch(w)
	defer close(states)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(m.life, cancel)() // Close ends a read that hangs

	out := states // nil while there is nothing new
	var again <-chan time.Time
	for {
		select {
		case out <- latest:
			out = nil
			continue
		case <-ctx.Done():
			return
		case <-m.Done():
			return
		case <-w.look:
		case <-again:
		}
		again = nil
		u, err := m.read(ctx, "watch", w.name)
		switch {
		case err != nil:
			again = time.After(readAgain)
		case !reflect.DeepEqual(u, latest):
			latest, out = u, states
		}
	}
}
