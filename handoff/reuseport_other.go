//go:build !linux

package handoff

import (
	"context"
	"errors"
	"net"
)

const canReusePort = false

func listenFirst(context.Context, string, string) (*net.TCPListener, error) {
	return nil, errors.ErrUnsupported
}

func bindBeside(int) (int, error) { return -1, errors.ErrUnsupported }
func beginListen(int) error       { return errors.ErrUnsupported }
func reusesPort(int) bool         { return false }
func readMigrateReq() (int, bool) { return 0, false }
func addressInUse(error) bool     { return false }
