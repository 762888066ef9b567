package cmd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"github.com/zdt-dev/zdt/dbusctl"
	"github.com/zdt-dev/zdt/handoff/control"
	"github.com/zdt-dev/zdt/journal"
	"github.com/zdt-dev/zdt/unitgen"
	"github.com/zdt-dev/zdt/upgrade"
)

// host connects package upgrade to the real systemd, runtime and journal. It
// has no state of its own beyond its connections.
type host struct {
	f       *factory
	mu      sync.Mutex
	sd      systemd // use bus: the bus may be restarted in the middle of an upgrade
	paths   Paths
	service string
	unit    string
	events  *journal.Writer
}

// openHost connects to systemd. The caller closes the host.
func (f *factory) openHost(ctx context.Context, service string) (*host, error) {
	paths, err := f.paths()
	if err != nil {
		return nil, err
	}
	sd, err := f.dialSystemd(ctx, f.globals.user)
	if err != nil {
		return nil, err
	}
	return &host{f: f, sd: sd, paths: paths, service: service, unit: service + ".service", events: journal.NewWriter("")}, nil
}

func (h *host) close() {
	h.events.Close()
	h.mu.Lock()
	defer h.mu.Unlock()
	h.sd.Close()
}

// bus is the connection to systemd, made anew when the bus has dropped it:
// what a verdict needs to know then is still there to be asked.
func (h *host) bus(ctx context.Context) (systemd, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if c, ok := h.sd.(interface{ Err() error }); !ok || c.Err() == nil {
		return h.sd, nil
	}
	sd, err := h.f.dialSystemd(ctx, h.f.globals.user)
	if err != nil {
		return nil, err
	}
	h.sd.Close()
	h.sd = sd
	return sd, nil
}

// ask is what systemd knows of the unit.
func (h *host) ask(ctx context.Context) (dbusctl.Unit, error) {
	sd, err := h.bus(ctx)
	if err != nil {
		return dbusctl.Unit{}, err
	}
	return sd.Unit(ctx, h.unit)
}

// policy reads [X-Zdt] of the unit and its drop-ins as they are on disk.
func (h *host) policy(u dbusctl.Unit) (unitgen.Policy, error) {
	var files []unitgen.File
	for _, path := range append([]string{u.FragmentPath}, u.DropInPaths...) {
		if path == "" {
			continue
		}
		data, err := os.ReadFile(path)
		if errors.Is(err, os.ErrNotExist) {
			continue // removed since systemd read it; NeedDaemonReload tells
		}
		if err != nil {
			return unitgen.Policy{}, err
		}
		files = append(files, unitgen.File{Name: filepath.Base(path), Path: path, Data: data})
	}
	return unitgen.InstancePolicy(h.service, files...)
}

// source is the unit's part of the journal.
func (h *host) source() journal.Source {
	return journal.Source{Unit: h.unit, User: h.f.globals.user, UID: h.f.euid}
}

// seams are the functions that package upgrade calls.
func (h *host) seams() upgrade.Host {
	source := h.source()
	return upgrade.Host{
		Unit: func(ctx context.Context) (upgrade.Unit, error) {
			u, err := h.ask(ctx)
			return unitOf(u), err
		},
		WatchUnit: h.watchUnit,
		Signal: func(ctx context.Context, sig syscall.Signal) error {
			sd, err := h.bus(ctx)
			if err != nil {
				return err
			}
			return sd.Signal(ctx, h.unit, sig)
		},
		Reload: func(ctx context.Context) error {
			sd, err := h.bus(ctx)
			if err != nil {
				return err
			}
			return sd.Reload(ctx, h.unit)
		},
		Restart: func(ctx context.Context) error {
			sd, err := h.bus(ctx)
			if err != nil {
				return err
			}
			// A unit that has failed too often is not started any more until that is forgotten.
			if err := sd.ResetFailed(ctx, h.unit); err != nil {
				return err
			}
			return sd.Restart(ctx, h.unit)
		},
		Stop: func(ctx context.Context) error {
			sd, err := h.bus(ctx)
			if err != nil {
				return err
			}
			return sd.Stop(ctx, h.unit)
		},
		Control: h.control,
		Reclaim: h.reclaim,
		Tidy:    h.tidy,
		Exe:     func(pid int) (string, error) { return os.Readlink(procPath(pid, "exe")) },
		InUnit:  inUnit,
		Cursor: func(ctx context.Context) (string, error) {
			return journal.Cursor(ctx, journal.Query{Source: source})
		},
		Follow: func(ctx context.Context, cursor string) *journal.Follower {
			return journal.Follow(ctx, journal.Query{Source: source, AfterCursor: cursor, EventsOnly: true})
		},
		Decode: func(e journal.Entry, helper int) (journal.Event, bool) {
			source := source
			source.Helper = helper
			return journal.Decode(e, source)
		},
		Tail: func(ctx context.Context, pid int, since string, lines int) ([]string, error) {
			got, err := journal.Tail(ctx, journal.Query{Source: source, PID: pid, AfterCursor: since, Lines: lines})
			var out []string
			for _, l := range got {
				out = append(out, l.Text)
			}
			return out, err
		},
		Write: func(e journal.Event) { h.events.Write(e) }, // the journal is the story, not the verdict
		Now:   h.f.now,
	}
}

