//go:build !linux

package control

import (
	"context"
	"errors"
	"net"
)

func dial(ctx context.Context, path string) (net.Conn, Cred, error) {
	return nil, Cred{}, errors.ErrUnsupported
}

// PeerCred is known on Linux only.
func PeerCred(conn *net.UnixConn) (Cred, error) { return Cred{}, errors.ErrUnsupported }
