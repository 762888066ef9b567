package cmd

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/zdt-dev/zdt/dbusctl"
	"github.com/zdt-dev/zdt/internal/fdstore"
	"github.com/zdt-dev/zdt/internal/netfd"
	"github.com/zdt-dev/zdt/unitgen"
)

// storeSockets is how many sockets systemd is to keep for a service at most. It makes no use of the number but to compare.
const storeSockets = 64

// noName is what systemd calls a socket that it has no name for (sd_listen_fds_with_names(3)).
const noName = "unknown"

// findSockets finds out which sockets the service has beside those of its socket units: what --listen says, else what its processes
// listen on now.
func (p *adoptPlan) findSockets(o adoptOptions) error {
	var held []fdstore.Held
	if p.active() && p.u.ControlGroup != "" {
		var err error
		if held, err = fdstore.Find(processesIn(p.u.ControlGroup), belongsTo(p.u.ControlGroup)); err != nil {
			p.note("sockets", "say them with --listen", "the sockets of %s cannot be seen: %v", p.unit, err)
		}
	}
	own := slices.DeleteFunc(held, p.systemds)
	given := o.Listen
	if len(given) == 0 { // systemd may have them now
		given = p.record.Listen
	}
	for _, text := range given {
		l, err := unitgen.ParseListen(text)
		if err != nil {
			return err
		}
		p.adoption.Bind = append(p.adoption.Bind, l)
	}
	if len(given) == 0 && p.record.Program == "" {
		p.adoption.Bind = p.bindings(own)
	}
	if len(p.adoption.Bind) > 0 {
		p.adoption.Store = storeSockets
	}
	if p.active() && !p.switched {
		p.served = own
		p.findGap(own)
	}
	return nil
}

// awaitServed waits until the old program listens again where it did. That systemd has started it says little of a program that does
// not tell when it is ready.
func (p *adoptPlan) awaitServed(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, serveAgain)
	defer cancel()
	for tick := time.NewTicker(20 * time.Millisecond); ; {
		held, err := fdstore.Find(processesIn(p.u.ControlGroup), belongsTo(p.u.ControlGroup))
		missing := slices.DeleteFunc(slices.Clone(p.served), func(h fdstore.Held) bool {
			return slices.ContainsFunc(held, func(now fdstore.Held) bool { return now.Network == h.Network && now.Address == h.Address })
		})
		if err == nil && len(missing) == 0 {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			tick.Stop()
			if err == nil {
				err = fmt.Errorf("nobody listens on %s %s", missing[0].Network, missing[0].Address)
			}
			return fmt.Errorf("%s was started again, and within %s %w", p.unit, serveAgain, err)
		}
	}
}

// serveAgain is how long a program may take that was started again.
const serveAgain = 30 * time.Second

// systemds reports whether a socket is one of the socket units, which keep it whatever the service does.
func (p *adoptPlan) systemds(h fdstore.Held) bool {
	return slices.ContainsFunc(p.sockets, func(u dbusctl.Unit) bool {
		return slices.ContainsFunc(u.Listen, func(l dbusctl.Listen) bool { return netfd.SameAddress(h.Address, l.Address) })
	})
}

// bindings name sockets of TCP, as nobody else has: after the service, and if there are several after their
// ports.
func (p *adoptPlan) bindings(held []fdstore.Held) (all []unitgen.Listen) {
	held = slices.DeleteFunc(slices.Clone(held), func(h fdstore.Held) bool { return h.Network != "tcp" })
	for _, h := range held {
		l := unitgen.Listen{Proto: "tcp", Addr: h.Address, FDName: p.name}
		if _, port, err := net.SplitHostPort(h.Address); err == nil && len(held) > 1 {
			l.FDName += "-" + port
		}
		for slices.ContainsFunc(all, func(other unitgen.Listen) bool { return other.FDName == l.FDName }) {
			l.FDName += "x" // one port at several addresses
		}
		all = append(all, l)
	}
	return all
}

