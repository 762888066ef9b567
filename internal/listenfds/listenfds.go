// Package listenfds speaks the protocol of sd_listen_fds(3): sockets are passed
// as the descriptors from Start on, and the environment says how many there are
// and what they are called.
package listenfds

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
)

// Start is SD_LISTEN_FDS_START: the first descriptor that is passed.
const Start = 3

// Unknown is the name of a descriptor without one, as
// sd_listen_fds_with_names(3) says it.
const Unknown = "unknown"

// maxFDs bounds LISTEN_FDS, before anything is allocated for it.
const maxFDs = 1 << 16

// variables are those that describe the process they were given to and
// lie about any other. LISTEN_PIDFDID is checked by libsystemd since 259;
// WATCHDOG_PID makes sd_watchdog_enabled(3) say no in another process. NOTIFY_SOCKET,
// WATCHDOG_USEC and the rest of a unit's environment stay true.
var variables = [...]string{
	"LISTEN_PID", "LISTEN_PIDFDID", "LISTEN_FDS", "LISTEN_FDNAMES",
	"WATCHDOG_PID", "SYSTEMD_EXEC_PID",
}

// MeantFor reports whether the environment passes descriptors to the process
// pid, and not to another one from which they and it were merely inherited.
func MeantFor(getenv func(string) string, pid int) bool {
	return getenv("LISTEN_FDS") != "" && getenv("LISTEN_PID") == strconv.Itoa(pid)
}

// Names are the names of the descriptors that are passed: names[i] belongs to
// descriptor Start+i. There are none without LISTEN_FDS. Whom they are passed
// to is not looked at, see MeantFor. The error names the variable that makes no
// sense. Names may be any text without a colon, see ValidName.
func Names(getenv func(string) string) ([]string, error) {
	fds := getenv("LISTEN_FDS")
	if fds == "" {
		return nil, nil
	}
	n, err := strconv.Atoi(fds)
	if err != nil || n < 0 || n > maxFDs {
		return nil, fmt.Errorf("environment LISTEN_FDS=%q: not a number of descriptors", fds)
	}
	text := getenv("LISTEN_FDNAMES")
	if text == "" {
		return slices.Repeat([]string{Unknown}, n), nil
	}
	names := strings.Split(text, ":")
	if len(names) != n {
		return nil, fmt.Errorf("environment LISTEN_FDNAMES has %d names for LISTEN_FDS=%d", len(names), n)
	}
	return names, nil
}

// Environ are the variables that pass descriptors called names from Start on:
// LISTEN_FDS and LISTEN_FDNAMES. LISTEN_PID is not among them; only who knows
// the receiver's pid can set it.
func Environ(names []string) []string {
	return []string{"LISTEN_FDS=" + strconv.Itoa(len(names)), "LISTEN_FDNAMES=" + strings.Join(names, ":")}
}

// Strip returns a copy of the environment base (NAME=value) without the
// variables that describe the process it was given to, and without those of more.
func Strip(base []string, more ...string) []string {
	return slices.DeleteFunc(slices.Clone(base), func(kv string) bool {
		name, _, _ := strings.Cut(kv, "=")
		return slices.Contains(variables[:], name) || slices.Contains(more, name)
	})
}

// Forget removes these variables from this process's environment, so that no
// program it starts believes the descriptors to be its own.
func Forget() {
	for _, name := range variables {
		os.Unsetenv(name)
	}
}

// ValidName reports whether name may stand in LISTEN_FDNAMES: the rule of
// FileDescriptorName= in systemd.socket(5).
func ValidName(name string) bool {
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
