package cmd

import (
	"bufio"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/zdt-dev/zdt/dbusctl"
	"github.com/zdt-dev/zdt/handoff/control"
	"github.com/zdt-dev/zdt/handoffcheck"
)

// fewTasks is the limit of a user's tasks up to which they are counted, for which every process of the host is looked at. One that
// nobody has set is half of what the kernel allows for the host, and far above.
const fewTasks = 4096

// resources are what the service takes and what there is. What cannot be found out is left out, and named.
func (h *host) resources(u dbusctl.Unit, s control.Status) (r handoffcheck.Resources, unknown []string) {
	helper := 0
	if isHelper(s) {
		helper = s.PID
	}
	f := measure(u, helper)
	r.Memory, r.MemoryUsed, r.MemoryMax, r.MemoryHigh = f.Generation, f.Used, f.Max, f.High
	r.Tasks, r.TasksMax = f.Tasks, f.TasksMax
	if r.Tasks == 0 { // without the pids controller
		for _, pid := range groupProcesses(filepath.Join(cgroups, u.ControlGroup)) {
			r.Tasks += field(procPath(pid, "status"), "Threads:")
		}
	}

	for _, pid := range []int{int(u.MainPID), serving(s)} {
		if pid == 0 {
			continue
		}
		open, most, err := descriptors(pid)
		switch {
		case err != nil:
			unknown = append(unknown, fmt.Sprintf("the descriptors of process %d: %v", pid, err))
		case r.FilesMax == 0 || most-min(open, most) < r.FilesMax-min(r.Files, r.FilesMax):
			r.Files, r.FilesMax = open, most
		}
	}
	if most, err := softLimit(int(u.MainPID), "Max processes"); err == nil && most <= fewTasks && u.UID != 0 && u.UID != dbusctl.NoUID {
		r.UserTasksMax, r.UserTasks = most, tasksOf(u.UID)
	}

	current := filepath.Join(h.paths.StateDir(h.service), "current")
	if free, ok := room(current); ok {
		r.Release, r.ReleasesFree = sizeOf(current), free
	}
	return r, unknown
}

// descriptors are how many a process has open, and may have.
func descriptors(pid int) (open, most uint64, err error) {
	if most, err = softLimit(pid, "Max open files"); err != nil || most == 0 {
		return 0, 0, err
	}
	dir := procPath(pid, "fd")
	if st, err := os.Stat(dir); err == nil && st.Size() > 0 { // since Linux 6.2
		return uint64(st.Size()), most, nil
	}
	d, err := os.Open(dir)
	if err != nil {
		return 0, 0, err
	}
	defer d.Close()
	names, err := d.Readdirnames(-1)
	return uint64(len(names)), most, err
}

// softLimit is a limit of a process as /proc/PID/limits has it under name; 0 for none.
func softLimit(pid int, name string) (uint64, error) {
	f, err := os.Open(procPath(pid, "limits"))
	if err != nil {
		return 0, err
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		values, ok := strings.CutPrefix(s.Text(), name+" ")
		if !ok {
			continue
		}
		soft, _, _ := strings.Cut(strings.TrimSpace(values), " ")
		if soft == "unlimited" {
			return 0, nil
		}
		return strconv.ParseUint(soft, 10, 64)
	}
	return 0, fmt.Errorf("no %q in %s", name, f.Name())
}

// tasksOf counts the processes and threads of a user, by the real user ID as the kernel does.
func tasksOf(uid uint32) (n uint64) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return 0
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		if status := procPath(pid, "status"); field(status, "Threads:") > 0 && field(status, "Uid:") == uint64(uid) {
			n += field(status, "Threads:")
		}
	}
	return n
}

// room is what root may still write to the file system of path, which has no such limit where it has no blocks.
func room(path string) (free uint64, ok bool) {
	var st unix.Statfs_t
	if unix.Statfs(path, &st) != nil || st.Blocks == 0 {
		return 0, false
	}
	return st.Bfree * uint64(st.Bsize), true
}

// sizeOf is the size of the files below what a link of zdt's own points to.
func sizeOf(link string) (n uint64) {
	dir, err := filepath.EvalSymlinks(link)
	if err != nil {
		return 0
	}
	filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return nil
		}
		if info, err := d.Info(); err == nil {
			n += uint64(info.Size())
		}
		return nil
	})
	return n
}
