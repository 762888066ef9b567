package release

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// users are the processes that may use a release. What is the same for all
// releases is found out once, when it is needed.
type users struct {
	releases *os.File
	running  func() (map[inode]bool, error)
	named    func() (map[string]bool, error)
}

func newUsers(releases *os.File) *users {
	return &users{
		releases: releases,
		running:  sync.OnceValues(func() (map[inode]bool, error) { return executing(releases) }),
		named:    sync.OnceValues(func() (map[string]bool, error) { return namedByProcesses(releases) }),
	}
}

// of tells whether a process executes a file of the release, has one open, or names it.
// It looks at all files, so that it also works for a damaged release.
func (u *users) of(ctx context.Context, id string) (bool, error) {
	ids, err := u.named()
	if err != nil || ids[id] {
		return ids[id], err
	}
	d, err := openDirAt(int(u.releases.Fd()), id, id)
	if errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
		return false, nil // a planted link or file
	}
	if err != nil {
		return false, err
	}
	defer d.Close()
	return dirInUse(ctx, d, u.running)
}

func dirInUse(ctx context.Context, d *os.File, running func() (map[inode]bool, error)) (bool, error) {
	entries, err := d.ReadDir(-1)
	if err != nil {
		return false, err
	}
	for _, e := range entries {
		if err := ctx.Err(); err != nil {
			return false, err
		}
		var used bool
		switch {
		case e.IsDir():
			var sub *os.File
			if sub, err = openDirAt(int(d.Fd()), e.Name(), d.Name()+"/"+e.Name()); err == nil {
				used, err = dirInUse(ctx, sub, running)
				sub.Close()
			}
		case e.Type()&fs.ModeSymlink == 0:
			used, err = fileInUse(d, e.Name(), running)
		}
		if err != nil || used {
			return used, err
		}
	}
	return false, nil
}

// fileInUse asks the file, not the processes: the kernel gives a write lease
// only if nobody else has the file open, and a program that runs is open. That
// sees into other pid and mount namespaces, and needs no CAP_SYS_PTRACE, without
// which even root cannot read /proc/PID/exe. Where there are no leases (NFS),
// /proc must do.
func fileInUse(d *os.File, name string, running func() (map[inode]bool, error)) (bool, error) {
	fd, err := unix.Openat(int(d.Fd()), name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ELOOP) || errors.Is(err, unix.ENXIO) || errors.Is(err, unix.ENOENT) {
		return false, nil // a link, a socket: nothing to execute
	}
	if errors.Is(err, unix.EACCES) && os.Geteuid() != 0 { // 0600, a dry run of somebody else
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("open %s/%s: %w", d.Name(), name, err)
	}
	defer unix.Close(fd) // ends the lease
	_, err = unix.FcntlInt(uintptr(fd), unix.F_SETLEASE, unix.F_WRLCK)
	if err == nil || errors.Is(err, unix.EAGAIN) {
		return err != nil, nil
	}
	inodes, err := running()
	if err != nil {
		return false, err
	}
	id, err := statInode(fd, "", unix.AT_EMPTY_PATH, unix.STATX_INO)
	return inodes[id], err
}

// An inode names a file whatever its path, also in another mount namespace.
type inode struct {
	major, minor uint32
	ino          uint64
}

// statInode does not follow a link in the last element unless flags say so.
func statInode(dirfd int, path string, flags, mask int) (inode, error) {
	var st unix.Statx_t
	// DONT_SYNC: do not wait for a file server that is gone.
	if err := unix.Statx(dirfd, path, flags|unix.AT_STATX_DONT_SYNC, mask, &st); err != nil {
		return inode{}, err
	}
	return inode{st.Dev_major, st.Dev_minor, st.Ino}, nil
}

// executing returns the inodes that processes execute, as far as they can be in
// the directory releases. Other users' programs are left out for all but root.
func executing(releases *os.File) (map[inode]bool, error) {
	store, err := statInode(int(releases.Fd()), "", unix.AT_EMPTY_PATH, unix.STATX_INO)
	if err != nil {
		return nil, err
	}
	proc, err := os.Open("/proc")
	if err != nil {
		return nil, err
	}
	defer proc.Close()
	names, err := proc.Readdirnames(-1)
	if err != nil {
		return nil, err
	}
	running := make(map[inode]bool)
	for _, n := range names {
		if _, err := strconv.Atoi(n); err != nil {
			continue
		}
		exe := "/proc/" + n + "/exe"
		id, err := statInode(unix.AT_FDCWD, exe, 0, unix.STATX_INO)
		if err == nil {
			running[id] = true
			continue
		}
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ESRCH) {
			continue // a kernel thread, or gone
		}
		if os.Geteuid() != 0 && errors.Is(err, unix.EACCES) {
			continue
		}
		// A program on somebody's FUSE mount is closed even to root, but its
		// device is told to who asks for nothing else.
		if id, devErr := statInode(unix.AT_FDCWD, exe, 0, 0); devErr == nil &&
			(id.major != store.major || id.minor != store.minor) {
			continue
		}
		return nil, fmt.Errorf("see what process %s executes: %w", n, err)
	}
	return running, nil
}

// namedByProcesses returns the IDs of the releases that processes have in their
// command line, or as their directory: the script of an interpreter is not open
// while it runs. Anybody can name anything there, which only keeps a release.
func namedByProcesses(releases *os.File) (map[string]bool, error) {
	dir := releases.Name()
	if real, err := filepath.EvalSymlinks(dir); err == nil {
		dir = real
	}
	prefixes := []string{dir + "/", releases.Name() + "/"}
	proc, err := os.Open("/proc")
	if err != nil {
		return nil, err
	}
	defer proc.Close()
	names, err := proc.Readdirnames(-1)
	if err != nil {
		return nil, err
	}
	ids := make(map[string]bool)
	note := func(text string) {
		for _, prefix := range prefixes {
			for rest := text; ; {
				_, after, found := strings.Cut(rest, prefix)
				if !found {
					break
				}
				if id := after[:min(len(after), len(idTime)+13)]; ValidID(id) {
					ids[id] = true
				}
				rest = after
			}
		}
	}
	for _, n := range names {
		if _, err := strconv.Atoi(n); err != nil {
			continue
		}
		// What cannot be read has ended, or is another user's with hidepid=: then the
		// files decide alone.
		if f, err := os.Open("/proc/" + n + "/cmdline"); err == nil {
			line, _ := io.ReadAll(io.LimitReader(f, maxRecord))
			f.Close()
			note(string(line))
		}
		if cwd, err := os.Readlink("/proc/" + n + "/cwd"); err == nil {
			note(cwd + "/")
		}
	}
	return ids, nil
}
