package sockowner

import (
	"bytes"
	"os"
	"strconv"
)

// Process is what of a line of the process table says to whom a process belongs.
type Process struct {
	PID, Parent, Group int
}

// Members are the leader, the processes of the group it leads, and whoever descends from one of them. Who left the group
// and has lost its parent is not told from others.
func Members(leader int, table []Process) []int {
	if leader < 1 {
		return nil // 0 is the group of the kernel's threads
	}
	children := map[int][]int{}
	var pids []int
	seen := map[int]bool{}
	for _, p := range table {
		children[p.Parent] = append(children[p.Parent], p.PID)
		if p.Group == leader || p.PID == leader {
			pids, seen[p.PID] = append(pids, p.PID), true
		}
	}
	for i := 0; i < len(pids); i++ {
		for _, child := range children[pids[i]] {
			if !seen[child] {
				pids, seen[child] = append(pids, child), true
			}
		}
	}
	return pids
}

// Table reads the process table, as far as /proc shows it.
func Table() []Process {
	dir, err := os.Open("/proc")
	if err != nil {
		return nil
	}
	defer dir.Close()
	names, _ := dir.Readdirnames(-1)
	var all []Process
	for _, name := range names {
		pid, err := strconv.Atoi(name)
		if err != nil {
			continue
		}
		if stat, err := os.ReadFile("/proc/" + name + "/stat"); err == nil {
			if p, ok := parseStat(stat); ok {
				p.PID = pid
				all = append(all, p)
			}
		}
	}
	return all
}

// parseStat reads state, parent and group of proc_pid_stat(5). The command before them, in parentheses, may hold
// anything, parentheses too.
func parseStat(stat []byte) (p Process, ok bool) {
	fields := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
	if len(fields) < 3 {
		return Process{}, false
	}
	parent, parentErr := strconv.Atoi(string(fields[1]))
	group, groupErr := strconv.Atoi(string(fields[2]))
	if parentErr != nil || groupErr != nil {
		return Process{}, false
	}
	return Process{Parent: parent, Group: group}, true
}

// ancestry bounds how far up Belongs looks.
const ancestry = 64

// Belongs reports whether the process is the leader, of the group it leads, or descends from one of these. A process
// that is gone does not.
func Belongs(pid, leader int) bool {
	for range ancestry {
		if pid == leader && pid > 0 {
			return true
		}
		if pid <= 1 {
			return false
		}
		stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
		if err != nil {
			return false
		}
		p, ok := parseStat(stat)
		if !ok || p.Group == leader && leader > 0 {
			return ok
		}
		pid = p.Parent
	}
	return false
}
