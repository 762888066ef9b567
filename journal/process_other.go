//go:build !unix

package journal

import "os/exec"

func isolate(*exec.Cmd) {}

func kill(cmd *exec.Cmd) error { return cmd.Process.Kill() }
