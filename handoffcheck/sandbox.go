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
				seen := f.Releases + " is not there for the main process"
				if f.binds(f.Releases) { // by now; each start makes a new mount namespace, and nothing else does
					return []sight{{seen: seen + ", which was started before BindReadOnlyPaths= was written", fix: f.restart()}}
				}
				return f.service(seen, "BindReadOnlyPaths="+f.Releases)
			},
		},
		{
			ID: "ZDT023", Severity: Blocker, handoff: true, unmanaged: true, Family: FamilySandbox, Title: "the service may not execute its next release",
			Why: "a handoff executes the new program from within the unit, where its directory is mounted noexec",
			More: `Of NoExecPaths= and ExecPaths= the longer path counts. The current release alone in ExecPaths= is enough for a start, and
for nothing else.`,
			look: func(f Facts) []sight {
				if !f.noExec() || f.Process.Mounts && !f.Process.NoExec { // which a start would change
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
		{
			ID: "ZDT075", Severity: Blocker, handoff: true, Family: FamilySandbox, Title: "the service is still in a sandbox that its unit has no more",
			Why: "a handoff happens in the namespaces and under the filter that the main process was started with, whatever the unit says by now",
			More: `systemd makes the namespaces of a service when it starts it, and no process gets rid of its system call filter. What was mended in the unit since, and read by a
daemon-reload, is not in force: ` + "`zdt check`" + ` would find nothing in the unit, and the next handoff would fail as before.`,
			look: func(f Facts) (all []sight) {
				if f.Helper && f.Process.Users && f.Service.Has("PrivateUsers") && !f.Service.Is("PrivateUsers") {
					all = append(all, sight{seen: "PrivateUsers=no, but the main process is in a user namespace of its own", fix: f.restart()})
				}
				if f.Process.NoExec && f.HostNoExec == "" && !f.noExec() {
					all = append(all, sight{seen: f.Releases + " is mounted noexec for the main process, and no NoExecPaths= says so", fix: f.restart()})
				}
				var late []string
				now := f.forbiddenCalls()
				for _, call := range forbiddenBy(f.Process.Filter, f.neededCalls()) {
					if !slices.Contains(now, call) {
						late = append(late, call)
					}
				}
				if len(late) > 0 {
					all = append(all, sight{seen: "SystemCallFilter= has " + strings.Join(late, " ") + " by now, and had not when the main process was started", fix: f.restart()})
				}
				return all
			},
		},
	}
}

// Process is what the kernel says of the main process: what it was started with, whatever its unit says by now.
type Process struct {
	Users  bool // it is in another user namespace than systemd
	NoExec bool // it sees the releases on a mount from which nothing can be executed
	Mounts bool // NoExec is known

	// Filter are the lines of SystemCallFilter= that it was started with, if it has a filter and they are known.
	Filter []string

	PID  int
	UID  uint32
	GIDs []uint32 // all groups
	// Root is the path of the root directory that it has or, without a process, is going to have; "" if that is not known.
	Root string
	// LibraryPath is LD_LIBRARY_PATH of the program that serves, and SearchPath is its PATH, if its Environ is known.
	LibraryPath, SearchPath []string
	Environ                 bool
}

// restart is the fix of what a new process would not have.
func (f Facts) restart() string { return "systemctl restart " + f.Service.Name }

// noExec reports whether the unit forbids to execute the releases. systemd mounts the shorter path first.
func (f Facts) noExec() bool {
	return f.Releases != "" && deepest(f.Service.Texts("NoExecPaths"), f.Releases) > deepest(f.Service.Texts("ExecPaths"), f.Releases)
}

// binds reports whether the unit makes a directory of the host visible at its own place.
func (f Facts) binds(dir string) bool {
	for _, name := range []string{"BindPaths", "BindReadOnlyPaths"} {
		mounts, _ := f.Service.Properties[name].([][]any) // a(ssbt): source, destination, …
		for _, m := range mounts {
			if len(m) < 2 {
				continue
			}
			from, _ := m[0].(string)
			to, _ := m[1].(string)
			if from == to && deepest([]string{from}, dir) > 0 {
				return true
			}
		}
	}
	return false
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
	for _, call := range f.neededCalls() {
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

// neededCalls are those that the runtime makes in a handoff.
func (f Facts) neededCalls() []string {
	calls := []string{"sendmsg", "recvmsg", "socketpair"}
	if f.Helper {
		calls = append(calls, "pidfd_open", "pidfd_send_signal")
	}
	return calls
}

// forbiddenBy are the calls that lines of SystemCallFilter= certainly forbid. The first line makes a list of what is allowed, or with ~
// of what is forbidden, and each one adds to it or takes away. What is in a set such as @system-service is not looked up: it may be any call,
// if that allows it.
func forbiddenBy(lines, calls []string) (forbidden []string) {
	for _, call := range calls {
		allowed := len(lines) == 0 || strings.HasPrefix(lines[0], "~")
		for _, line := range lines {
			words, forbids := strings.CutPrefix(line, "~")
			for word := range strings.FieldsSeq(words) {
				name, _, _ := strings.Cut(word, ":")
				if name == call || !forbids && strings.HasPrefix(name, "@") {
					allowed = !forbids
				}
			}
		}
		if !allowed {
			forbidden = append(forbidden, call)
		}
	}
	return forbidden
}

// deepest is the length of the longest of the directories that path lies in, 0 if it lies in none. They may have the prefixes - and +
// of unit files.
func deepest(dirs []string, path string) (n int) {
	for _, dir := range dirs {
		dir = filepath.Clean(strings.TrimLeft(dir, "-+"))
		if rel, err := filepath.Rel(dir, path); err == nil && rel != ".." && !strings.HasPrefix(rel, "../") {
			n = max(n, len(dir))
		}
	}
	return n
}
