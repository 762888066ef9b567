//go:build !linux

package netfd

import (
	"errors"
	"net"
	"os"
	"syscall"
)

// Elsewhere than on Linux package handoff listens and drains, and shares no socket.

func Info(int) (network, address string, err error)  { return "", "", errors.ErrUnsupported }
func Claim(int)                                      {}
func Dup(syscall.Conn) (int, error)                  { return -1, nil }
func file(int) (*os.File, error)                     { return nil, errors.ErrUnsupported }
func SetNonblock(int) error                          { return nil }
func Close(int)                                      {}
func ListenAgain(*net.UnixListener)                  {}
func connectionRefused(error) bool                   { return false }
func ownerOnly(_, _ string, _ syscall.RawConn) error { return nil }
