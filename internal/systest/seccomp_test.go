package systest

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// containerCalls are the system calls that the engines of containers allow by default to a container without privileges
// (Docker and containerd; Podman's list is longer), as far as 64-bit programs on x86 and ARM have them, by what they are about. The
// source is profiles/seccomp/default.json of github.com/moby/moby. io_uring is left out, as newer engines leave it out. What is
// allowed with certain arguments alone is in containerFilter.
func containerCalls() map[string]string {
	return map[string]string{
		"sockets": `accept accept4 bind connect getpeername getsockname getsockopt listen recvfrom recvmmsg recvmsg sendmmsg sendmsg sendto
		setsockopt shutdown socketpair`,
		"descriptors": `close close_range copy_file_range dup dup2 dup3 epoll_create epoll_create1 epoll_ctl epoll_ctl_old epoll_pwait
		epoll_pwait2 epoll_wait epoll_wait_old eventfd eventfd2 fcntl flock ioctl memfd_create memfd_secret pipe pipe2 poll ppoll
		pselect6 select sendfile signalfd signalfd4 splice tee timerfd_create timerfd_gettime timerfd_settime vmsplice`,
		"files": `access chdir chmod chown creat faccessat faccessat2 fadvise64 fallocate fanotify_mark fchdir fchmod fchmodat fchown
		fchownat fdatasync fgetxattr flistxattr fremovexattr fsetxattr fstat fstatfs fsync ftruncate futimesat getcwd getdents
		getdents64 getxattr inotify_add_watch inotify_init inotify_init1 inotify_rm_watch io_cancel io_destroy io_getevents
		io_pgetevents io_setup io_submit lchown lgetxattr link linkat listxattr llistxattr lremovexattr lseek lsetxattr lstat mkdir
		mkdirat mknod mknodat name_to_handle_at newfstatat fstatat open openat openat2 pread64 preadv preadv2 pwrite64 pwritev
		pwritev2 read readahead readlink readlinkat readv removexattr rename renameat renameat2 rmdir setxattr stat statfs statx
		symlink symlinkat sync sync_file_range syncfs truncate umask unlink unlinkat utime utimensat utimes write writev`,
		"memory": `brk madvise membarrier mincore mlock mlock2 mlockall mmap mprotect mremap msync munlock munlockall munmap pkey_alloc
		pkey_free pkey_mprotect remap_file_pages`,
		"processes": `alarm arch_prctl capget capset execve execveat exit exit_group fork futex futex_waitv get_robust_list get_thread_area
		getcpu getegid geteuid getgid getgroups getitimer getpgid getpgrp getpid getppid getpriority getresgid getresuid getrlimit
		getrusage getsid gettid getuid ioprio_get ioprio_set kill landlock_add_rule landlock_create_ruleset landlock_restrict_self
		modify_ldt pause pidfd_open pidfd_send_signal prctl prlimit64 process_mrelease process_vm_readv process_vm_writev ptrace
		restart_syscall rseq rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait
		rt_tgsigqueueinfo sched_get_priority_max sched_get_priority_min sched_getaffinity sched_getattr sched_getparam
		sched_getscheduler sched_rr_get_interval sched_setaffinity sched_setattr sched_setparam sched_setscheduler sched_yield seccomp
		set_robust_list set_thread_area set_tid_address setfsgid setfsuid setgid setgroups setitimer setpgid setpriority setregid
		setresgid setresuid setreuid setrlimit setsid setuid sigaltstack tgkill tkill vfork wait4 waitid`,
		"time and the system": `adjtimex clock_adjtime clock_getres clock_gettime clock_nanosleep getrandom gettimeofday nanosleep sysinfo
		time timer_create timer_delete timer_getoverrun timer_gettime timer_settime times uname`,
		"messages": `mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedsend mq_unlink msgctl msgget msgrcv msgsnd semctl semget semop
		semtimedop shmat shmctl shmdt shmget`,
	}
}