// findGap says what the restart costs clients, and what is taken so that it costs nothing.
func (p *adoptPlan) findGap(own []fdstore.Held) {
	if len(own) == 0 {
		if len(p.sockets) > 0 {
			p.gap = "clients wait in the queues of the sockets from the end of the old program until the new one is ready"
		}
		return
	}
	var lost []string
	for _, h := range own {
		i := p.bindingOf(h)
		switch {
		case i < 0 || strings.HasPrefix(h.Network, "unix"):
			lost = append(lost, h.Network+" "+h.Address)
		case h.Several:
			lost = append(lost, h.Network+" "+h.Address+" (several sockets, SO_REUSEPORT)")
		default:
			p.holds = append(p.holds, fdstore.Wish{Name: cmp.Or(p.adoption.Bind[i].FDName, noName), Network: h.Network, Address: h.Address})
		}
	}
	p.gap = "clients wait from the end of the old program until the new one is ready; systemd keeps the sockets meanwhile"
	if len(lost) > 0 {
		p.gap = "clients of " + strings.Join(lost, ", ") + " are refused from the end of the old program until the new one listens"
	}
}

// bindingOf is the index of what a socket is in Bind; -1: nothing. The very address goes before one that means the same: 0.0.0.0
// and [::] may be two sockets of one program.
func (p *adoptPlan) bindingOf(h fdstore.Held) int {
	for _, same := range []func(a, b string) bool{func(a, b string) bool { return a == b }, netfd.SameAddress} {
		i := slices.IndexFunc(p.adoption.Bind, func(l unitgen.Listen) bool { return netfd.SameKind(h.Network, l.Proto) && same(h.Address, l.Addr) })
		if i >= 0 {
			return i
		}
	}
	return -1
}

// socketFiles are drop-ins for the socket units that need one: what they would lose clients by.
func (p *adoptPlan) socketFiles() (files []unitgen.File) {
	for _, u := range p.sockets {
		if slices.Contains(p.record.paths(), u.FragmentPath) {
			continue // zdt adopt wrote all of it
		}
		name := unitgen.File{Name: u.Name + ".d/" + unitgen.AdoptFile, Path: p.dropIn(u.Name), Mode: 0o644}
		name.Data = fmt.Appendf(nil, `# Written by "zdt adopt %s", and removed by "zdt adopt --undo %s".
[Socket]
# Nobody is thrown away who waits while the service restarts, and a crash loop does not close the port.
FlushPending=no
TriggerLimitIntervalSec=0
`, p.name, p.name)
		files = append(files, name)
	}
	return files
}

// newSockets are socket units for what the program has bound itself. They are opened by the next boot: as long as somebody
// listens there systemd cannot.
func (p *adoptPlan) newSockets(ctx context.Context, wanted bool) ([]unitgen.File, error) {
	if files, err := p.ownSockets(); err != nil || len(files) > 0 || !wanted {
		return files, err // those of an earlier adoption stay as they are
	}
	if len(p.sockets) > 0 {
		return nil, fail(ExitRefused, "leave --socket out", "%s has a socket unit: %s", p.unit, p.sockets[0].Name)
	}
	if len(p.adoption.Bind) == 0 {
		return nil, fail(ExitRefused, "say them with --listen", "adopt --socket: no socket of %s is known", p.unit)
	}
	spec := unitgen.Spec{
		Name: p.name, Exec: "program", Zdt: p.adoption.Zdt, StateDir: p.paths.StateDir(p.name), UnitDir: p.paths.Units,
		Description: p.u.Description, Listen: p.adoption.Bind,
	}
	files, err := unitgen.Generate(spec)
	if err != nil {
		return nil, fail(ExitRefused, hintOf(err), "socket unit: %w", err)
	}
	files = slices.DeleteFunc(files, func(f unitgen.File) bool { return f.Name == p.unit })
	for _, f := range files {
		if u, err := p.bus.Unit(ctx, f.Name); err == nil {
			return nil, fail(ExitRefused, "leave --socket out", "%s is there already: %s", f.Name, u.FragmentPath)
		}
	}
	return files, nil
}

// ownSockets are the socket units that an earlier adoption has written.
func (p *adoptPlan) ownSockets() (files []unitgen.File, err error) {
	for _, path := range p.record.paths() {
		if filepath.Dir(path) != p.paths.Units || filepath.Ext(path) != ".socket" {
			continue
		}
		data, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue // the adoption was cut off before
		}
		if err != nil {
			return nil, err
		}
		files = append(files, unitgen.File{Name: filepath.Base(path), Path: path, Mode: 0o644, Data: data})
	}
	return files, nil
}
