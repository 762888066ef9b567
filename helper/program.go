package helper

import (
	"errors"
	"fmt"
	"strings"
)

// program is how one group is started: a value, nothing has happened yet.
type program struct {
	// Path is the file to execute. Without a slash it is looked for in the PATH of
	// Env, as a shell does.
	Path      string
	Argv, Env []string
	// Dir is the working directory; empty: the helper's own.
	Dir string
	// FDs become 3, 4, … of the program. They stay the caller's, who keeps them
	// open until start has returned.
	FDs []int
	// Stdio become 0, 1 and 2. -1 stands for /dev/null.
	Stdio [3]int
	// IgnoreSIGPIPE starts the program with SIGPIPE ignored, as systemd starts
	// every service unless IgnoreSIGPIPE=no. All other signals are at their default
	// and none is blocked. The helper cannot see what it was started with itself: Go's
	// runtime has replaced it before main.
	IgnoreSIGPIPE bool
}

// ownPID as the value of a variable in program.Env stands for the pid that the
// program gets. It is only known after the fork, so the shim writes it. No
// variable of a real environment can be mistaken for it: none holds a NUL.
const ownPID = "\x00own pid"

// setOwnPID puts pid where ownPID stands.
func setOwnPID(env []string, pid string) {
	for i, kv := range env {
		if name, value, _ := strings.Cut(kv, "="); value == ownPID {
			env[i] = name + "=" + pid
		}
	}
}

// check finds what execve(2) would refuse with an EINVAL that names nothing.
func (p program) check() error {
	if p.Path == "" || len(p.Argv) == 0 {
		return errNoCommand
	}
	for i, arg := range p.Argv {
		if strings.ContainsRune(arg, 0) {
			return fmt.Errorf("argument %d %q: holds a NUL", i, arg)
		}
	}
	for _, kv := range p.Env {
		if name, value, _ := strings.Cut(kv, "="); value != ownPID && strings.ContainsRune(kv, 0) {
			return fmt.Errorf("variable %q: holds a NUL", name)
		}
	}
	if strings.ContainsRune(p.Path, 0) || strings.ContainsRune(p.Dir, 0) {
		return fmt.Errorf("path %q in %q: holds a NUL", p.Path, p.Dir)
	}
	for _, fd := range p.FDs {
		if fd < 0 {
			return fmt.Errorf("pass descriptor %d: there is no such descriptor", fd)
		}
	}
	return nil
}

var errNoCommand = errors.New("no command to run: give one behind --")
