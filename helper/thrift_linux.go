package helper

import (
	"fmt"
	"os"
	"runtime/debug"
	"strings"

	"golang.org/x/sys/unix"
)

// thrift gives memory back that only what is over has needed. A helper sleeps for weeks between two handoffs, and there
// is one for each service. Go would keep what a handoff took of heap (it does not collect before 4 MB are allocated), and
// the kernel maps what a start has touched of the program's file, with 64 KiB around each page: more than the helper
// uses afterwards.
func thrift() {
	debug.FreeOSMemory()
	exe, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return
	}
	smaps, err := os.ReadFile("/proc/self/smaps")
	if err != nil {
		return
	}
	for _, m := range untouched(string(smaps), exe) {
		// The pages stay in the page cache as long as there is room, and are found there when they are used again.
		unix.Syscall(unix.SYS_MADVISE, m.from, m.to-m.from, unix.MADV_DONTNEED)
	}
}

// mapping is a part of this process's memory.
type mapping struct{ from, to uintptr }

// untouched are the mappings of the file in /proc/PID/smaps that cannot be written to and of which no page ever was: no
// relocation in a read-only section, no breakpoint in the text. MADV_DONTNEED would undo them.
func untouched(smaps, file string) (all []mapping) {
	var m mapping
	for line := range strings.Lines(smaps) {
		line = strings.TrimSuffix(line, "\n")
		var mode string
		var kib int
		if next := (mapping{}); strings.Contains(line, "-") {
			if _, err := fmt.Sscanf(line, "%x-%x %s", &next.from, &next.to, &mode); err == nil {
				if m = next; mode != "r-xp" && mode != "r--p" || !strings.HasSuffix(line, " "+file) {
					m = mapping{}
				}
				continue
			}
		}
		if _, err := fmt.Sscanf(line, "Anonymous: %d kB", &kib); err == nil && kib == 0 && m.to > m.from {
			all = append(all, m)
		}
	}
	return all
}
