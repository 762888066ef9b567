package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"syscall"

	"golang.org/x/sys/unix"
)

// onTerminal runs a command on a terminal of its own and copies what it writes there to standard output. It returns
// the command's exit status.
func onTerminal(size string, args []string) int {
	var columns, rows uint16
	if _, err := fmt.Sscanf(size, "%dx%d", &columns, &rows); err != nil || len(args) == 0 {
		fmt.Fprintln(os.Stderr, "demo: -pty COLUMNSxROWS COMMAND")
		return 64
	}
	controller, terminal, err := openPTY(columns, rows)
	if err != nil {
		fmt.Fprintln(os.Stderr, "demo: open a terminal:", err)
		return 1
	}
	defer controller.Close()
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = terminal, terminal, terminal
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	err = cmd.Start()
	terminal.Close()
	if err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		return 1
	}
	io.Copy(os.Stdout, controller) // ends with EIO when nobody has the terminal open any more
	err = cmd.Wait()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		fmt.Fprintln(os.Stderr, "demo:", err)
		return 1
	}
	return cmd.ProcessState.ExitCode()
}

func openPTY(columns, rows uint16) (controller, terminal *os.File, err error) {
	controller, err = os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, nil, err
	}
	defer func() {
		if err != nil {
			controller.Close()
		}
	}()
	fd := int(controller.Fd())
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		return nil, nil, os.NewSyscallError("unlock", err)
	}
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err != nil {
		return nil, nil, os.NewSyscallError("number", err)
	}
	if err := unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Col: columns, Row: rows}); err != nil {
		return nil, nil, os.NewSyscallError("size", err)
	}
	terminal, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	return controller, terminal, err
}
