package cmd

import (
	"bufio"
	"context"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/zdt-dev/zdt/dbusctl"
	"github.com/zdt-dev/zdt/release"
	"github.com/zdt-dev/zdt/upgrade"
)

// footprint measures what the service takes now.
func (s *site) footprint(ctx context.Context, helper int) (f upgrade.Footprint) {
	u, err := s.ask(ctx)
	if err != nil {
		return f
	}
	return measure(u, helper)
}

// measure looks at the processes of the unit's control group, all but the helper, which stays one. What cannot be found out is
// left out.
func measure(u dbusctl.Unit, helper int) (f upgrade.Footprint) {
	limit := func(n uint64) uint64 { // NoLimit is "none" and "not known" alike
		if n == dbusctl.NoLimit {
			return 0
		}
		return n
	}
	f.High, f.Max, f.Used = limit(u.MemoryHigh), limit(u.MemoryMax), limit(u.MemoryCurrent)
	f.Tasks, f.TasksMax = limit(u.TasksCurrent), limit(u.TasksMax)
	f.HostAvailable = kilobytes("/proc/meminfo", "MemAvailable:")
	if u.ControlGroup == "" {
		return f
	}
	group := filepath.Join(cgroups, u.ControlGroup)
	f.Used = unreclaimable(group, f.Used)
	f.SliceUsed, f.SliceMax = tightest(cgroups, filepath.Dir(u.ControlGroup))
	var pss, rss uint64
	whole := true
	for _, pid := range groupProcesses(group) {
		if pid == helper {
			continue
		}
		f.Processes++
		own := kilobytes(procPath(pid, "smaps_rollup"), "Rss:")
		if own == 0 { // somebody else's process
			whole = false
			own = kilobytes(procPath(pid, "status"), "VmRSS:")
		}
		rss += own
		pss += kilobytes(procPath(pid, "smaps_rollup"), "Pss:")
	}
	f.Generation = pss
	if !whole || pss == 0 {
		f.Generation, f.Resident = rss, true
	}
	return f
}

const cgroups = "/sys/fs/cgroup"

// tightest is the control group from path up to the root that has least memory left of its memory.max; zeros: none has one.
func tightest(root, path string) (used, limit uint64) {
	for ; len(path) > 1; path = filepath.Dir(path) {
		group := filepath.Join(root, path)
		most, now := number(filepath.Join(group, "memory.max")), number(filepath.Join(group, "memory.current"))
		if most == 0 { // "max" is none
			continue
		}
		now = unreclaimable(group, now)
		if limit == 0 || most-min(now, most) < limit-min(used, limit) {
			used, limit = now, most
		}
	}
	return used, limit
}

// unreclaimable is the memory of a control group that uses used, without what the kernel can give back at once.
func unreclaimable(group string, used uint64) uint64 {
	if cached := field(filepath.Join(group, "memory.stat"), "inactive_file"); cached < used {
		return used - cached
	}
	return used
}

// number is the number that a file of the kernel's is; 0 when it is none.
func number(file string) uint64 {
	data, err := os.ReadFile(file)
	if err != nil {
		return 0
	}
	n, _ := strconv.ParseUint(strings.TrimSpace(string(data)), 10, 64)
	return n
}

// groupProcesses are the processes in a control group and below it.
func groupProcesses(group string) (pids []int) {
	filepath.WalkDir(group, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || d.Name() != "cgroup.procs" {
			return nil // what has gone has no processes
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return nil
		}
		for _, word := range strings.Fields(string(data)) {
			if pid, err := strconv.Atoi(word); err == nil && pid > 0 {
				pids = append(pids, pid)
			}
		}
		return nil
	})
	return pids
}

// kilobytes is the value of the line that begins with name, in bytes; 0 when there is none.
func kilobytes(file, name string) uint64 {
	n := field(file, name)
	if n > math.MaxUint64>>10 {
		return 0
	}
	return n << 10
}

// field is the number behind name in a file of the kernel's.
func field(file, name string) uint64 {
	f, err := os.Open(file)
	if err != nil {
		return 0
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		words := strings.Fields(s.Text())
		if len(words) > 1 && words[0] == name {
			n, _ := strconv.ParseUint(words[1], 10, 64)
			return n
		}
	}
	return 0
}

// ticks is how many ticks of /proc/PID/stat make a second: USER_HZ, 100 on all architectures that zdt is built for.
const ticks = 100

// processStart is when a process was started, zero if that cannot be told. It is as exact as a tick, and rounded down.
func processStart(pid int) time.Time {
	p, err := release.ProcOf(pid)
	if err != nil {
		return time.Time{}
	}
	var boot, now unix.Timespec
	if unix.ClockGettime(unix.CLOCK_BOOTTIME, &boot) != nil || unix.ClockGettime(unix.CLOCK_REALTIME, &now) != nil {
		return time.Time{}
	}
	age := time.Duration(boot.Nano()) - time.Duration(p.Start)*(time.Second/ticks)
	return time.Unix(now.Unix()).Add(-age)
}
