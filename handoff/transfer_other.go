//go:build !linux

package handoff

import (
	"errors"
	"fmt"
	"net"

	"github.com/zdt-dev/zdt/internal/wire"
)

func batchesTo(*wire.Link) func(uint64, []*parked) error {
	return func(uint64, []*parked) error {
		return fmt.Errorf("move connections: %w", errors.ErrUnsupported)
	}
}

func readManifest(int, int) ([]cargo, error) { return nil, errors.ErrUnsupported }

type builder struct{}

func newBuilder() (*builder, error) { return nil, errors.ErrUnsupported }

func (*builder) close() {}

func (*builder) build(int) (net.Conn, error) { return nil, errors.ErrUnsupported }

func peerAddress(int, string) (net.Addr, error) { return nil, errors.ErrUnsupported }

func readable(net.Conn) error { return errors.ErrUnsupported }

func localAddress(int) (network, address string) { return "", "" }

func connectionNetwork(int) (string, error) { return "", errors.ErrUnsupported }

func borrowFD(net.Conn) (int, error) { return -1, errors.ErrUnsupported }

func descriptorRoom() int { return 0 }
