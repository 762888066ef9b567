package cmd

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/zdt-dev/zdt/dbusctl"
	"github.com/zdt-dev/zdt/handoffcheck"
	"github.com/zdt-dev/zdt/release"
	"github.com/zdt-dev/zdt/unitgen"
)

// process looks at what the main process was started with.
func (h *host) process(facts *handoffcheck.Facts, u dbusctl.Unit) (unknown []string) {
	var err error
	pid := int(u.MainPID)
	p := &facts.Process
	switch p.NoExec, err = noExecFor(pid, facts.Releases); {
	case errors.Is(err, fs.ErrNotExist):
		facts.Hidden = true
	case err != nil:
		unknown = append(unknown, fmt.Sprintf("what process %d sees of %s: %v", pid, facts.Releases, err))
	}
	if root, err := os.Open(procPath(pid, "root")); err == nil { // it takes the rights of its user, or root's
		root.Close()
		p.Root = procPath(pid, "root")
	}
	if p.UID, p.GIDs, err = runsAs(pid); err == nil {
		p.PID = pid
	}
	_, err = os.Stat(facts.Releases) // none yet: whether they could be executed shows in the unit alone
	p.Mounts = err == nil && len(unknown) == 0 && !facts.Hidden
	if field(procPath(pid, "status"), "Seccomp:") == seccompFilter {
		p.Filter = h.startedFilter(u)
	}
	if !h.f.globals.user { // a user manager cannot do without user namespaces
		own, err := os.Readlink("/proc/1/ns/user")
		if err == nil {
			var its string
			its, err = os.Readlink(procPath(pid, "ns/user"))
			p.Users = err == nil && its != own
		}
		if err != nil {
			unknown = append(unknown, fmt.Sprintf("the user namespace of process %d: %v", pid, err))
		}
	}
	return unknown
}

// seccompFilter is SECCOMP_MODE_FILTER.
const seccompFilter = 2

// startedFilter is SystemCallFilter= as it was when the service was started, if somebody has taken it down.
func (h *host) startedFilter(u dbusctl.Unit) []string {
	store, err := release.Open(h.paths.disk(h.paths.StateDir(h.service)), release.Options{})
	if err != nil {
		return nil
	}
	defer store.Close()
	snap, err := store.Snapshot()
	if err != nil || snap.Invocation != u.InvocationID {
		return nil
	}
	for _, t := range snapshotTexts(snap) {
		if t.Unit == u.Name {
			return unitgen.SystemCallFilter(t.Files)
		}
	}
	return nil
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

// hostRoot reports whether the next process of a unit will see the host's programs and libraries where they are.
func hostRoot(u handoffcheck.Unit) bool {
	hides, _ := u.Properties["TemporaryFileSystem"].([][]any)
	images, _ := u.Properties["MountImages"].([][]any)
	return u.Text("RootDirectory")+u.Text("RootImage") == "" && len(hides)+len(images)+len(u.Texts("InaccessiblePaths"))+len(u.Texts("ExtensionDirectories")) == 0
}

// runsAs are the effective user and all groups of a process.
func runsAs(pid int) (uid uint32, gids []uint32, err error) {
	data, err := os.ReadFile(procPath(pid, "status"))
	if err != nil {
		return 0, nil, err
	}
	known := false
	for line := range strings.Lines(string(data)) {
		key, values, _ := strings.Cut(line, ":")
		for i, text := range strings.Fields(values) { // real, effective, saved, that of the file system
			n, err := strconv.ParseUint(text, 10, 32)
			switch {
			case key != "Uid" && key != "Gid" && key != "Groups":
			case err != nil:
				return 0, nil, err
			case key != "Uid":
				gids = append(gids, uint32(n))
			case i == 1:
				uid, known = uint32(n), true
			}
		}
	}
	if !known {
		err = fmt.Errorf("no effective user in %s", procPath(pid, "status"))
	}
	return uid, gids, err
}

// readEnviron reads the environment that a process was started with, if that can be read: who comes after it has the same.
func readEnviron(p *handoffcheck.Process, pid int) {
	if pid == 0 {
		return
	}
	f, err := os.Open(procPath(pid, "environ"))
	if err != nil {
		return
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, 4<<20))
	if err != nil {
		return
	}
	p.Environ = true
	for text := range strings.SplitSeq(string(data), "\x00") {
		switch name, list, _ := strings.Cut(text, "="); name {
		case "LD_LIBRARY_PATH":
			p.LibraryPath = strings.FieldsFunc(list, func(r rune) bool { return r == ':' || r == ';' })
		case "PATH":
			p.SearchPath = strings.Split(list, ":")
		}
	}
}
