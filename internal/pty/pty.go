// Package pty runs a command on a terminal of its own, so that tests and the demo see what an operator sees.
package pty

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"syscall"

	"golang.org/x/sys/unix"
)

// Run runs a command on a terminal of that size, copies what it writes there to out, and returns its exit status; -1
// when a signal ended it. The terminal's input stays silent. Run returns when the command has ended and nobody has the
// terminal open any more.
func Run(out io.Writer, columns, rows uint16, args []string) (status int, err error) {
	controller, terminal, err := open(columns, rows)
	if err != nil {
		return 0, fmt.Errorf("open a terminal: %w", err)
	}
	defer controller.Close()
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = terminal, terminal, terminal
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	err = cmd.Start()
	terminal.Close()
	if err != nil {
		return 0, err
	}
	// A terminal that nobody has open any more reads as EIO.
	_, copyErr := io.Copy(out, controller)
	if errors.Is(copyErr, unix.EIO) {
		copyErr = nil
	}
	err = cmd.Wait()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		err = nil
	}
	return cmd.ProcessState.ExitCode(), errors.Join(err, copyErr)
}

// open makes a pair of pseudo terminals.
func open(columns, rows uint16) (controller, terminal *os.File, err error) {
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
