//go:build linux

package helper

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

func dieMain(args []string) error {
	code, _ := strconv.Atoi(args[0])
	status, _ := strconv.Atoi(args[1])
	Exit{code, status}.Die()
	return errors.New("lived on")
}

func TestDie(t *testing.T) {
	for _, want := range []Exit{
		{cldExited, 0}, {cldExited, 1}, {cldExited, 255},
		{cldKilled, int(unix.SIGTERM)}, {cldKilled, int(unix.SIGKILL)}, {cldKilled, int(unix.SIGPIPE)}, {cldKilled, int(unix.SIGHUP)},
		{cldKilled, int(unix.SIGUSR1)}, {cldKilled, 35}, {cldDumped, int(unix.SIGSEGV)}, {cldDumped, int(unix.SIGQUIT)}, {cldDumped, int(unix.SIGABRT)},
	} {
		t.Run(want.String(), func(t *testing.T) {
			dir := t.TempDir()
			ws := dieIn(t, dir, want, &syscall.SysProcAttr{})
			got := exitOf(ws)
			if want.Code == cldDumped {
				want.Code = cldKilled // no second core
			}
			if got != want {
				t.Errorf("%v", got)
			}
			if cores, _ := filepath.Glob(dir + "/*"); len(cores) > 0 {
				t.Errorf("left %v", cores)
			}
		})
	}
	t.Run("first of a pid namespace", func(t *testing.T) {
		if os.Getuid() != 0 {
			t.Skip("needs root")
		}
		ws := dieIn(t, t.TempDir(), Exit{cldKilled, int(unix.SIGTERM)}, &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWPID})
		if got := exitOf(ws); got != (Exit{cldExited, 143}) {
			t.Errorf("%v", got)
		}
	})
}

func dieIn(t *testing.T, dir string, e Exit, attr *syscall.SysProcAttr) syscall.WaitStatus {
	t.Helper()
	// With cores allowed: there must be none nevertheless.
	cmd := exec.Command("/bin/sh", "-c", `ulimit -c unlimited 2>/dev/null; exec "$0" "$@"`, os.Args[0], "role:die", strconv.Itoa(e.Code), strconv.Itoa(e.Status))
	cmd.Dir, cmd.SysProcAttr = dir, attr
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Skipf("start: %v", err)
	}
	if len(out) > 0 {
		t.Errorf("wrote %q", out)
	}
	return cmd.ProcessState.Sys().(syscall.WaitStatus)
}

func TestExitWords(t *testing.T) {
	for e, want := range map[Exit]string{
		{cldExited, 3}: "exited 3", {cldKilled, 15}: "killed TERM", {cldDumped, 6}: "dumped ABRT", {cldKilled, 40}: "killed 40", {}: "unknown",
	} {
		if e.String() != want {
			t.Errorf("%s, want %s", e, want)
		}
	}
}
