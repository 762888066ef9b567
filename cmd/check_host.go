package cmd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/zdt-dev/zdt/dbusctl"
	"github.com/zdt-dev/zdt/handoffcheck"
	"github.com/zdt-dev/zdt/internal/health"
	"github.com/zdt-dev/zdt/internal/sockowner"
	"github.com/zdt-dev/zdt/journal"
	"github.com/zdt-dev/zdt/unitgen"
)

// surroundings is how zdt sees the main process from where it runs. ok: what else is asked about the process makes sense.
func (h *host) surroundings(ctx context.Context, u dbusctl.Unit) (s handoffcheck.Host, ok bool) {
	if fd, err := unix.PidfdOpen(os.Getpid(), 0); err == nil {
		unix.Close(fd)
	} else {
		s.NoPidfd = err.Error()
	}
	pid := int(u.MainPID)
	if pid == 0 {
		return s, true
	}
	_, err := os.Readlink(procPath(pid, "exe"))
	switch {
	case errors.Is(err, fs.ErrNotExist) && errors.Is(unix.Kill(pid, 0), unix.ESRCH):
		if now, err := h.ask(ctx); err == nil && now.MainPID == u.MainPID { // or it has just ended
			s.Unseen = pid
			return s, false
		}
	case errors.Is(err, fs.ErrPermission) && h.f.euid == 0: // for others an upgrade is root's to carry out
		s.Unreadable = err.Error()
		return s, false
	case err == nil:
		s.Group = otherGroup(pid, u)
	}
	return s, true
}

// otherGroup is the control group of a process as zdt sees it, if it is not that of the unit.
func otherGroup(pid int, u dbusctl.Unit) string {
	inside, err := inUnit(pid, unitOf(u))
	if err != nil || inside || u.ControlGroup == "" {
		return ""
	}
	data, err := os.ReadFile(procPath(pid, "cgroup"))
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(data)) {
		if path, ok := strings.CutPrefix(strings.TrimSpace(line), "0::"); ok {
			return path
		}
	}
	return ""
}

// gatesSeen are the gates of the policy.
func (h *host) gatesSeen(policy unitgen.Policy, running bool) (all []handoffcheck.Gate) {
	prober := health.Prober{Lines: health.Journal(journal.Query{})}
	for _, text := range append(policy.Health[:len(policy.Health):len(policy.Health)], policy.Gates...) {
		g, err := health.Parse(text)
		if err != nil {
			all = append(all, handoffcheck.Gate{Text: text, Problem: err.Error()})
			continue
		}
		seen := handoffcheck.Gate{Text: g.String()}
		if h.f.euid == 0 || h.f.globals.user { // for others what only root may look at is no problem of the gate's
			if err := prober.Check([]health.Gate{g}); err != nil {
				seen.Problem = err.Error()
			}
		}
		seen.Journal, seen.Errors = g.Journal()
		seen.Network, seen.Address = g.Endpoint()
		seen.Unanswered = running && unanswered(seen.Network, seen.Address)
		all = append(all, seen)
	}
	return all
}

// unanswered reports whether nobody listens at an address of this host; of what is not known to be one it says no.
func unanswered(network, address string) bool {
	if network == "unix" {
		_, err := os.Lstat(address)
		return strings.HasPrefix(address, "/") && errors.Is(err, fs.ErrNotExist)
	}
	host, port, err := net.SplitHostPort(address)
	if network != "tcp" || err != nil {
		return false
	}
	hosts := []string{host}
	if host == "localhost" {
		hosts = []string{"127.0.0.1", "::1"}
	}
	for _, host := range hosts {
		at, err := netip.ParseAddrPort(net.JoinHostPort(host, port))
		if err != nil || at.Addr().Zone() != "" || !ours(at.Addr()) {
			return false
		}
		if listens, err := sockowner.Listens(at); listens || err != nil {
			return false
		}
	}
	return true
}

// ours reports whether a connection to the address stays on this host.
func ours(a netip.Addr) bool {
	if a.IsLoopback() {
		return true
	}
	all, err := net.InterfaceAddrs()
	if err != nil {
		return false
	}
	for _, own := range all {
		if p, err := netip.ParsePrefix(own.String()); err == nil && p.Addr().Unmap() == a.Unmap() {
			return true
		}
	}
	return false
}

// journalSeen is what becomes of lines that are written to the journal.
func journalSeen() (j handoffcheck.Journal, unknown []string) {
	conn, err := net.Dial("unixgram", journal.DefaultSocket)
	switch {
	case err == nil:
		conn.Close()
	case errors.Is(err, syscall.ENOENT), errors.Is(err, syscall.ECONNREFUSED):
		j.Absent = fmt.Sprintf("%s: %v", journal.DefaultSocket, syscallOf(err))
	default:
		unknown = append(unknown, fmt.Sprintf("journald: %v", err))
	}
	conf, err := journaldConf("/etc", "/run", "/usr/local/lib", "/usr/lib", "/lib")
	if err != nil {
		return j, append(unknown, fmt.Sprintf("journald.conf: %v", err))
	}
	j.Storage, j.MaxLevelStore = strings.ToLower(conf["Storage"]), strings.ToLower(conf["MaxLevelStore"])
	return j, unknown
}

func syscallOf(err error) error {
	var errno syscall.Errno
	if errors.As(err, &errno) {
		return errno
	}
	return err
}
