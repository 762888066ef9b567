package handoffcheck

import (
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/zdt-dev/zdt/handoff/control"
)

// listenerChecks compare the sockets that the process has with the socket units they are from.
func listenerChecks() []Check {
	return []Check{
		{
			ID: "ZDT036", Severity: Risk, Family: FamilyRuntime, Title: "systemd does not have the socket that the program listens on",
			Why: "a handoff passes it on, but when the service crashes or is restarted nobody holds it: clients are refused, and the program may bind another address",
			More: `When the address in a socket unit was changed, systemd closes its own copy of the socket at the next daemon-reload and opens
none for the new address before the socket unit is restarted. The unit says "active (running)" all the same (systemd 252 to
257). Changing the address back does not bring the socket back.`,
			look: func(f Facts) (all []sight) {
				for _, s := range f.Runtime.Sockets {
					u, ok := f.socketOf(s)
					if !ok || !f.gone(u, s) {
						continue
					}
					seen := fmt.Sprintf("socket %q at %s, of which systemd has no copy", s.Name, s.Address)
					if want := u.listens(); len(want) > 0 && !slices.Contains(want, s.Network+" "+s.Address) {
						seen = fmt.Sprintf("socket %q at %s %s, %s has %s", s.Name, s.Network, s.Address, u.Name, strings.Join(want, ", "))
					}
					all = append(all, sight{seen: seen, fix: fmt.Sprintf("systemctl restart %s %s, at a quiet moment: clients are refused until it listens again", u.Name, f.Service.Name)})
				}
				return all
			},
		},
		{
			ID: "ZDT038", Severity: Note, Family: FamilyRuntime, Title: "fewer clients can wait than the socket unit says",
			Why: "who comes while a restart goes on waits in the queue of the socket, and when that is full tries in vain",
			More: `The kernel cuts Backlog= to net.core.somaxconn, and says nothing. It does so when the socket is opened: whichever of the
two was raised later, the socket unit has to be restarted.`,
			look: func(f Facts) (all []sight) {
				for _, s := range f.Runtime.Sockets {
					u, ok := f.socketOf(s)
					queue, want := uint64(f.Live.at(s.Network, s.Address).Queue), u.Number("Backlog")
					if !ok || queue == 0 || queue >= want || want >= math.MaxInt32 { // as much as there may be: the default, seen with systemd 252 and 257
						continue
					}
					if f.Helper && queue != uint64(f.Live.LongestQueue) {
						continue // a program of any kind may call listen once more with a length of its own, as Node.js and uvicorn do
					}
					fix := fmt.Sprintf("systemctl restart %s %s, at a quiet moment", u.Name, f.Service.Name)
					if limit := uint64(f.Live.LongestQueue); limit > 0 && limit < want {
						fix = fmt.Sprintf("sysctl -w net.core.somaxconn=%d, and a file in /etc/sysctl.d that says so; then %s", want, fix)
					}
					all = append(all, sight{seen: fmt.Sprintf("%d can wait in socket %q, Backlog=%d in %s", queue, s.Name, want, u.Name), fix: fix})
				}
				return all
			},
		},
		{
			ID: "ZDT039", Severity: Risk, Family: FamilyRuntime, Title: "the program cannot let go of its socket",
			Why: "without O_NONBLOCK the program waits in accept until one more client comes: upgrades and stops wait for it in vain until their time is over",
			More: `The flag belongs to the socket and not to a process. The library sets it at a start. Another unit that gets the same
socket, by ` + "`Sockets=`" + ` and without ` + "`NonBlocking=yes`" + `, takes it away for all when systemd starts it, and so may
any program that has the socket. Once the flag is there again the next client wakes the program, and all is well. A restart sets
it, too, but takes as long as TimeoutStopSec=.`,
			look: func(f Facts) (all []sight) {
				if f.Helper {
					return nil // it does not accept: the program does, in its own way
				}
				for _, s := range f.Runtime.Sockets {
					if s.InUse && f.Live.at(s.Network, s.Address).Blocking {
						all = append(all, sight{seen: fmt.Sprintf("socket %q at %s is without O_NONBLOCK", s.Name, s.Address),
							fix: "give NonBlocking=yes to the other unit that has Sockets=" + f.socketName(s) + ", and restart that; or if there is none: systemctl restart " + f.Service.Name})
					}
				}
				return all
			},
		},
	}
}

// gone reports whether systemd has no copy of a socket of its unit u.
func (f Facts) gone(u Unit, s control.Socket) bool {
	switch l := f.Live.at(s.Network, s.Address); {
	case l.Held:
		return false
	case l.Loose:
		return true
	}
	want := u.listens() // nobody could look
	return len(want) > 0 && !slices.Contains(want, s.Network+" "+s.Address)
}

// socketOf is the socket unit that a socket is from: of several with its name that with its address.
func (f Facts) socketOf(s control.Socket) (of Unit, ok bool) {
	for _, u := range f.Sockets {
		if u.Text("FileDescriptorName") != s.Name {
			continue
		}
		if of, ok = u, true; slices.Contains(u.listens(), s.Network+" "+s.Address) {
			break
		}
	}
	return of, ok
}

func (f Facts) socketName(s control.Socket) string {
	if u, ok := f.socketOf(s); ok {
		return u.Name
	}
	return f.name() + ".socket"
}

// listens are the addresses of a socket unit as a runtime writes them: "tcp 127.0.0.1:8080". Empty where there is one that no runtime
// has: a FIFO, vsock, an interface.
func (u Unit) listens() (all []string) {
	pairs, _ := u.Properties["Listen"].([][]any)
	for _, p := range pairs { // a(ss): Stream, address
		if len(p) != 2 {
			return nil
		}
		kind, _ := p[0].(string)
		address, _ := p[1].(string)
		local := strings.HasPrefix(address, "/") || strings.HasPrefix(address, "@")
		if strings.ContainsAny(address, "%") || strings.HasPrefix(address, "vsock:") {
			return nil
		}
		network := map[string]string{"Stream": "tcp", "Datagram": "udp"}[kind]
		if local {
			network = map[string]string{"Stream": "unix", "Datagram": "unixgram", "SequentialPacket": "unixpacket"}[kind]
		}
		if network == "" {
			return nil
		}
		all = append(all, network+" "+address)
	}
	return all
}
