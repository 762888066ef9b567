package handoffcheck

import (
	"bytes"
	"debug/buildinfo"
	"debug/elf"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// The IDs of what can be wrong with a candidate's file for one service.
const (
	CandidateLibraries    = "ZDT047" // shared libraries are not there
	CandidateExchangeable = "ZDT049" // the service's user can write it
	CandidateWithout      = "ZDT050" // a Go program without handoff
	CandidateCapabilities = "ZDT051" // its capabilities are not taken over
)

// inheritance is in every program that can take over from another one: the protocol begins with this variable.
const inheritance = "ZDT_PREDECESSOR_FD"

// CandidateFor is Candidate for a file that is to become a release of a service: it looks for what the program needs where the service
// would, and for what the service makes of it.
func CandidateFor(path string, f Facts) []Finding {
	stat := tree{f.Process.Root}.stat
	if f.Process.Root == "" { // nobody knows what will be there
		stat = func(string) (os.FileInfo, error) { return nil, nil }
	}
	found := candidate(path, machine(runtime.GOARCH), stat)
	if len(found) > 0 {
		if found[0].ID == CandidateInterpreter && len(Candidate(path)) == 0 {
			found[0].Why = "the interpreter is on this host, but not where the service runs, and the kernel says \"no such file\" of the program"
			found[0].Fix = "make it visible for " + f.Service.Name + " (BindReadOnlyPaths=), or link statically (CGO_ENABLED=0)"
		}
		return found
	}
	add := func(id string, all []sight) {
		c, _ := Find(id)
		for _, s := range all {
			found = append(found, c.finding(s))
		}
	}
	add(CandidateExchangeable, f.exchangeable(path))
	file, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return found
	}
	defer file.Close()
	if info, err := file.Stat(); err != nil || !info.Mode().IsRegular() {
		return found
	}
	add(CandidateCapabilities, f.capabilities(path, file))
	exe, err := elf.NewFile(file)
	if err != nil {
		return append(found, f.script(path, file)...)
	}
	add(CandidateLibraries, f.libraries(path, exe))
	add(CandidateWithout, f.without(path, file))
	return found
}

// serviceCandidateChecks are their words.
func serviceCandidateChecks() []Check {
	return []Check{
		{
			ID: CandidateLibraries, Severity: Blocker, Family: FamilyCandidate, Title: "shared libraries are missing",
			Why: "the dynamic loader ends a program whose libraries it does not find, before the program's first line",
			More: `They are looked for where the service would find them: in its root directory, by its LD_LIBRARY_PATH=, by the run path of the
program and of its libraries, and in ld.so.cache. What lies beside the program is not there any more when a single file becomes a
release: with $ORIGIN in its run path it needs a directory or an archive.`,
		},
		{
			ID: CandidateExchangeable, Severity: Risk, Family: FamilyCandidate, Title: "the service can exchange its next release",
			Why: "whoever gets hold of the running program chooses what the upgrade installs, and keeps it through that",
			More: `A release belongs to root and nobody can change it; the file that it is copied from belongs to whom it was given to. What
the sandbox of the service makes read-only or invisible does not count: the service cannot write there.`,
		},
		{
			ID: CandidateWithout, Severity: Risk, handoff: true, Family: FamilyCandidate, Title: "the program cannot take over",
			Why: "the service hands over to a program that says when it is READY, and this one has nothing of handoff in it: it is ended when its time is up",
			More: `The service that runs was built with the library. A Go program without it neither finds its predecessor nor its sockets. Under
` + "`zdt run`" + ` it would need no library.`,
		},
		{
			ID: CandidateCapabilities, Severity: Risk, Family: FamilyCandidate, Title: "file capabilities are not taken over",
			Why: "a release is a copy without them, and with NoNewPrivileges=yes the kernel would not honour them either",
			More: `A program that binds a port below 1024 by setcap(8) gets the port from its socket unit and needs no capability for it. What it
needs others for is given to it by AmbientCapabilities=, from the next start of the service on.`,
		},
	}
}

