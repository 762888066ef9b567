package handoff

import (
	"fmt"
	"os"
	"strconv"

	"github.com/zdt-dev/zdt/internal/listenfds"
)

// envPredecessor carries the number of the descriptor that leads to the
// predecessor. Only a process started by a handoff has it.
const envPredecessor = "ZDT_PREDECESSOR_FD"

// envApp is the pid of the program that zdt run has started, in that program's environment.
const envApp = "ZDT_APP_PID"

// underHelper reports whether zdt run has started this very process, and starts the next
// generation in its own way. The variable is inherited by all that the program
// starts; a process of another pid decides for itself.
func underHelper(getenv func(string) string, pid int) bool {
	return getenv(envApp) == strconv.Itoa(pid)
}

// inheritance is what the environment says of descriptors given to this process.
type inheritance struct {
	names       []string // names[i] belongs to descriptor listenfds.Start+i
	predecessor int      // descriptor, or -1
}

// parseInheritance reads the protocol of sd_listen_fds(3) and our own addition
// to it. LISTEN_PID is required only when systemd is the one who passes: a
// predecessor cannot know the pid before the fork, and its proof is the
// descriptor itself, over which it then names the pid it meant.
func parseInheritance(getenv func(string) string, pid int) (inheritance, error) {
	in := inheritance{predecessor: -1}
	if text := getenv(envPredecessor); text != "" {
		fd, err := strconv.Atoi(text)
		if err != nil || fd < listenfds.Start {
			return in, fmt.Errorf("environment %s=%q: not a descriptor", envPredecessor, text)
		}
		in.predecessor = fd
	} else if !listenfds.MeantFor(getenv, pid) {
		return in, nil // meant for another process, or for nobody
	}
	var err error
	in.names, err = listenfds.Names(getenv)
	return in, err
}

// successorEnviron is the environment of a candidate: this process's own as it
// was at Open, with what describes the receiver rewritten.
//
// LISTEN_PID is left out. The number is not known before the fork, Go runs no
// code between fork and exec, and a wrong one is worse than none: the
// predecessor names the pid over the private descriptor instead.
func successorEnviron(base, names []string) []string {
	env := append(listenfds.Strip(base, envPredecessor), listenfds.Environ(names)...)
	return append(env, envPredecessor+"="+strconv.Itoa(listenfds.Start+len(names)))
}

// forgetInheritance removes the variables from this process's environment, so
// that no program it starts believes the descriptors to be its own.
func forgetInheritance() {
	listenfds.Forget()
	os.Unsetenv(envPredecessor)
}
