//go:build !linux

package sdnotify

import (
	"errors"
	"net"
)

// Barrier does nothing: systemd runs on Linux only.
func (n Notifier) Barrier() error { return nil }

func sendRights(*net.UnixConn, []byte, []int) error { return errors.ErrUnsupported }
