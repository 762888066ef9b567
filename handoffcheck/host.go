package handoffcheck

import (
	"fmt"
	"strings"
)

// Host is how zdt sees the service from where it runs: a container, another namespace, a process with few rights.
type Host struct {
	// Unseen is the main process when systemd has it and /proc does not; 0 when it is there.
	Unseen int
	// Unreadable is why root may not read which file the main process executes.
	Unreadable string
	// Group is the control group of the main process as zdt sees it, when it is not the one that systemd names.
	Group string
	// NoPidfd is why the kernel gives zdt no pidfd of a process.
	NoPidfd string
}

// minSystemd is the oldest systemd that zdt writes units for.
const minSystemd = 247

// hostChecks are about where zdt runs, and what it can see and do from there.
func hostChecks() []Check {
	const elsewhere = "run zdt on the host, or in its namespaces: docker run --pid host --cgroupns host"
	return []Check{
		{
			ID: "ZDT057", Severity: Blocker, Family: FamilyHost, Title: "zdt does not see the service's processes",
			Why: "in another process namespace than systemd's the numbers that systemd and the runtime name mean other processes, or none",
			More: `A container that has systemd's bus mounted can ask systemd, and the answers are in the numbers of the host. Without its
/proc nothing can be seen of the program that runs, nor be held on to.`,
			look: func(f Facts) []sight {
				if f.Host.Unseen == 0 {
					return nil
				}
				return []sight{{seen: fmt.Sprintf("the main process is %d for systemd, and /proc has no such process", f.Host.Unseen), fix: elsewhere}}
			},
		},
		{
			ID: "ZDT058", Severity: Blocker, Family: FamilyHost, Title: "zdt may not look at the service's processes",
			Why: "an upgrade has to know which file the running program was executed from, and the kernel does not tell it to who lacks CAP_SYS_PTRACE",
			More: `Root in a container or in a unit with CapabilityBoundingSet= may lack it. Reading /proc/PID/exe of another user's process takes
what ptrace(2) takes.`,
			look: func(f Facts) []sight {
				if f.Host.Unreadable == "" {
					return nil
				}
				return []sight{{seen: f.Host.Unreadable, fix: "run zdt with CAP_SYS_PTRACE: as root of the host, or docker run --cap-add SYS_PTRACE"}}
			},
		},
		{
			ID: "ZDT059", Severity: Blocker, handoff: true, Family: FamilyHost, Title: "zdt sees the control groups by other names",
			Why: "in another control group namespace than systemd's zdt does not find the new process in the unit, and undoes the handoff",
			look: func(f Facts) []sight {
				if f.Host.Group == "" {
					return nil
				}
				return []sight{{seen: fmt.Sprintf("the main process is in %s, for systemd in %s", f.Host.Group, f.Service.Text("ControlGroup")), fix: elsewhere}}
			},
		},
		{
			ID: "ZDT060", Severity: Blocker, Family: FamilyHost, Title: "the kernel gives zdt no hold on a process",
			Why: "the end of a process is noticed by a pidfd, and pidfd_open (Linux 5.3) is not there, or a filter of system calls forbids it",
			More: `The seccomp profiles of older container engines, and SystemCallFilter= of a unit that runs zdt, are such filters. Without it a
handoff ends at its trigger; with ` + "`--strategy restart`" + ` it would be found out when systemd has restarted the service already.`,
			look: func(f Facts) []sight {
				if f.Host.NoPidfd == "" {
					return nil
				}
				return []sight{{seen: "pidfd_open: " + f.Host.NoPidfd, fix: "run zdt on the host, or with a seccomp profile that allows it, on Linux 5.3 or later"}}
			},
		},
		{
			ID: "ZDT061", Severity: Blocker, Family: FamilyHost, Title: "the service counts its processes by itself",
			Why: "with PrivatePIDs=yes (systemd 257) the program is number 1 to itself and another to systemd: it does not take the sockets, which are meant for that number, nor can it name its successor",
			More: `LISTEN_PID is the number that systemd knows. A program that follows the protocol leaves the sockets alone then, binds its ports
itself, and finds them taken. And the first process of such a namespace takes all others with it when it ends: no generation can outlive the one before.`,
			look: func(f Facts) []sight {
				if f.Service.Text("PrivatePIDs") != "yes" && !f.Service.Is("PrivatePIDs") {
					return nil
				}
				return f.service("PrivatePIDs=yes", "PrivatePIDs=no")
			},
		},
		{
			ID: "ZDT062", Severity: Risk, Family: FamilyHost, Title: "a gate asks where nobody listens",
			Why: "unless the new program is the first to listen there, the gate fails when its time is over, and the upgrade is undone",
			More: `The address is wrong, or the program listens in a network namespace of its own: PrivateNetwork=, NetworkNamespacePath= or
JoinsNamespaceOf=. Gates ask from where zdt is. The sockets of a socket unit are the host's whatever the service has, so the ports that
are opened by one can be asked.`,
			look: func(f Facts) (all []sight) {
				for _, g := range f.Gates {
					if !g.Unanswered {
						continue
					}
					s := sight{seen: fmt.Sprintf("Gate=%s: nobody listens on %s", g.Text, g.Address), fix: "correct the address, or have the service listen there"}
					if f.ownNetwork() && !strings.HasPrefix(g.Network, "unix") {
						s.seen += ", and the service has a network of its own"
						s.fix = "let a socket unit open the port, or ask by unix:, http+unix:, journal: or exec:"
					}
					all = append(all, s)
				}
				return all
			},
		},
		{
			ID: "ZDT063", Severity: Risk, Family: FamilyHost, Title: "systemd is older than zdt knows",
			Why: "the units that zdt writes are for systemd 247 and later, and nobody has tried it with this one",
			look: func(f Facts) []sight {
				if f.Systemd == 0 || f.Systemd >= minSystemd {
					return nil
				}
				return []sight{{seen: fmt.Sprintf("systemd %d", f.Systemd), fix: "use a newer distribution"}}
			},
		},
		{
			ID: "ZDT064", Severity: Blocker, Family: FamilyHost, Title: "a gate cannot be asked",
			Why: "every upgrade asks the gates of the unit, and one that it does not understand or may not run is refused",
			More: `What a gate looks like is in docs/gates.md. A program of an ` + "`exec:`" + ` gate has to be there, and nobody but root may be able to
write to it or to a directory on the way to it.`,
			look: func(f Facts) (all []sight) {
				for _, g := range f.Gates {
					if g.Problem != "" {
						all = append(all, sight{seen: g.Problem, fix: "correct it in [X-Zdt] of " + f.Service.Name + " and its drop-ins, or mend what it runs"})
					}
				}
				return all
			},
		},
	}
}

// ownNetwork reports whether the unit asks for a network namespace of its own, or another one's.
func (f Facts) ownNetwork() bool {
	return f.Service.Is("PrivateNetwork") || f.Service.Text("NetworkNamespacePath") != ""
}
