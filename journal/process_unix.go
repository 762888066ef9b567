//go:build unix

package journal

import (
	"os/exec"
	"syscall"
)

// isolate puts the child into a process group of its own: Ctrl-C at the
// terminal is for zdt, which still wants to see how its upgrade ends.
func isolate(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
}

// kill ends the whole group; journalctl may run under nsenter or the like.
// Process.Kill goes first because it knows whether the leader is reaped, after
// which the number may be somebody else's.
func kill(cmd *exec.Cmd) error {
	if err := cmd.Process.Kill(); err != nil {
		return err
	}
	_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) // only the leader may have been there
	return nil
}
