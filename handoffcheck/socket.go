package handoffcheck

import (
	"fmt"
	"slices"
)

// socketChecks are about the socket units.
func socketChecks() []Check {
	return []Check{
		{
			ID: "ZDT016", Severity: Risk, handoff: true, unmanaged: true, Family: FamilyUnit, Title: "systemd accepts connections itself",
			Why: "with Accept=yes systemd and the program race for each connection: what systemd gets goes to an instance of its own, which no handoff is about",
			More: `The program has to be able to accept connections from a socket that it is given. Many that were written
for inetd are not, and need ` + "`zdt run --stdin NAME`" + ` and a program around them that accepts, such as socat.`,
			look: eachSocket(func(u Unit) []string {
				if !u.Is("Accept") {
					return nil
				}
				return []string{"Accept=yes", "Accept=no"}
			}),
		},
		{
			ID: "ZDT017", Severity: Risk, unmanaged: true, Family: FamilyUnit, Title: "clients that wait are thrown away after a crash",
			Why: "with FlushPending=yes systemd empties the queue when the service has ended by itself: who has connected meanwhile is refused",
			look: eachSocket(func(u Unit) []string {
				if !u.Is("FlushPending") {
					return nil
				}
				return []string{"FlushPending=yes", "FlushPending=no"}
			}),
		},
		{
			ID: "ZDT018", Severity: Risk, Family: FamilyUnit, Title: "a crash loop fails the socket",
			Why: "a socket unit that starts its service more often than its trigger limit fails, and its ports are closed",
			More: `The default is 20 starts in 2 seconds. A service that ends at once while clients wait reaches it. RestartSec= of
the service does not pace the starts by clients; ` + "`TriggerLimitIntervalSec=0`" + ` switches the limit off.`,
			look: eachSocket(func(u Unit) []string {
				interval, ok := u.Span("TriggerLimitIntervalUSec")
				burst := u.Number("TriggerLimitBurst")
				if !ok || interval == 0 || interval == endless || burst == 0 {
					return nil
				}
				return []string{fmt.Sprintf("TriggerLimitBurst=%d in TriggerLimitIntervalSec=%s", burst, interval), "TriggerLimitIntervalSec=0"}
			}),
		},
		{
			ID: "ZDT019", Severity: Risk, unmanaged: true, Family: FamilyUnit, Title: "two sockets have the same name",
			Why: "the program finds its sockets by FileDescriptorName=, and cannot tell those apart that share one",
			look: func(f Facts) (all []sight) {
				seen := map[string]string{}
				for _, u := range f.Sockets {
					name := u.Text("FileDescriptorName")
					if other, twice := seen[name]; twice && name != "" {
						all = append(all, sight{seen: fmt.Sprintf("FileDescriptorName=%s in %s and %s", name, other, u.Name), fix: "give each socket unit a FileDescriptorName= of its own"})
						continue
					}
					seen[name] = u.Name
				}
				return all
			},
		},
		{
			ID: "ZDT020", Severity: Risk, Family: FamilyUnit, Title: "the program listens on a socket that is not systemd's",
			Why: "a port that the program has bound itself is closed when it ends: a restart, and a crash, refuse clients",
			More: `A handoff passes such a socket on, too. But when the service is restarted, or crashes, nobody holds it. A socket
unit does, and clients wait in its queue.`,
			look: func(f Facts) (all []sight) {
				if f.Runtime.Version == 0 || f.Service.Number("NFileDescriptorStore") > 0 {
					return nil // or systemd keeps it, as zdt adopt has it do
				}
				var names []string
				for _, u := range f.Sockets {
					names = append(names, u.Text("FileDescriptorName"))
				}
				for _, s := range f.Runtime.Sockets {
					if slices.Contains(names, s.Name) || f.Live.at(s.Network, s.Address).Held { // in the store of descriptors
						continue
					}
					all = append(all, sight{seen: fmt.Sprintf("socket %q at %s", s.Name, s.Address),
						fix: fmt.Sprintf("write a socket unit with ListenStream=%s and FileDescriptorName=%s (zdt init --listen makes one)", s.Address, s.Name)})
				}
				return all
			},
		},
	}
}

// eachSocket looks at every socket unit. see returns what it has seen and the lines of
// [Socket] that mend it.
func eachSocket(see func(Unit) []string) func(Facts) []sight {
	return func(f Facts) (all []sight) {
		for _, u := range f.Sockets {
			if s := see(u); len(s) > 0 {
				all = append(all, sight{seen: s[0], unit: u.Name, dropIn: append([]string{"[Socket]"}, s[1:]...)})
			}
		}
		return all
	}
}
