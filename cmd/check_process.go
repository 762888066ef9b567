package cmd

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/zdt-dev/zdt/handoffcheck"
)

// process looks at what the main process was started with.
func (h *host) process(facts *handoffcheck.Facts, pid int) (unknown []string) {
	var err error
	switch facts.Process.NoExec, err = noExecFor(pid, facts.Releases); {
	case errors.Is(err, fs.ErrNotExist):
		facts.Hidden = true
	case err != nil:
		unknown = append(unknown, fmt.Sprintf("what process %d sees of %s: %v", pid, facts.Releases, err))
	}
	if !h.f.globals.user { // a user manager cannot do without user namespaces
		own, err := os.Readlink("/proc/1/ns/user")
		if err == nil {
			var its string
			its, err = os.Readlink(procPath(pid, "ns/user"))
			facts.Process.Users = err == nil && its != own
		}
		if err != nil {
			unknown = append(unknown, fmt.Sprintf("the user namespace of process %d: %v", pid, err))
		}
	}
	return unknown
}

// hostNoExec is where the file system is mounted that a directory is on, if that is mounted noexec.
func hostNoExec(dir string) (mount string) {
	var st unix.Statfs_t
	if unix.Statfs(dir, &st) != nil || st.Flags&unix.ST_NOEXEC == 0 {
		return ""
	}
	mount = "/"
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return mount
	}
	for line := range strings.Lines(string(data)) {
		f := strings.Fields(line) // ID, parent, device, root, mount point, …
		if len(f) > 4 && (dir == f[4] || strings.HasPrefix(dir, f[4]+"/")) && len(f[4]) >= len(mount) {
			mount = f[4]
		}
	}
	return mount
}

// noExecFor looks at a directory of the host where a process would find it. The error is fs.ErrNotExist if it does not. The root directory
// of the process is followed as a whole, by openat2 (Linux 5.6): what the service's user has put into it leads nowhere else.
func noExecFor(pid int, dir string) (bool, error) {
	if _, err := os.Stat(dir); err != nil {
		return false, nil // no release yet: nobody sees it
	}
	root, err := os.Open(procPath(pid, "root"))
	if err != nil {
		return false, fmt.Errorf("%v", err) // it has ended: that says nothing about dir
	}
	defer root.Close()
	fd, err := unix.Openat2(int(root.Fd()), dir, &unix.OpenHow{
		Flags: unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	})
	if err != nil {
		return false, &fs.PathError{Op: "open", Path: dir, Err: err}
	}
	defer unix.Close(fd)
	var st unix.Statfs_t
	if err := unix.Fstatfs(fd, &st); err != nil {
		return false, &fs.PathError{Op: "statfs", Path: dir, Err: err}
	}
	return st.Flags&unix.ST_NOEXEC != 0, nil
}
