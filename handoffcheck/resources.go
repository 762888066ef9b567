package handoffcheck

import "fmt"

// Resources are what the generation that serves takes, and what there is for a second one beside it. Sizes are bytes. What is not
// known is zero, and so is a limit that is none.
type Resources struct {
	// Memory is what the generation has for itself. MemoryUsed is that of the unit's control group, without what the kernel can
	// give back at once.
	Memory, MemoryUsed, MemoryMax, MemoryHigh uint64
	// Tasks are the processes and threads of the control group, all generations and their helper.
	Tasks, TasksMax uint64
	// Files are the descriptors that the program has open, FilesMax is how many it may have (the soft limit).
	Files, FilesMax uint64
	// UserTasks are the tasks of the service's user on the whole host, of which there may be UserTasksMax.
	UserTasks, UserTasksMax uint64
	// Release is the size of the current release, ReleasesFree is what its file system has left.
	Release, ReleasesFree uint64
}

// spareFiles are the descriptors that a handoff opens in the program beside its own: sockets to the candidate and to zdt, pidfds,
// and what the standard library keeps for a moment when it starts a program (measured: 9 with the library, 11 with zdt run).
const spareFiles = 16

// resourceChecks are about two generations at a time. systemd counts both in one control group.
func resourceChecks() []Check {
	return []Check{
		{
			ID: "ZDT025", Severity: Risk, handoff: true, unmanaged: true, Family: FamilyResources, Title: "no memory for two programs at a time",
			Why: "both are in the unit's control group until the old one has ended, and the kernel kills one of them at MemoryMax=",
			More: `What a second program takes is judged by what the first one has now. The kernel kills what it likes, and with
OOMPolicy=stop, the default, systemd then ends the whole unit. A candidate that is killed before it is READY costs the upgrade and nothing else.`,
			look: func(f Facts) []sight {
				r := f.Resources
				if !tooMuch(r.MemoryUsed, r.Memory, r.MemoryMax) {
					return nil
				}
				return f.service(fmt.Sprintf("%s of MemoryMax=%s are in use, a second program takes about %s", mebibytes(r.MemoryUsed), mebibytes(r.MemoryMax), mebibytes(r.Memory)),
					"MemoryMax="+mebibytes(roomy(r.MemoryUsed+r.Memory)))
			},
		},
		{
			ID: "ZDT026", Severity: Note, handoff: true, unmanaged: true, Family: FamilyResources, Title: "two programs at a time are slowed down",
			Why: "both are in the unit's control group until the old one has ended, and above MemoryHigh= the kernel has them wait for memory",
			look: func(f Facts) []sight {
				r := f.Resources
				if !tooMuch(r.MemoryUsed, r.Memory, r.MemoryHigh) {
					return nil
				}
				return f.service(fmt.Sprintf("%s of MemoryHigh=%s are in use, a second program takes about %s", mebibytes(r.MemoryUsed), mebibytes(r.MemoryHigh), mebibytes(r.Memory)),
					"MemoryHigh="+mebibytes(roomy(r.MemoryUsed+r.Memory)))
			},
		},
		{
			ID: "ZDT027", Severity: Risk, handoff: true, unmanaged: true, Family: FamilyResources, Title: "no room for the tasks of two programs",
			Why: "at TasksMax= no process of the unit can start another one, nor a thread: the new program does not start, or dies when it needs a thread",
			More: `Processes and threads of both programs count. A Go program ends with "runtime: failed to create new OS thread" when it meets the
limit, and the old program meets it as well.`,
			look: func(f Facts) []sight {
				r := f.Resources
				if !tooMuch(r.Tasks, r.Tasks, r.TasksMax) {
					return nil
				}
				return f.service(fmt.Sprintf("%d tasks, TasksMax=%d", r.Tasks, r.TasksMax), fmt.Sprintf("TasksMax=%d", roomy(2*r.Tasks)))
			},
		},
		{
			ID: "ZDT028", Severity: Risk, handoff: true, unmanaged: true, Family: FamilyResources, Title: "hardly a descriptor left",
			Why: "a handoff opens descriptors in the program that serves, and in the new one those of all listeners and connections that move",
			look: func(f Facts) []sight {
				r := f.Resources
				if !tooMuch(r.Files, spareFiles, r.FilesMax) {
					return nil
				}
				return f.service(fmt.Sprintf("%d of %d descriptors are open", r.Files, r.FilesMax), fmt.Sprintf("LimitNOFILE=%d", roomy(2*r.Files+spareFiles)))
			},
		},
		{
			ID: "ZDT029", Severity: Risk, handoff: true, unmanaged: true, Family: FamilyResources, Title: "the user may not have the tasks of two programs",
			Why: "LimitNPROC= counts all processes and threads of the user on the host, and at the limit none of them can start another one",
			look: func(f Facts) []sight {
				r := f.Resources
				if !tooMuch(r.UserTasks, r.Tasks, r.UserTasksMax) {
					return nil
				}
				return f.service(fmt.Sprintf("%d tasks of the user, LimitNPROC=%d", r.UserTasks, r.UserTasksMax), fmt.Sprintf("LimitNPROC=%d", roomy(r.UserTasks+r.Tasks)))
			},
		},
		{
			ID: "ZDT030", Severity: Risk, Family: FamilyResources, Title: "no room for the next release",
			Why: "a release is copied before anything else happens, and what is there takes more room than is left",
			look: func(f Facts) []sight {
				r := f.Resources
				if r.Release == 0 || r.ReleasesFree >= r.Release {
					return nil
				}
				return []sight{{
					seen: fmt.Sprintf("%s are free for %s, the current release takes %s", mebibytes(r.ReleasesFree), f.Releases, mebibytes(r.Release)),
					fix:  "zdt prune " + f.name() + ", or make room on the file system of " + f.Releases,
				}}
			},
		},
	}
}

// tooMuch reports whether a known limit does not allow what is used and what is needed besides.
func tooMuch(used, needed, limit uint64) bool {
	return limit > 0 && used > 0 && needed > 0 && (used >= limit || limit-used < needed)
}

// roomy is a limit that leaves a quarter free.
func roomy(n uint64) uint64 { return n + (n+3)/4 }

// mebibytes is a size as systemd reads and people compare it.
func mebibytes(n uint64) string { return fmt.Sprintf("%dM", (n+1<<20-1)>>20) }