// containerFilter is the default seccomp filter of those engines, as a file for the program confine: what is not allowed
// fails with EPERM; clone3 with ENOSYS, so that libraries use clone, of which the arguments can be looked at: no new namespaces.
func containerFilter(t *testing.T) string {
	return build(t, "container.bpf", func(out string) error {
		numbers, err := callNumbers()
		if err != nil {
			return err
		}
		const (
			nr, arch, arg0 = 0, 4, 16                // offsets in struct seccomp_data; arg0's lower half
			namespaces     = 0x7e020000              // CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET
			denied         = 0x00050000 | uint32(1)  // SECCOMP_RET_ERRNO, EPERM
			missing        = 0x00050000 | uint32(38) // ENOSYS
			allowed        = 0x7fff0000              // SECCOMP_RET_ALLOW
		)
		var p []unix.SockFilter
		load := func(offset uint32) {
			p = append(p, unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: offset})
		}
		jump := func(op uint16, k uint32, yes, no uint8) {
			p = append(p, unix.SockFilter{Code: unix.BPF_JMP | op | unix.BPF_K, Jt: yes, Jf: no, K: k})
		}
		end := func(k uint32) { p = append(p, unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: k}) }

		load(arch)
		native := map[string]uint32{"amd64": unix.AUDIT_ARCH_X86_64, "arm64": unix.AUDIT_ARCH_AARCH64}[runtime.GOARCH]
		jump(unix.BPF_JEQ, native, 1, 0)
		end(denied)
		load(nr)
		jump(unix.BPF_JGE, 0x40000000, 0, 1) // x32
		end(denied)

		jump(unix.BPF_JEQ, numbers["clone"], 0, 4)
		load(arg0)
		jump(unix.BPF_JSET, namespaces, 0, 1)
		end(denied)
		end(allowed)

		jump(unix.BPF_JEQ, numbers["clone3"], 0, 1)
		end(missing)

		jump(unix.BPF_JEQ, numbers["socket"], 0, 4)
		load(arg0)
		jump(unix.BPF_JEQ, unix.AF_VSOCK, 0, 1)
		end(denied)
		end(allowed)

		jump(unix.BPF_JEQ, numbers["personality"], 0, 8)
		load(arg0)
		for i, ok := range []uint32{0, 8, 0x20000, 0x20008, 0xffffffff} {
			jump(unix.BPF_JEQ, ok, uint8(5-i), 0)
		}
		end(denied)
		end(allowed)

		known := 0
		for _, names := range containerCalls() {
			for _, name := range strings.Fields(names) {
				n, ok := numbers[name]
				if !ok {
					continue // of another architecture
				}
				known++
				jump(unix.BPF_JEQ, n, 0, 1)
				end(allowed)
			}
		}
		end(denied)
		if known < 200 {
			return fmt.Errorf("only %d of the system calls have numbers", known)
		}
		var b bytes.Buffer
		if err := binary.Write(&b, binary.NativeEndian, p); err != nil {
			return err
		}
		return os.WriteFile(out, b.Bytes(), 0o644)
	})
}

// callNumbers are the numbers of system calls by their names in lower case, out of golang.org/x/sys.
func callNumbers() (map[string]uint32, error) {
	dir, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "golang.org/x/sys").Output()
	if err != nil {
		return nil, err
	}
	text, err := os.ReadFile(filepath.Join(strings.TrimSpace(string(dir)), "unix", "zsysnum_linux_"+runtime.GOARCH+".go"))
	if err != nil {
		return nil, err
	}
	numbers := make(map[string]uint32)
	for _, m := range regexp.MustCompile(`SYS_(\w+)\s*=\s*(\d+)`).FindAllStringSubmatch(string(text), -1) {
		n, err := strconv.ParseUint(m[2], 10, 32)
		if err != nil {
			return nil, err
		}
		numbers[strings.ToLower(m[1])] = uint32(n)
	}
	for _, name := range []string{"clone", "clone3", "socket", "personality"} {
		if _, ok := numbers[name]; !ok {
			return nil, fmt.Errorf("%s has no number", name)
		}
	}
	return numbers, nil
}

// confined installs what confines programs as an engine of containers does, and returns the command that does it.
func (s *service) confined() string {
	s.t.Helper()
	program := build(s.t, "confine", func(out string) error { return goBuild(out, "./confine", false, "") })
	if err := s.g.Copy(program, "/srv/confine", 0o755); err != nil {
		s.t.Fatal(err)
	}
	if err := s.g.Copy(containerFilter(s.t), "/srv/container.bpf", 0o644); err != nil {
		s.t.Fatal(err)
	}
	return "/srv/confine /srv/container.bpf"
}

// mustBeConfined checks that a process is, by its pid on the host.
func (s *service) mustBeConfined(pid int) {
	s.t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		s.t.Fatal(err)
	}
	got := map[string]string{}
	for line := range strings.Lines(string(text)) {
		key, value, _ := strings.Cut(line, ":")
		got[key] = strings.TrimSpace(value)
	}
	if got["Seccomp"] != "2" || got["NoNewPrivs"] != "1" || slices.Contains([]string{"", "000001ffffffffff"}, got["CapEff"]) {
		s.t.Errorf("process %d is not confined:\n%s", pid, text)
	}
}

// The filter does what it says, and what the engines' does: without it the scenarios would show nothing.
func TestContainerFilter(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("needs root, to drop capabilities")
	}
	confine := build(t, "confine", func(out string) error { return goBuild(out, "./confine", false, "") })
	filter := containerFilter(t)
	for _, tt := range []struct {
		script, says string
		ok           bool
	}{
		{"grep CapEff: /proc/self/status", "00000000a80425fb", true}, // what Docker leaves
		{"unshare --uts true", "Operation not permitted", false},
		{"mount -t tmpfs none /mnt", "", false},
		{"kill -0 $$ && (sleep 0 & wait) && cat /proc/sys/kernel/ostype", "Linux", true},
	} {
		out, err := exec.Command(confine, filter, "/bin/sh", "-c", tt.script).CombinedOutput()
		if (err == nil) != tt.ok || !strings.Contains(string(out), tt.says) {
			t.Errorf("%s: %v\n%s", tt.script, err, out)
		}
	}
}