// libraries are those that the program does not find.
func (f Facts) libraries(path string, exe *elf.File) []sight {
	if f.Process.Root == "" || !f.Process.Environ {
		return nil
	}
	l, ok := newLoader(tree{f.Process.Root}, interpreterOf(exe), f.Process.LibraryPath)
	if !ok {
		return nil
	}
	// A release is a directory of its own; only one that is staged has anything beside the program.
	origin := filepath.Join(f.Releases, "next")
	if file, err := filepath.EvalSymlinks(path); err == nil && deepest([]string{f.Releases}, file) > 0 {
		origin = filepath.Dir(file) // the kernel goes by the file, not by the link to it
	}
	none := l.missing(exe, origin)
	if len(none) == 0 {
		return nil
	}
	fix := "install what provides " + none[0]
	if f.Service.Text("RootDirectory")+f.Service.Text("RootImage") != "" {
		fix += " in the root directory of the service"
	}
	near, _ := filepath.Glob(filepath.Join(filepath.Dir(path), "*", none[0]))
	if _, err := os.Stat(filepath.Join(filepath.Dir(path), none[0])); err == nil || len(near) > 0 {
		fix = "make a directory or a tar of the program and its libraries, and give that to --binary"
	}
	return []sight{{seen: path + " needs " + strings.Join(none, " "), fix: fix + "; or link statically (CGO_ENABLED=0)"}}
}

// script finds a script that leaves it to env(1) where its interpreter is.
func (f Facts) script(path string, file *os.File) []Finding {
	head := make([]byte, 256) // of more the kernel takes no notice
	n, _ := file.ReadAt(head, 0)
	line, _, _ := strings.Cut(string(head[:n]), "\n")
	words := strings.Fields(strings.TrimPrefix(line, "#!"))
	if len(words) > 2 && words[1] == "-S" {
		words = append(words[:1], words[2])
	}
	if !strings.HasPrefix(line, "#!") || len(words) != 2 || filepath.Base(words[0]) != "env" || strings.HasPrefix(words[1], "-") || strings.ContainsAny(words[1], "=/$'\"\\") {
		return nil
	}
	if f.Process.Root == "" || len(f.Process.SearchPath) == 0 {
		return nil
	}
	for _, dir := range f.Process.SearchPath {
		if !filepath.IsAbs(dir) || (tree{f.Process.Root}).has(filepath.Join(dir, words[1])) {
			return nil
		}
	}
	return []Finding{{ID: CandidateInterpreter, Severity: Blocker, Seen: fmt.Sprintf("%s (%s)", path, line),
		Why: fmt.Sprintf("env finds no %s where %s runs, in PATH=%s", words[1], f.Service.Name, strings.Join(f.Process.SearchPath, ":")),
		Fix: fmt.Sprintf("install %s, or have Environment=PATH= of %s lead to it", words[1], f.Service.Name)}}
}

// interpreterOf is the dynamic loader of a program, "" if it has none.
func interpreterOf(exe *elf.File) string {
	for _, p := range exe.Progs {
		if p.Type == elf.PT_INTERP && p.Filesz <= 4096 {
			name, _ := io.ReadAll(p.Open())
			return string(bytes.TrimRight(name, "\x00"))
		}
	}
	return ""
}

// without finds a Go program that cannot take over from the one that runs.
func (f Facts) without(path string, file *os.File) []sight {
	if f.Helper || f.Runtime.Version == 0 {
		return nil
	}
	info, err := buildinfo.Read(file)
	if err != nil {
		return nil // another language, or packed
	}
	if _, err := file.Seek(0, io.SeekStart); err != nil || contains(file, inheritance) {
		return nil
	}
	return []sight{{seen: fmt.Sprintf("%s (%s, %s) is built without handoff", path, info.Path, info.GoVersion),
		fix: "is it the right program? then build it with the library, or make it a service of zdt run: zdt init " + f.name() + " --runtime helper"}}
}

// contains reports whether text is in what is left to read, or may be.
func contains(r io.Reader, text string) bool {
	buf := make([]byte, 1<<20)
	kept := 0
	for {
		n, err := io.ReadFull(r, buf[kept:])
		if bytes.Contains(buf[:kept+n], []byte(text)) {
			return true
		}
		if err != nil {
			return err != io.EOF && err != io.ErrUnexpectedEOF
		}
		kept = copy(buf, buf[len(buf)-len(text):])
	}
}

// exchangeable finds what the running service can write on the way to a file.
func (f Facts) exchangeable(path string) []sight {
	p := f.Process
	if p.PID == 0 || p.UID == 0 {
		return nil
	}
	at := p.writable(path)
	if at == "" {
		return nil
	}
	return []sight{{seen: fmt.Sprintf("%s can be written by uid %d, as which %s runs", at, p.UID, f.Service.Name),
		fix: "put the file where only root can write; or say which content is meant, with --sha256"}}
}

