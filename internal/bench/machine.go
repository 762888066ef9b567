package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// describeMachine says what the numbers were measured on, and what it was doing anyway.
func describeMachine(ctx context.Context, w io.Writer) {
	var u unix.Utsname
	kernel := "an unknown kernel"
	if unix.Uname(&u) == nil {
		release, _, _ := strings.Cut(unix.ByteSliceToString(u.Release[:]), "-")
		kernel = "Linux " + release
	}
	systemd := "no systemd"
	if out, err := exec.CommandContext(ctx, "systemctl", "--version").Output(); err == nil {
		first, _, _ := strings.Cut(string(out), " (")
		systemd = first
	}
	fmt.Fprintf(w, "%d processors (%s), %s, %s, %s %s\n", runtime.NumCPU(), processor(), kernel, systemd, runtime.Version(), runtime.GOARCH)
	describeLoad(w, "before")
}

// describeLoad says how busy the processors are with anything else at this moment.
func describeLoad(w io.Writer, when string) {
	load, _ := os.ReadFile("/proc/loadavg")
	busy0, all0 := cpuTime()
	time.Sleep(500 * time.Millisecond) // a measurement, not a wait for something
	busy1, all1 := cpuTime()
	share := 0.0
	if all1 > all0 {
		share = 100 * (busy1 - busy0) / (all1 - all0)
	}
	fmt.Fprintf(w, "%s: load average %s, processors %.0f %% busy\n", when, strings.Join(strings.Fields(string(load))[:3], " "), share)
}

// cpuTime returns the ticks of all processors, and those of them in which they worked.
func cpuTime() (busy, all float64) {
	data, _ := os.ReadFile("/proc/stat")
	line, _, _ := strings.Cut(string(data), "\n")
	for i, f := range strings.Fields(line)[1:] {
		var n float64
		fmt.Sscan(f, &n)
		if i > 7 { // guest time is part of user time
			break
		}
		all += n
		if i != 3 && i != 4 { // idle, iowait
			busy += n
		}
	}
	return busy, all
}

func processor() string {
	f, err := os.Open("/proc/cpuinfo")
	if err != nil {
		return runtime.GOARCH
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		if name, value, ok := strings.Cut(s.Text(), ":"); ok && strings.TrimSpace(name) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return runtime.GOARCH
}
