package helper

import (
	"bytes"
	"io"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// process is one line of the process table.
type process struct {
	pid, parent, group, session int
	start                       int // ticks since boot: with the pid, it names a process
	state                       byte
}

// ended tells a process of which only the exit status is left.
func (p process) ended() bool { return p.state == 'Z' || p.state == 'X' }

// processes reads the process table, as far as /proc shows it: with ProtectProc=invisible
// a helper that is not root does not see other users' processes.
func processes() []process {
	dir, err := os.Open("/proc")
	if err != nil {
		return nil
	}
	defer dir.Close()
	names, _ := dir.Readdirnames(-1)
	var all []process
	for _, name := range names {
		if pid, err := strconv.Atoi(name); err == nil {
			if p, ok := readProcess(pid); ok {
				all = append(all, p)
			}
		}
	}
	return all
}

func readProcess(pid int) (process, bool) {
	stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return process{}, false
	}
	p, ok := parseStat(stat)
	return p, ok && p.pid == pid
}

// parseStat reads the beginning of proc_pid_stat(5). The command, in parentheses, may
// hold anything, parentheses too.
func parseStat(stat []byte) (process, bool) {
	open, shut := bytes.IndexByte(stat, '('), bytes.LastIndexByte(stat, ')')
	if open < 1 || shut < open {
		return process{}, false
	}
	fields := bytes.Fields(stat[shut+1:])
	if len(fields) < 20 || len(fields[0]) != 1 {
		return process{}, false
	}
	p := process{state: fields[0][0]}
	ok := true
	for _, f := range []struct {
		to   *int
		text []byte
	}{{&p.pid, bytes.TrimSpace(stat[:open])}, {&p.parent, fields[1]}, {&p.group, fields[2]}, {&p.session, fields[3]}, {&p.start, fields[19]}} {
		n, err := strconv.Atoi(string(f.text))
		*f.to, ok = n, ok && err == nil && n >= 0
	}
	return p, ok
}

// environLimit bounds what is read of the environment that a process shows.
const environLimit = 1 << 20

// environHolds reports whether the process shows the variable in the environment it was
// executed with.
func environHolds(pid int, kv string) bool {
	f, err := os.Open("/proc/" + strconv.Itoa(pid) + "/environ")
	if err != nil {
		return false
	}
	defer f.Close()
	env, _ := io.ReadAll(io.LimitReader(f, environLimit))
	for one := range bytes.SplitSeq(env, []byte{0}) {
		if string(one) == kv {
			return true
		}
	}
	return false
}

// hold opens a process of the table and makes sure that it still is the one
// that was read there. The caller closes what it returns.
func (p process) hold() (pidfd int, ok bool) {
	fd, err := unix.PidfdOpen(p.pid, 0)
	if err != nil {
		return -1, false
	}
	// While a process lives its number leads to it, so that this was read of the one
	// that fd is for.
	now, ok := readProcess(p.pid)
	if !ok || now.start != p.start || unix.PidfdSendSignal(fd, 0, nil, 0) != nil {
		unix.Close(fd)
		return -1, false
	}
	return fd, true
}
