package dbusctl

import (
	"sync"

	"github.com/godbus/dbus/v5"
)

// dispatcher receives every signal of the connection, on the goroutine that
// reads it and in order. It must therefore never block: it takes a short lock
// and leaves notes in channels that have room.
type dispatcher struct {
	direct bool

	mu      sync.Mutex
	owner   string        // unique name of systemd on the bus, "" while it is away
	seen    bool          // a NameOwnerChanged has been processed
	changed chan struct{} // closed and replaced when owner changes
	isBack  chan struct{} // room for one: systemd appeared under a new name
	jobs    map[*jobWait]struct{}
	watches map[*watch]struct{}
}

func newDispatcher(direct bool) *dispatcher {
	return &dispatcher{
		direct:  direct,
		changed: make(chan struct{}),
		isBack:  make(chan struct{}, 1),
		jobs:    make(map[*jobWait]struct{}),
		watches: make(map[*watch]struct{}),
	}
}

// DeliverSignal is called by the D-Bus library.
func (d *dispatcher) DeliverSignal(iface, member string, s *dbus.Signal) {
	d.mu.Lock()
	defer d.mu.Unlock()
	// The daemon stamps the sender, and nobody else can own the bus' name.
	if s.Sender == busIface && iface == busIface && member == "NameOwnerChanged" {
		if len(s.Body) == 3 && s.Body[0] == destination {
			owner, _ := s.Body[2].(string)
			d.setOwner(owner)
		}
		return
	}
	if !d.direct && (s.Sender != d.owner || d.owner == "") {
		return // forged
	}
	switch {
	case iface == managerIface && member == "JobRemoved" && len(s.Body) == 4:
		path, _ := s.Body[1].(dbus.ObjectPath)
		result, _ := s.Body[3].(string)
		for j := range d.jobs {
			j.removed(path, result)
		}
	case iface == managerIface && member == "Reloading":
		// Both ends of a daemon-reload: settings change without a
		// PropertiesChanged.
		for w := range d.watches {
			poke(w.look)
		}
	case iface == managerIface && (member == "UnitNew" || member == "UnitRemoved") && len(s.Body) == 2:
		// systemd unloads an idle unit and announces it anew when it is
		// needed; what changed at that moment comes in no other signal.
		path, _ := s.Body[1].(dbus.ObjectPath)
		d.pokePath(path)
	case iface == propsIface && member == "PropertiesChanged":
		d.pokePath(s.Path)
	}
}

func (d *dispatcher) pokePath(path dbus.ObjectPath) {
	for w := range d.watches {
		if w.path == path {
			poke(w.look)
		}
	}
}

func (d *dispatcher) setOwner(owner string) {
	d.seen = true
	d.owner = owner
	close(d.changed)
	d.changed = make(chan struct{})
	if owner != "" {
		poke(d.isBack)
	}
}

// setFirstOwner records the answer of GetNameOwner, unless a signal overtook it.
func (d *dispatcher) setFirstOwner(owner string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.seen {
		d.owner = owner
	}
}

func (d *dispatcher) ownerChanged() <-chan struct{} {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.changed
}

func (d *dispatcher) back() <-chan struct{} { return d.isBack }

// pokeAll makes every watch and every waiting job look at the present state.
func (d *dispatcher) pokeAll() {
	d.mu.Lock()
	defer d.mu.Unlock()
	for w := range d.watches {
		poke(w.look)
	}
	for j := range d.jobs {
		poke(j.look)
	}
}

func (d *dispatcher) addWatch(w *watch) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.watches[w] = struct{}{}
}

func (d *dispatcher) removeWatch(w *watch) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.watches, w)
}

// jobWait waits for the end of one job.
type jobWait struct {
	path   dbus.ObjectPath            // "" until systemd has answered the request
	early  map[dbus.ObjectPath]string // results that came before the answer
	result chan string                // room for one
	look   chan struct{}              // room for one: see whether the job still exists
}

func (d *dispatcher) addJob() *jobWait {
	j := &jobWait{early: make(map[dbus.ObjectPath]string), result: make(chan string, 1), look: make(chan struct{}, 1)}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.jobs[j] = struct{}{}
	return j
}

func (d *dispatcher) removeJob(j *jobWait) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.jobs, j)
}

// nameJob tells j the path that systemd has answered with.
func (d *dispatcher) nameJob(j *jobWait, path dbus.ObjectPath) {
	d.mu.Lock()
	defer d.mu.Unlock()
	j.path = path
	if result, ok := j.early[path]; ok {
		j.removed(path, result)
	}
	j.early = nil
}

// removed notes the end of a job; the dispatcher's lock is held.
func (j *jobWait) removed(path dbus.ObjectPath, result string) {
	switch j.path {
	case "":
		j.early[path] = result
	case path:
		select {
		case j.result <- result:
		default:
		}
	}
}

func poke(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}
