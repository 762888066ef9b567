package cmd

import (
	"context"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/zdt-dev/zdt/release"
	"github.com/zdt-dev/zdt/unitgen"
)

// hostReport is what a bug report says of the host.
type hostReport struct {
	Zdt       versionDoc        `json:"zdt"`
	Systemd   string            `json:"systemd,omitempty"`
	Kernel    string            `json:"kernel"`
	Machine   string            `json:"machine"`
	OS        string            `json:"os,omitempty"`
	PID1      string            `json:"pid1,omitempty"`      // its name
	Container string            `json:"container,omitempty"` // what systemd found itself in
	Cgroups   string            `json:"cgroups"`             // unified, hybrid, legacy
	Control   string            `json:"cgroup_controllers,omitempty"`
	LSM       string            `json:"lsm,omitempty"`
	CPUs      int               `json:"cpus"`
	MemoryKB  uint64            `json:"memory_kb,omitempty"`
	BootID    string            `json:"boot_id,omitempty"`
	UID       int               `json:"uid"` // who made the report
	User      bool              `json:"user_manager"`
	Sysctls   map[string]string `json:"sysctls"`
}

// sysctls are those that a handoff can meet.
func sysctls() []string {
	return []string{
		"fs.file-max", "fs.nr_open", "fs.suid_dumpable", "kernel.pid_max", "kernel.threads-max", "kernel.yama.ptrace_scope",
		"net.core.somaxconn", "net.ipv4.ip_local_port_range", "net.ipv4.ip_nonlocal_bind", "net.ipv4.tcp_abort_on_overflow", "net.ipv4.tcp_fin_timeout",
		"net.ipv4.tcp_max_syn_backlog", "net.ipv4.tcp_migrate_req", "net.ipv4.tcp_syncookies", "net.ipv6.bindv6only", "net.unix.max_dgram_qlen",
		"user.max_user_namespaces", "vm.overcommit_memory",
	}
}

// host writes down what all services have in common.
func (b *bugreport) host(ctx context.Context) {
	info, _ := debug.ReadBuildInfo()
	h := hostReport{Zdt: buildVersion(info), CPUs: runtime.NumCPU(), UID: b.f.euid, User: b.f.globals.user, Sysctls: map[string]string{}}
	b.secrets.Keep(h.Zdt.Commit)
	var name unix.Utsname
	if unix.Uname(&name) == nil {
		h.Kernel, h.Machine = unix.ByteSliceToString(name.Release[:])+" "+unix.ByteSliceToString(name.Version[:]), unix.ByteSliceToString(name.Machine[:])
	}
	for line := range strings.Lines(firstBytes("/etc/os-release")) {
		if v, ok := strings.CutPrefix(strings.TrimSpace(line), "PRETTY_NAME="); ok {
			h.OS = strings.Trim(v, `"'`)
		}
	}
	h.PID1, h.LSM = firstBytes("/proc/1/comm"), firstBytes("/sys/kernel/security/lsm")
	h.Container = firstBytes("/run/systemd/container")
	h.Cgroups, h.Control = cgroupMode(), firstBytes(filepath.Join(cgroups, "cgroup.controllers"))
	h.MemoryKB = field("/proc/meminfo", "MemTotal:")
	h.BootID, _ = release.BootID()
	b.secrets.Keep(h.BootID, strings.ReplaceAll(h.BootID, "-", ""))
	for _, name := range sysctls() {
		if v := firstBytes("/proc/sys/" + strings.ReplaceAll(name, ".", "/")); v != "" {
			h.Sysctls[name] = v
		}
	}
	if b.bus != nil {
		var err error
		if _, h.Systemd, err = b.bus.Version(ctx); err != nil {
			b.lacks("the version of systemd", err)
		}
	}
	b.addDoc("host.json", h)
	if b.bus == nil {
		return
	}
	if doc, err := b.f.doctor(ctx, b.bus, b.paths); err != nil {
		b.lacks("what zdt doctor says", err)
	} else {
		b.addDoc("doctor.json", doc)
	}
	if u, err := b.bus.Unit(ctx, unitgen.ReconcileUnit); err == nil && u.FragmentPath != "" {
		b.addConfig(unitgen.ReconcileUnit, []configFile{readConfig(u.FragmentPath)}, b.secrets.Unit)
	}
}

// cgroupMode is how the control groups are mounted.
func cgroupMode() string {
	var st unix.Statfs_t
	switch {
	case unix.Statfs(cgroups, &st) != nil:
		return "none"
	case st.Type == unix.CGROUP2_SUPER_MAGIC:
		return "unified"
	case unix.Statfs(filepath.Join(cgroups, "unified"), &st) == nil && st.Type == unix.CGROUP2_SUPER_MAGIC:
		return "hybrid"
	}
	return "legacy"
}

// firstBytes is a short file of the kernel's or root's, without the space around it; "" if it cannot be read.
func firstBytes(path string) string {
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	buf := make([]byte, 4096)
	n, _ := f.Read(buf)
	return strings.TrimSpace(string(buf[:n]))
}
