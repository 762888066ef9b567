package handoffcheck

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/zdt-dev/zdt/handoff/control"
)

// Live is what is known of the process that serves, beside what its runtime says.
type Live struct {
	// Silent is why no runtime answers at the control socket; "" where one does, and where that is not known.
	Silent string
	// Damage is why the current release, which systemd would start, cannot be started.
	Damage string
	// Starts is the program that systemd starts, Current that of the current release by the link to it; "" where there is none.
	Starts, Current string
	// LongestQueue is how many connections the kernel lets wait in any socket (net.core.somaxconn).
	LongestQueue uint32
	// Elsewhere is the process in which one answers that is not the main process.
	Elsewhere int
	// Listeners are the sockets that the runtime has, as the kernel knows them.
	Listeners []Listener
}

// Listener is one listening or datagram socket of a process.
type Listener struct {
	Network, Address string // as control.Socket has them
	// Held: systemd has it, too, and Loose: it has not. Neither is true where nobody may look.
	Held, Loose bool
	// Blocking: it is without O_NONBLOCK, for all processes that have it.
	Blocking bool
	// Queue is how many connections may wait in it (TCP); 0: not known.
	Queue uint32
	// Rivals are how many other sockets with the same address the kernel gives a share of the connections (SO_REUSEPORT).
	Rivals int
}

// at is the socket with that address.
func (l Live) at(network, address string) Listener {
	i := slices.IndexFunc(l.Listeners, func(l Listener) bool { return l.Network == network && l.Address == address })
	if i < 0 {
		return Listener{}
	}
	return l.Listeners[i]
}

// runtimeChecks are about the process that serves, and whether anybody can ask it for a handoff.
func runtimeChecks() []Check {
	return []Check{
		{
			ID: "ZDT033", Severity: Blocker, handoff: true, Family: FamilyRuntime, Title: "nobody takes the request for a handoff",
			Why: "an upgrade asks the runtime in the main process, at its control socket, and none answers there",
			More: `A program has a runtime when it uses the handoff library, and under ` + "`zdt run`" + ` every program has. The control socket is
in the directory that the unit has for it, ` + "`RuntimeDirectory=zdt/NAME`" + `, and ` + "`zdt`" + ` looks nowhere else.

After a change of the unit the service has to be restarted once.`,
			look: func(f Facts) []sight {
				if f.Live.Silent == "" {
					return nil
				}
				if dirs := f.Service.Texts("RuntimeDirectory"); f.Service.Has("RuntimeDirectory") && !slices.Contains(dirs, f.runtimeDirectory()) {
					return f.service(fmt.Sprintf("RuntimeDirectory=%s, and %s", strings.Join(dirs, " "), f.Live.Silent), "RuntimeDirectory="+f.runtimeDirectory())
				}
				if slices.ContainsFunc(f.Service.Commands("ExecStart"), isZdt("run")) {
					return []sight{{seen: f.Live.Silent, fix: "the unit says zdt run, and what runs was started before it did: systemctl restart " + f.Service.Name +
						", or zdt adopt " + f.name() + " --restart if that is where zdt run comes from"}}
				}
				if f.Live.Elsewhere != 0 {
					return []sight{{seen: f.Live.Silent, fix: "let the script that is the main process start the program with exec, then the program is it: systemctl stop " + f.Service.Name + "; zdt upgrade " + f.name() + " --binary FILE"}}
				}
				return []sight{{seen: f.Live.Silent, fix: "have zdt run start it (the zdt init of " + f.name() + " once more, with --runtime helper), or build it with the handoff library; then: systemctl restart " + f.Service.Name}}
			},
		},
		{
			ID: "ZDT034", Severity: Note, unmanaged: true, Family: FamilyRuntime, Title: "zdt does not manage this service",
			Why: "there is nothing to upgrade before zdt adopt; of what zdt would find in its units, only what stays as it is then is named",
			More: `A service is one of zdt's when it has releases below ` + "`/var/lib/zdt`" + `, or a unit with a section ` + "`[X-Zdt]`" + ` or with
` + "`RuntimeDirectory=zdt/NAME`" + `. ` + "`zdt adopt`" + ` writes drop-ins for one that is not, and ` + "`zdt init`" + ` makes a new one.`,
			look: func(f Facts) []sight {
				if !f.Unmanaged {
					return nil
				}
				return []sight{{seen: "no releases of " + f.name() + ", and nothing of zdt in " + f.Service.Name, fix: "zdt adopt " + f.name()}}
			},
		},
		{
			ID: "ZDT035", Severity: Note, handoff: true, Family: FamilyRuntime, Title: "an earlier handoff is not over yet",
			Why: "there is one handoff at a time: another upgrade waits until this one has ended, a bare reload is refused",
			look: func(f Facts) []sight {
				wait := []sight{{fix: "wait for it: zdt watch " + f.name()}}
				switch p, h := f.Runtime.Predecessor, f.Runtime.Handoff; {
				case p != nil:
					wait[0].seen = fmt.Sprintf("%s, generation %d, still drains: %s", control.Process(p.PID), p.Generation, p.Connections.Progress())
					if f.Drain > 0 {
						wait[0].fix += fmt.Sprintf("; what is not done %s after the handoff is cut", f.Drain)
					}
				case h != nil:
					wait[0].seen = fmt.Sprintf("the handoff to %s is %s", control.Process(h.Candidate), f.Runtime.Phase)
				default:
					return nil
				}
				return wait
			},
		},
		{
			ID: "ZDT037", Severity: Blocker, Family: FamilyRuntime, Title: "systemd does not start the current release",
			Why: "an upgrade is refused, since the next start of the service would undo it: a restart, a crash or a reboot brings another program",
			look: func(f Facts) []sight {
				if f.Live.Starts == "" || f.Live.Current == "" || strings.HasPrefix(f.Live.Starts, filepath.Dir(f.Live.Current)+"/") {
					return nil
				}
				return []sight{{seen: "ExecStart= starts " + f.Live.Starts, fix: "in ExecStart= of " + f.Service.Name + " put " + f.Live.Current + " in its place; then systemctl daemon-reload"}}
			},
		},
		{
			ID: "ZDT040", Severity: Blocker, Family: FamilyRuntime, Title: "the current release is not there",
			Why: "an upgrade has nothing that it could go back to, and a restart or a crash leaves the service down: systemd starts the current release",
			More: `Somebody has deleted or changed a release below ` + "`/var/lib/zdt`" + ` by hand; ` + "`zdt prune`" + ` never deletes the current one.
As long as the program runs the kernel keeps its file, whatever was deleted: ` + "`/proc/PID/exe`" + `.`,
			look: func(f Facts) []sight {
				if f.Live.Damage == "" {
					return nil
				}
				copied := ""
				if pid := f.Service.Number("MainPID"); pid > 0 && !f.Helper {
					copied = fmt.Sprintf("cp /proc/%d/exe FILE; ", pid)
				}
				return []sight{{seen: f.Live.Damage, fix: copied + "rm " + filepath.Join(filepath.Dir(f.Releases), "current") +
					"; then the zdt init of " + f.name() + " once more, with --exec FILE"}}
			},
		},
	}
}

// runtimeDirectory is the value of RuntimeDirectory= that zdt writes into the unit.
func (f Facts) runtimeDirectory() string { return "zdt/" + f.name() }
