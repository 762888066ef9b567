package helper

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"syscall"
	"testing"

	"github.com/zdt-dev/zdt/internal/sdnotify"
)

// envPlay makes TestPlay the program that it names.
const envPlay = "ZDT_TEST_PLAY"

// TestPlay is not a test but the programs of this package's tests about readiness.
func TestPlay(t *testing.T) {
	programs := map[string]func() error{
		"notify": playNotify,
		"serve":  playServe,
	}
	if program := programs[os.Getenv(envPlay)]; program != nil {
		if err := program(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
}

// player is a command that plays a program.
func player(program string, env ...string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe", "-test.run=^TestPlay$")
	// The race detector lets a process sleep for a second at its end.
	cmd.Env = append(append(os.Environ(), envPlay+"="+program, "GORACE=atexit_sleep_ms=0"), env...)
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return cmd
}

// playNotify says TEXT, then shows that by closing its standard output, and ends when its standard input does.
func playNotify() error {
	err := sdnotify.Notifier{Socket: os.Getenv("NOTIFY_SOCKET")}.Send(os.Getenv("TEXT"))
	os.Stdout.Close()
	io.Copy(io.Discard, os.Stdin)
	return err
}
