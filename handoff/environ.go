package handoff

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
)

// envPredecessor carries the number of the descriptor that leads to the
// predecessor. Only a process started by a handoff has it.
const envPredecessor = "ZDT_PREDECESSOR_FD"

// listenFDsStart is SD_LISTEN_FDS_START of sd_listen_fds(3).
const listenFDsStart = 3

// stale are the variables that describe the process they were given to and
// lie about any other. LISTEN_PIDFDID is checked by libsystemd since 259;
// WATCHDOG_PID makes sd_watchdog_enabled(3) say no in the successor. NOTIFY_SOCKET,
// WATCHDOG_USEC and the rest of the unit's environment stay true.
var stale = [...]string{
	"LISTEN_PID", "LISTEN_PIDFDID", "LISTEN_FDS", "LISTEN_FDNAMES",
	"WATCHDOG_PID", "SYSTEMD_EXEC_PID", envPredecessor,
}

// inheritance is what the environment says of descriptors given to this process.
type inheritance struct {
	names       []string // names[i] belongs to descriptor listenFDsStart+i
	predecessor int      // descriptor, or -1
}

// parseInheritance reads the protocol of sd_listen_fds(3) and our own addition
// to it. LISTEN_PID is required only when systemd is the one who passes: a
// predecessor cannot know the pid before the fork, and its proof is the
// descriptor itself, over which it then names the pid it meant.
func parseInheritance(getenv func(string) string, pid int) (inheritance, error) {
	in := inheritance{predecessor: -1}
	fds := getenv("LISTEN_FDS")
	if text := getenv(envPredecessor); text != "" {
		fd, err := strconv.Atoi(text)
		if err != nil || fd < listenFDsStart {
			return in, fmt.Errorf("environment %s=%q: not a descriptor", envPredecessor, text)
		}
		in.predecessor = fd
	} else if fds == "" || getenv("LISTEN_PID") != strconv.Itoa(pid) {
		return in, nil // meant for another process, or for nobody
	}
	if fds == "" {
		return in, nil
	}
	n, err := strconv.Atoi(fds)
	if err != nil || n < 0 || n > 1<<16 {
		return in, fmt.Errorf("environment LISTEN_FDS=%q: not a number of descriptors", fds)
	}
	var names []string
	if text := getenv("LISTEN_FDNAMES"); text != "" {
		names = strings.Split(text, ":")
		if len(names) != n {
			return in, fmt.Errorf("environment LISTEN_FDNAMES has %d names for LISTEN_FDS=%d", len(names), n)
		}
	}
	for i := range n {
		name := "unknown" // what sd_listen_fds_with_names(3) says without LISTEN_FDNAMES
		if names != nil {
			name = names[i]
		}
		in.names = append(in.names, name)
	}
	return in, nil
}

// successorEnviron is the environment of a candidate: this process's own as it
// was at Open, with what describes the receiver rewritten.
//
// LISTEN_PID is left out. The number is not known before the fork, Go runs no
// code between fork and exec, and a wrong one is worse than none: the
// predecessor names the pid over the private descriptor instead.
func successorEnviron(base, names []string) []string {
	env := slices.DeleteFunc(slices.Clone(base), func(kv string) bool {
		name, _, _ := strings.Cut(kv, "=")
		return slices.Contains(stale[:], name)
	})
	return append(env,
		"LISTEN_FDS="+strconv.Itoa(len(names)),
		"LISTEN_FDNAMES="+strings.Join(names, ":"),
		envPredecessor+"="+strconv.Itoa(listenFDsStart+len(names)),
	)
}

// forgetInheritance removes the variables from this process's environment, so
// that no program it starts believes the descriptors to be its own.
func forgetInheritance() {
	for _, name := range stale {
		os.Unsetenv(name)
	}
}

// validName reports whether name may stand in LISTEN_FDNAMES: the rule of
// FileDescriptorName= in systemd.socket(5).
func validName(name string) bool {
	if name == "" || len(name) > 255 {
		return false
	}
	for _, r := range name {
		if r < ' ' || r >= 0x7f || r == ':' {
			return false
		}
	}
	return true
}