func (h *host) watchUnit(ctx context.Context) (<-chan upgrade.Unit, error) {
	sd, err := h.bus(ctx)
	if err != nil {
		return nil, err
	}
	units, err := sd.Watch(ctx, h.unit)
	if err != nil {
		return nil, err
	}
	out := make(chan upgrade.Unit)
	go func() { // ends with units, which ends with ctx
		defer close(out)
		for u := range units {
			select {
			case out <- unitOf(u):
			case <-ctx.Done():
				return
			}
		}
	}()
	return out, nil
}

// control connects to the runtime and proves that it is the service's: the
// directory belongs to the service's user, who could put any socket there.
func (h *host) control(ctx context.Context) (*control.Client, error) {
	u, err := h.ask(ctx)
	if err != nil {
		return nil, err
	}
	c, err := h.f.dialControl(ctx, h.paths.Control(h.service))
	if err != nil {
		return nil, err
	}
	if peer := c.Peer(); peer.UID != 0 && peer.UID != serviceUID(u, h.f) {
		c.Close()
		return nil, fmt.Errorf("control socket %s belongs to uid %d, the service runs as uid %d", h.paths.Control(h.service), peer.UID, serviceUID(u, h.f))
	}
	return c, nil
}

// serviceUID is the uid that the processes of u have.
func serviceUID(u dbusctl.Unit, f *factory) uint32 {
	switch {
	case u.UID != dbusctl.NoUID:
		return u.UID
	case f.globals.user:
		return uint32(f.euid)
	}
	return 0
}

// reclaim opens NotifyAccess= for a moment. systemd believes a dead process
// to be the main one and, before version 254, listens to no other; a drop-in
// with a daemon-reload is the one way in that needs no restart. It lies below /run and
// is removed again; tidy removes one that a killed zdt left.
func (h *host) reclaim(ctx context.Context, ask func(context.Context) error) error {
	sd, err := h.bus(ctx)
	if err != nil {
		return err
	}
	path := h.reclaimPath()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(path, []byte("# Written by zdt for a moment; see docs/protocol.md, \"The successor dies\".\n[Service]\nNotifyAccess=all\n"), 0o644); err != nil {
		return err
	}
	err = sd.DaemonReload(ctx)
	if err == nil {
		err = ask(ctx)
	}
	return errors.Join(err, h.tidy(context.WithoutCancel(ctx)))
}

func (h *host) reclaimPath() string {
	dir := "/run/systemd/system"
	if h.f.globals.user {
		dir = filepath.Join(filepath.Dir(h.paths.Runtime), "systemd/user")
	}
	return filepath.Join(dir, h.unit+".d", "50-zdt-reclaim.conf")
}

// tidy closes what reclaim opened.
func (h *host) tidy(ctx context.Context) error {
	path := h.reclaimPath()
	if err := os.Remove(path); err != nil {
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		return err
	}
	os.Remove(filepath.Dir(path)) // unless somebody else has a drop-in there
	sd, err := h.bus(ctx)
	if err != nil {
		return err
	}
	return sd.DaemonReload(ctx)
}

// inUnit reports whether pid is in u's control group or below it.
func inUnit(pid int, u upgrade.Unit) (bool, error) {
	data, err := os.ReadFile(procPath(pid, "cgroup"))
	if err != nil {
		return false, err
	}
	for line := range strings.Lines(string(data)) {
		// hierarchy-ID:controllers:path; systemd's own is the unified one, "0::",
		// or on old hosts the one called name=systemd.
		parts := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(parts) != 3 || parts[0] != "0" && parts[1] != "name=systemd" {
			continue
		}
		if u.ControlGroup != "" && (parts[2] == u.ControlGroup || strings.HasPrefix(parts[2], u.ControlGroup+"/")) {
			return true, nil
		}
	}
	return false, nil
}

func procPath(pid int, name string) string {
	return filepath.Join("/proc", strconv.Itoa(pid), name)
}

func unitOf(u dbusctl.Unit) upgrade.Unit {
	return upgrade.Unit{
		Name: u.Name, LoadState: u.LoadState, ActiveState: u.ActiveState, SubState: u.SubState, Result: u.Result,
		Type: u.Type, NotifyAccess: u.NotifyAccess, StatusText: u.StatusText, MainPID: int(u.MainPID), UID: u.UID,
		ControlGroup: u.ControlGroup, Program: unitgen.Program(u.ExecStartPath, u.ExecStart), ExecStart: execStart(u), ExecReload: u.ExecReload, Job: u.Job != 0,
		Stopped: u.Stopped && !slices.Contains([]string{"watchdog", "timeout", "oom-kill"}, u.Result), // those are limits that it met
		Socket:  slices.ContainsFunc(u.TriggeredBy, func(name string) bool { return strings.HasSuffix(name, ".socket") }),
		Runtime: slices.ContainsFunc(u.RuntimeDirectory, func(name string) bool { return strings.HasPrefix(name, "zdt/") }),
	}
}
