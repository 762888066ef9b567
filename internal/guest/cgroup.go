package guest

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// cgroupPrefix starts the name of every guest's cgroup; identity follows.
const cgroupPrefix = "zdt-guest."

// cgroupRoot finds the cgroup2 mount: /sys/fs/cgroup on a unified host, /sys/fs/cgroup/unified on a hybrid one.
func cgroupRoot() (string, error) {
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return "", err
	}
	dir := cgroup2Mount(string(data))
	if dir == "" {
		return "", errors.New("this host has no cgroup2 mount")
	}
	return dir, nil
}

// cgroup2Mount returns the first mount point of a cgroup2 file system in the text of a mountinfo file.
func cgroup2Mount(mountinfo string) string {
	for line := range strings.Lines(mountinfo) {
		// 30 24 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw
		mount, super, ok := strings.Cut(line, " - ")
		f := strings.Fields(mount)
		if ok && strings.HasPrefix(super, "cgroup2 ") && len(f) > 4 {
			return f[4]
		}
	}
	return ""
}

// owner identifies a process for ever: a pid alone is reused, and means nothing in another pid namespace.
type owner struct {
	pidns uint64 // inode of the pid namespace
	pid   int
	start uint64 // start time in clock ticks since boot, field 22 of /proc/PID/stat
}

func self() (owner, error) {
	var st unix.Stat_t
	if err := unix.Stat("/proc/self/ns/pid", &st); err != nil {
		return owner{}, err
	}
	start, err := startTime(os.Getpid())
	return owner{pidns: st.Ino, pid: os.Getpid(), start: start}, err
}

// cgroupName names the cgroup of the owner's guest with that id.
func (o owner) cgroupName(id string) string {
	return fmt.Sprintf("%s%d.%d.%d.%s", cgroupPrefix, o.pidns, o.pid, o.start, id)
}

// parseCgroupName is the inverse of cgroupName.
func parseCgroupName(name string) (o owner, ok bool) {
	rest, ok := strings.CutPrefix(name, cgroupPrefix)
	f := strings.Split(rest, ".")
	if !ok || len(f) != 4 {
		return owner{}, false
	}
	var errs [3]error
	o.pidns, errs[0] = strconv.ParseUint(f[0], 10, 64)
	o.pid, errs[1] = strconv.Atoi(f[1])
	o.start, errs[2] = strconv.ParseUint(f[2], 10, 64)
	return o, errors.Join(errs[:]...) == nil && o.pid > 0
}

// startTime returns when the process started, in clock ticks since boot. A zombie still has one.
func startTime(pid int) (uint64, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	// The second field is the command in parentheses and may hold anything, parentheses included.
	f := strings.Fields(string(data[strings.LastIndexByte(string(data), ')')+1:]))
	if len(f) < 20 {
		return 0, fmt.Errorf("process %d: short stat line", pid)
	}
	return strconv.ParseUint(f[19], 10, 64)
}

// sweepCgroups removes the cgroups of guests whose creator is provably dead and that have no process left. A guest that
// was kept on purpose has processes; a cgroup of another pid namespace proves nothing here.
func sweepCgroups(root string, me owner) {
	dirs, _ := filepath.Glob(filepath.Join(root, cgroupPrefix+"*"))
	for _, dir := range dirs {
		o, ok := parseCgroupName(filepath.Base(dir))
		if !ok || o.pidns != me.pidns || o == (owner{me.pidns, me.pid, me.start}) {
			continue
		}
		start, err := startTime(o.pid)
		dead := errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ESRCH) || err == nil && start != o.start
		if dead && !populated(dir) {
			// Somebody else may sweep the same one; whoever is left with an error has nothing to do.
			_ = removeTree(dir)
		}
	}
}

// populated tells whether the cgroup or one below has a process.
func populated(dir string) bool {
	data, err := os.ReadFile(filepath.Join(dir, "cgroup.events"))
	return err == nil && strings.Contains(string(data), "populated 1")
}

// removeTree removes a cgroup and those below it, depth first. Only rmdir works there: the files cannot be removed.
func removeTree(dir string) error {
	var dirs []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			return err
		}
		if d.IsDir() {
			dirs = append(dirs, path)
		}
		return nil
	})
	slices.Reverse(dirs) // WalkDir names a parent before its children
	errs := []error{err}
	for _, d := range dirs {
		if err := os.Remove(d); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// removeCgroup removes the cgroup of a guest that has ended. The kernel takes a process out of its cgroup a moment
// after its parent has reaped it, so EBUSY is waited out, for two seconds.
func removeCgroup(dir string) error {
	deadline := time.Now().Add(2 * time.Second)
	for {
		err := removeTree(dir)
		if err == nil || time.Now().After(deadline) {
			return err
		}
		time.Sleep(5 * time.Millisecond)
	}
}