// maxLinks is the number of symbolic links that are followed, the same as the kernel's MAXSYMLINKS.
const maxLinks = 40

// writable is the first thing on the way to path that the process can write, "" if there is none.
func (p Process) writable(path string) string {
	path, err := filepath.Abs(path)
	if err != nil {
		return ""
	}
	at, rest := "/", strings.Split(path, "/")
	for links := 0; len(rest) > 0 && links < maxLinks; {
		name := rest[0]
		rest = rest[1:]
		if name == "" || name == "." {
			continue
		}
		if name == ".." {
			at = filepath.Dir(at)
			continue
		}
		next := filepath.Join(at, name)
		var dir, st unix.Stat_t
		if unix.Lstat(at, &dir) != nil || unix.Lstat(next, &st) != nil {
			return ""
		}
		sticky := dir.Mode&unix.S_ISVTX != 0 && dir.Uid != p.UID && st.Uid != p.UID
		if !sticky && p.mayWrite(&dir) && p.sees(at, &dir) {
			return at
		}
		if st.Mode&unix.S_IFMT == unix.S_IFLNK {
			target, err := os.Readlink(next)
			if err != nil {
				return ""
			}
			links++
			if filepath.IsAbs(target) {
				at = "/"
			}
			rest = append(strings.Split(target, "/"), rest...)
			continue
		}
		at = next
	}
	var st unix.Stat_t
	if unix.Lstat(at, &st) == nil && p.mayWrite(&st) && p.sees(at, &st) {
		return at
	}
	return ""
}

// mayWrite goes by owner and mode: who owns a file can make it writable.
func (p Process) mayWrite(st *unix.Stat_t) bool {
	switch {
	case st.Uid == p.UID:
		return true
	case slices.Contains(p.GIDs, st.Gid):
		return st.Mode&0o020 != 0
	}
	return st.Mode&0o002 != 0
}

// sees reports whether the process has the same file at this place, on a mount that can be written.
func (p Process) sees(path string, st *unix.Stat_t) bool {
	f, err := tree{p.Root}.open(path, unix.O_PATH)
	if err != nil {
		return false
	}
	defer f.Close()
	var its unix.Stat_t
	var mount unix.Statfs_t
	return unix.Fstat(int(f.Fd()), &its) == nil && its.Dev == st.Dev && its.Ino == st.Ino &&
		unix.Fstatfs(int(f.Fd()), &mount) == nil && mount.Flags&unix.ST_RDONLY == 0
}

// capabilities finds those of the file that the service does not have anyway.
func (f Facts) capabilities(path string, file *os.File) []sight {
	have, bound := f.Service.Number("AmbientCapabilities"), f.Service.Number("CapabilityBoundingSet")
	if f.Process.PID != 0 && f.Process.UID == 0 {
		have = bound
	}
	wanted := fileCapabilities(file) &^ have
	if wanted == 0 || !f.Service.Has("AmbientCapabilities") {
		return nil
	}
	names := capabilityNames(wanted)
	lines := []string{"AmbientCapabilities=" + names}
	if wanted&^bound != 0 {
		lines = append(lines, "CapabilityBoundingSet="+names)
	}
	return f.service(path+" has "+names, lines...)
}

// fileCapabilities are the permitted ones of a file: struct vfs_cap_data of the kernel, in its versions 2 and 3.
func fileCapabilities(file *os.File) uint64 {
	var b [24]byte
	n, err := unix.Fgetxattr(int(file.Fd()), "security.capability", b[:])
	if err != nil || n < 20 {
		return 0
	}
	return uint64(binary.LittleEndian.Uint32(b[4:])) | uint64(binary.LittleEndian.Uint32(b[12:]))<<32
}

// capabilityNames are the names of a set, as unit files have them.
func capabilityNames(set uint64) string {
	names := strings.Fields(`CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE
NET_BIND_SERVICE NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT SYS_PTRACE SYS_PACCT SYS_ADMIN
SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL SETFCAP MAC_OVERRIDE MAC_ADMIN SYSLOG
WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON BPF CHECKPOINT_RESTORE`)
	var all []string
	for i, name := range names {
		if set&(1<<i) != 0 {
			all = append(all, "CAP_"+name)
		}
	}
	return strings.Join(all, " ")
}
