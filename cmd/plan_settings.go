package cmd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/zdt-dev/zdt/dbusctl"
	"github.com/zdt-dev/zdt/internal/hooks"
	"github.com/zdt-dev/zdt/release"
	"github.com/zdt-dev/zdt/unitgen"
	"github.com/zdt-dev/zdt/upgrade"
)

// planSettings is what changed in the unit since the service was started.
type planSettings struct {
	// Known says how that is known: "snapshot" of the text at the start, or only by "times": then Files has what was changed
	// since, and not what in it.
	Known string    `json:"known"`
	Since time.Time `json:"since,omitzero"` // the start
	// DaemonReload: systemd has not read all of it yet.
	DaemonReload bool           `json:"daemon_reload"`
	Changes      []planSetting  `json:"changes,omitempty"`
	Files        []planUnitFile `json:"files,omitempty"`

	takes unitgen.Takes // how much a handoff takes over
}

// planSetting is a setting that changed, and when it comes into force.
type planSetting struct {
	unitgen.SettingChange
	Read    bool   `json:"read"`     // systemd has read it
	InForce bool   `json:"in_force"` // already
	Applied bool   `json:"applied"`  // in force, or will be with what is planned
	When    string `json:"when"`
}

// planUnitFile is a file that changed, nobody knows how.
type planUnitFile struct {
	Path    string    `json:"path"`
	Changed time.Time `json:"changed"`
	Read    bool      `json:"read"`
}

// settings compares the units with those that the service was started with. A restart takes everything over, a
// handoff little.
func (s *site) settings(ctx context.Context, p upgrade.Plan) (*planSettings, error) {
	units, load, err := s.unitsNow(ctx)
	if err != nil {
		return nil, err
	}
	u := units[0].unit
	if u.MainPID == 0 {
		return nil, nil // the start takes over all there is
	}
	out := &planSettings{Since: u.ActiveEnter, takes: unitgen.Takes{Unit: p.Runtime == "helper" && slices.Contains(u.ExecReload, "handoff")}}
	for _, d := range units {
		out.DaemonReload = out.DaemonReload || !d.current(load)
	}
	snap, err := s.store.Snapshot()
	if err == nil && snap.Invocation != u.InvocationID {
		err = release.ErrNoSnapshot
	}
	if err != nil {
		if now, _, ok := snapshotOf(units, load); ok { // nothing has changed, and that is known without one
			snap, err = now, nil
		}
	}
	if err != nil {
		out.byTime(units, load)
		return out, nil
	}
	out.Known = "snapshot"
	g := generation{load: load, units: units}
	if p.Runtime == "helper" {
		g.started = processStart(p.Incumbent)
	}
	for _, c := range unitgen.Changes(snapshotTexts(snap), textsOf(units), out.takes) {
		out.add(c, g.read(c), g.has(c), p.Strategy)
	}
	for _, path := range environmentFiles(units[0]) {
		if envChanged(snap, path, startedAfter(u)) {
			c := unitgen.EnvironmentFileChange(u.Name, path, out.takes)
			out.add(c, true, g.has(c), p.Strategy)
		}
	}
	return out, nil
}

// add notes a change. has: the generation that serves was started with it.
func (out *planSettings) add(c unitgen.SettingChange, read, has bool, strategy upgrade.PlanStrategy) {
	s := planSetting{SettingChange: c, Read: read, When: c.InForce(read)}
	switch {
	case c.Remedy == unitgen.RemedyZdt, c.Remedy == unitgen.RemedyReload && read, c.Remedy == unitgen.RemedyHandoff && has:
		s.InForce, s.When = true, "in force"
	case strategy != upgrade.PlanHandoff && read && (c.Remedy == unitgen.RemedyRestart || c.Remedy == unitgen.RemedyHandoff):
		s.When = "with this restart"
	}
	s.Applied = s.InForce || strings.HasPrefix(s.When, "with this")
	out.Changes = append(out.Changes, s)
}

// byTime is what can be said without a snapshot.
func (out *planSettings) byTime(units []diskUnit, load dbusctl.Load) {
	out.Known = "times"
	started := startedAfter(units[0].unit)
	for _, d := range units {
		for _, f := range d.files {
			if !before(f.changed, started) {
				out.Files = append(out.Files, planUnitFile{f.path, f.changed, d.read(f.path, load)})
			}
		}
	}
	for _, path := range environmentFiles(units[0]) {
		if t, err := changedAt(path); err == nil && !before(t, started) {
			out.Files = append(out.Files, planUnitFile{path, t, true})
		}
	}
}

