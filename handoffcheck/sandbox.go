package handoffcheck

import (
	"path/filepath"
	"slices"
	"strings"
)

// sandboxChecks are about what the unit keeps from the processes in it. A process that cannot start at all needs no check; these
// let a service run, and end its next handoff.
func sandboxChecks() []Check {
	return []Check{
		{
			ID: "ZDT021", Severity: Blocker, handoff: true, unmanaged: true, Family: FamilySandbox, Title: "a system call that a handoff needs is forbidden",
			Why: "the filter lets the service run, but the call that passes the sockets on, or that finds and signals a process, fails",
			More: `The library needs sendmsg, recvmsg and socketpair; ` + "`zdt run`" + ` needs pidfd_open and pidfd_send_signal as well. All of
them are in the set @system-service. A call that is forbidden fails with EPERM, or kills the process where the unit has no
SystemCallErrorNumber= of its own.`,
			look: func(f Facts) []sight {
				missing := f.forbiddenCalls()
				if len(missing) == 0 {
					return nil
				}
				return f.service("SystemCallFilter= without "+strings.Join(missing, " "), "SystemCallFilter="+strings.Join(missing, " "))
			},
		},
		{
			ID: "ZDT022", Severity: Blocker, handoff: true, Family: FamilySandbox, Title: "the service does not see its next release",
			Why: "a handoff executes the new program from within the unit, where its directory is not to be found",
			More: `TemporaryFileSystem=, InaccessiblePaths=, RootDirectory= and RootImage= make directories of the host invisible. A
BindPaths= of "current" does not help: it shows the release of the moment when the service was started. What has to be
visible is the directory with all releases.`,
			look: func(f Facts) []sight {
				if !f.Hidden {
					return nil
				}
				return f.service(f.Releases+" is not there for the main process", "BindReadOnlyPaths="+f.Releases)
			},
		},
		{
			ID: "ZDT023", Severity: Blocker, handoff: true, unmanaged: true, Family: FamilySandbox, Title: "the service may not execute its next release",
			Why: "a handoff executes the new program from within the unit, where its directory is mounted noexec",
			look: func(f Facts) []sight {
				if f.Releases == "" || !covers(f.Service.Texts("NoExecPaths"), f.Releases) || covers(f.Service.Texts("ExecPaths"), f.Releases) {
					return nil
				}
				return f.service("NoExecPaths="+strings.Join(f.Service.Texts("NoExecPaths"), " "), "ExecPaths="+f.Releases)
			},
		},
		{
			ID: "ZDT024", Severity: Blocker, handoff: true, Family: FamilySandbox, Title: "zdt run does not recognize who reloads it",
			Why: "with PrivateUsers=yes systemd runs ExecReload= in a user namespace of its own, and to zdt run its user is nobody",
			More: `Every process that systemd starts for the unit gets a new namespace, so the kernel names the other one's user as
65534 over the control socket, and zdt run answers only root and its own user.`,
			look: func(f Facts) []sight {
				if !f.Helper || !f.Service.Is("PrivateUsers") {
					return nil
				}
				return f.service("PrivateUsers=yes", "PrivateUsers=no")
			},
		},
	}
}

// forbiddenCalls are those that the runtime needs and SystemCallFilter= does not let pass. systemd
// names in its property the calls and sets as they are written, sets resolved (since 187).
func (f Facts) forbiddenCalls() (missing []string) {
	filter, _ := f.Service.Properties["SystemCallFilter"].([]any) // (bas): an allow-list or not, and the calls
	if len(filter) != 2 {
		return nil
	}
	allow, _ := filter[0].(bool)
	calls, _ := filter[1].([]string)
	if len(calls) == 0 {
		return nil // no filter
	}
	needed := []string{"sendmsg", "recvmsg", "socketpair"}
	if f.Helper {
		needed = append(needed, "pidfd_open", "pidfd_send_signal")
	}
	for _, call := range needed {
		listed := slices.ContainsFunc(calls, func(c string) bool {
			name, _, _ := strings.Cut(c, ":") // an error number of its own follows
			return name == call
		})
		if listed != allow {
			missing = append(missing, call)
		}
	}
	return missing
}

// covers reports whether path lies in one of the directories, which may have the prefixes - and + of unit files.
func covers(dirs []string, path string) bool {
	return slices.ContainsFunc(dirs, func(dir string) bool {
		rel, err := filepath.Rel(strings.TrimLeft(dir, "-+"), path)
		return err == nil && rel != ".." && !strings.HasPrefix(rel, "../")
	})
}
