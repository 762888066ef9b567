package handoffcheck

import (
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"runtime"
	"syscall"
)

// The IDs of what can be wrong with a candidate's file.
const (
	CandidateMissing     = "ZDT041" // it cannot be read
	CandidateKind        = "ZDT042" // not a regular file
	CandidateMode        = "ZDT043" // not executable
	CandidateFormat      = "ZDT044" // neither an ELF program nor a script
	CandidateArch        = "ZDT045" // for another architecture
	CandidateInterpreter = "ZDT046" // its interpreter or dynamic loader is not there
)

// Candidate looks at the file that is to become the next release, the way
// execve(2) would: on this host, for this architecture. An archive (.tar, .tar.gz) or a
// directory has nothing that could be executed before it is staged: there is no
// finding about it, and the program of the release is to be looked at.
func Candidate(path string) []Finding { return candidate(path, machine(runtime.GOARCH), os.Stat) }

// candidateChecks are their words; Candidate does the looking.
func candidateChecks() []Check {
	check := func(id, title, why string) Check {
		return Check{ID: id, Severity: Blocker, Family: FamilyCandidate, Title: title, Why: why}
	}
	return []Check{
		check(CandidateMissing, "the file cannot be read", "what cannot be read cannot become a release"),
		check(CandidateKind, "not a regular file", "a release is a program, a directory or an archive"),
		check(CandidateMode, "not executable", "the kernel executes no file without the executable bit"),
		check(CandidateFormat, "not a program", "the kernel executes ELF programs, and scripts that begin with #! and an interpreter"),
		check(CandidateArch, "for another architecture", "a program for another architecture does not run on this host"),
		check(CandidateInterpreter, "its interpreter is not there", "the kernel says \"no such file\" of a program whose interpreter or dynamic loader is absent"),
		{
			ID: "ZDT048", Severity: Blocker, Family: FamilyCandidate, Title: "nothing can be executed where the releases are",
			Why: "each release is executed from its own directory, and the kernel executes nothing from a file system that is mounted noexec",
			More: `Hosts that are hardened by the book have /var on a file system of its own, mounted noexec. zdt stages nothing there. A service
that runs goes on, for its mount namespace is older than the mount option, and does not start again. What the book wants is kept
by a file system for /var/lib/zdt alone.`,
			look: func(f Facts) []sight {
				if f.HostNoExec == "" {
					return nil
				}
				return []sight{{seen: f.Releases + " is on " + f.HostNoExec + ", which is mounted noexec",
					fix: "mount -o remount,exec " + f.HostNoExec + ", and the same in /etc/fstab; or mount a file system of its own on /var/lib/zdt"}}
			},
		},
	}
}

func candidate(path string, want elf.Machine, stat func(string) (fs.FileInfo, error)) []Finding {
	one := func(id string, s Severity, seen, why, fix string) []Finding {
		return []Finding{{ID: id, Severity: s, Seen: seen, Why: why, Fix: fix}}
	}
	// O_NONBLOCK: the open of a FIFO would wait for a writer, for ever and deaf to signals.
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		why := "the file cannot be read"
		if errors.Is(err, fs.ErrNotExist) {
			why = "there is no such file"
		}
		return one(CandidateMissing, Blocker, path, why, "check the path given to --binary")
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return one(CandidateMissing, Blocker, path, err.Error(), "check the path given to --binary")
	}
	if info.IsDir() {
		return nil
	}
	if !info.Mode().IsRegular() {
		return one(CandidateKind, Blocker, fmt.Sprintf("%s (%s)", path, info.Mode()), "not a regular file", "give the program itself")
	}
	head := make([]byte, 512)
	n, _ := io.ReadFull(f, head)
	head = head[:n]
	if isArchive(head) {
		return nil
	}
	if info.Mode()&0o111 == 0 {
		return one(CandidateMode, Blocker, fmt.Sprintf("%s (mode %04o)", path, info.Mode().Perm()), "it is not executable", "is it the right file? then: chmod +x "+path)
	}
	if rest, ok := bytes.CutPrefix(head, []byte("#!")); ok {
		line, _, _ := bytes.Cut(rest, []byte("\n"))
		fields := bytes.Fields(line)
		if len(fields) == 0 {
			return one(CandidateFormat, Blocker, path, "a script without an interpreter", "name one in its first line")
		}
		return interpreter(path, string(fields[0]), stat)
	}
	exe, err := elf.NewFile(f)
	if err != nil {
		return one(CandidateFormat, Blocker, path, "neither an ELF program nor a script that begins with #!", "is it an archive, or was it cut short? build or copy it again")
	}
	defer exe.Close()
	if exe.Type != elf.ET_EXEC && exe.Type != elf.ET_DYN {
		return one(CandidateFormat, Blocker, fmt.Sprintf("%s (%s)", path, exe.Type), "an ELF file, but not a program", "give the linked program")
	}
	if exe.Machine != want {
		return one(CandidateArch, Blocker, fmt.Sprintf("%s (%s)", path, exe.Machine), fmt.Sprintf("it is built for another architecture; this host is %s", want), "build it for GOARCH="+runtime.GOARCH)
	}
	for _, p := range exe.Progs {
		if p.Type != elf.PT_INTERP || p.Filesz == 0 || p.Filesz > 4096 {
			continue
		}
		name, err := io.ReadAll(p.Open())
		if err != nil {
			return one(CandidateFormat, Blocker, path, "its program header cannot be read", "was it cut short? copy it again")
		}
		return interpreter(path, string(bytes.TrimRight(name, "\x00")), stat)
	}
	return nil
}

// isArchive knows the archives that package release unpacks: gzip, and tar since
// POSIX.1-1988. No program begins like them.
func isArchive(head []byte) bool {
	return bytes.HasPrefix(head, []byte("\x1f\x8b")) || len(head) >= 262 && string(head[257:262]) == "ustar"
}

// interpreter checks the program the kernel starts in place of path.
func interpreter(path, name string, stat func(string) (fs.FileInfo, error)) []Finding {
	if _, err := stat(name); err == nil {
		return nil
	}
	return []Finding{{ID: CandidateInterpreter, Severity: Blocker, Seen: fmt.Sprintf("%s (interpreter %s)", path, name),
		Why: "the interpreter is not on this host, so the kernel says \"no such file\" for a file that is there",
		Fix: "install what provides " + name + ", or link statically (CGO_ENABLED=0)"}}
}

// machine is the ELF machine of a GOARCH that zdt is built for.
func machine(goarch string) elf.Machine {
	switch goarch {
	case "amd64":
		return elf.EM_X86_64
	case "arm64":
		return elf.EM_AARCH64
	case "386":
		return elf.EM_386
	case "arm":
		return elf.EM_ARM
	case "riscv64":
		return elf.EM_RISCV
	case "ppc64le", "ppc64":
		return elf.EM_PPC64
	case "s390x":
		return elf.EM_S390
	case "loong64":
		return elf.EM_LOONGARCH
	}
	return elf.EM_NONE
}