// generation is the program that serves, as far as it matters which settings it has.
type generation struct {
	started time.Time // its start under a helper; zero: that is the service's
	load    dbusctl.Load
	units   []diskUnit
}

func (g generation) unit(name string) (diskUnit, bool) {
	for _, d := range g.units {
		if d.unit.Name == name {
			return d, true
		}
	}
	return diskUnit{}, false
}

// read reports whether systemd has read the file that says so.
func (g generation) read(c unitgen.SettingChange) bool {
	d, ok := g.unit(c.Unit)
	return ok && d.read(c.Path, g.load)
}

// has reports whether the program was started when systemd had read the change: a handoff before has taken it over.
//
// Both times are systemd's and the kernel's own, to the tick.
func (g generation) has(c unitgen.SettingChange) bool {
	if g.started.IsZero() || c.Remedy != unitgen.RemedyHandoff {
		return false
	}
	if c.Contents {
		t, err := changedAt(c.Path)
		return err == nil && before(t, g.started)
	}
	return g.read(c) && !g.load.At.IsZero() && g.load.At.Before(g.started)
}

func snapshotTexts(snap release.Snapshot) []unitgen.UnitText {
	var out []unitgen.UnitText
	for _, u := range snap.Units {
		t := unitgen.UnitText{Unit: u.Unit}
		for _, f := range u.Files {
			t.Files = append(t.Files, unitgen.File{Path: f.Path, Data: []byte(f.Text)})
		}
		out = append(out, t)
	}
	return out
}

// envChanged reports whether a file of EnvironmentFile= is not what it was at the start.
func envChanged(snap release.Snapshot, path string, started time.Time) bool {
	for _, f := range snap.EnvironmentFiles {
		if f.Path == path {
			sum, _, err := sumFile(path)
			return err == nil && sum != f.SHA256 || errors.Is(err, os.ErrNotExist)
		}
	}
	t, err := changedAt(path)
	return err == nil && !before(t, started)
}

// world is what a plan depends on besides what package upgrade looks at.
func (s *site) world(ctx context.Context) (upgrade.World, error) {
	units, load, err := s.unitsNow(ctx)
	if err != nil {
		return upgrade.World{}, err
	}
	u := units[0].unit
	policy, err := s.host.policy(u)
	if err != nil {
		return upgrade.World{}, err
	}
	policy.Warnings = nil
	w := upgrade.World{Invocation: u.InvocationID, Policy: fmt.Sprintf("%+v", policy)}
	if u.TimeoutStop != dbusctl.Infinity {
		w.StopTimeout = u.TimeoutStop
	}
	var systemd strings.Builder
	for _, d := range units {
		fmt.Fprintf(&systemd, "%s %q %q %q %q %s %s %d\n", d.unit.Name, d.unit.FragmentPath, d.unit.DropInPaths, d.unit.ExecStart, d.unit.ExecReload, d.unit.Type, d.unit.NotifyAccess, d.unit.TimeoutStop)
		for _, f := range d.files {
			// Of each file, not of all: a daemon-reload for another service changes nothing here.
			fmt.Fprintf(&systemd, "%q %t\n", f.path, d.read(f.path, load))
			w.Files = append(w.Files, upgrade.WorldFile{Path: f.path, Sum: string(f.data)})
		}
	}
	w.Systemd = systemd.String()
	for _, path := range environmentFiles(units[0]) {
		if slices.ContainsFunc(w.Files, func(f upgrade.WorldFile) bool { return f.Path == path }) {
			continue
		}
		w.Files = append(w.Files, upgrade.WorldFile{Path: path, Sum: fileState(path)})
	}
	set, err := hooks.Find(hooks.Root(s.f.globals.user), s.service)
	if err != nil {
		return upgrade.World{}, err
	}
	for _, all := range set {
		for _, h := range all {
			w.Files = append(w.Files, upgrade.WorldFile{Path: h.Path, Sum: fileState(h.Path)})
		}
	}
	return w, nil
}

// fileState tells one state of a file from another, and not by its content: a plan-id is shown to everybody, and a short secret can be
// guessed from a sum.
func fileState(path string) string {
	info, err := os.Stat(path)
	if err != nil {
		return "none"
	}
	return fmt.Sprintf("%d %d", info.Size(), info.ModTime().UnixNano())
}

// sight is what plans see.
func (s *site) sight(o upgradeOptions) *upgrade.Sight {
	var gates []string
	if !o.SkipGates && o.Kind != release.KindRollback {
		gates = slices.Concat(s.policy.Health, s.policy.Gates, o.Gates)
	}
	return &upgrade.Sight{Peek: s.store.Peek, World: s.world, Footprint: s.footprint, Gates: gates}
}
