package release

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
)

// A Proc names one process for as long as the host runs: a pid alone is used
// again. Start is the time at which it started, in clock ticks since boot
// (field 22 of /proc/PID/stat).
type Proc struct {
	PID   int    `json:"pid"`
	Start uint64 `json:"starttime,omitempty"`
}

// ProcOf names the process that has this pid now. If there is none the error
// is fs.ErrNotExist.
func ProcOf(pid int) (Proc, error) {
	p, _, err := procStat(pid)
	return p, err
}

// Alive tells whether that process still runs. A zombie does not: it holds
// neither locks nor sockets any more.
func (p Proc) Alive() bool {
	now, state, err := procStat(p.PID)
	return err == nil && now == p && state != 'Z' && state != 'X'
}

func procStat(pid int) (Proc, byte, error) {
	if pid <= 0 {
		return Proc{}, 0, fmt.Errorf("process %d: %w", pid, fs.ErrNotExist)
	}
	data, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return Proc{}, 0, fmt.Errorf("process %d: %w", pid, err)
	}
	start, state, err := parseStat(data)
	if err != nil {
		return Proc{}, 0, fmt.Errorf("process %d: %w", pid, err)
	}
	return Proc{PID: pid, Start: start}, state, nil
}

// parseStat finds the fields behind the last parenthesis: the second one, the
// program's name, can contain anything.
func parseStat(data []byte) (start uint64, state byte, err error) {
	i := bytes.LastIndexByte(data, ')')
	fields := strings.Fields(string(data[i+1:]))
	if i < 0 || len(fields) < 20 {
		return 0, 0, errors.New("cannot understand /proc/PID/stat")
	}
	start, err = strconv.ParseUint(fields[19], 10, 64) // 22 in proc(5), state is 3
	return start, fields[0][0], err
}

// BootID returns the kernel's ID of the running boot. A record with another
// one was written before a reboot: no process it names can be alive.
func BootID() (string, error) {
	data, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(data)), err
}
