//go:build !linux

package handoff

import (
	"errors"
	"net"
	"os"
	"syscall"
)

func socketInfo(int) (network, address string, err error) { return "", "", errors.ErrUnsupported }
func claimFD(int)                                         {}
func dupFD(syscall.Conn) (int, error)                     { return -1, nil }
func fileOf(int) (*os.File, error)                        { return nil, errors.ErrUnsupported }
func setNonblock(int) error                               { return nil }
func closeFD(int)                                         {}
func unreadBytes(net.Conn) int                            { return 0 }
func listenAgain(int)                                     {}
func connectionRefused(error) bool                        { return false }
func brokenPipe(error) bool                               { return false }
func connectionReset(error) bool                          { return false }
func outOfDescriptors(error) bool                         { return false }
