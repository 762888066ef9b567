//go:build linux

package helper

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/zdt-dev/zdt/internal/netfd"
)

// This file gives each worker a queue of its own (Options.ReusePort): sockets with SO_REUSEPORT at the same
// address, among which the kernel distributes clients. A socket belongs to a slot and not
// to a process, and the helper has it open for its life: closing one of such a group resets what waits
// in it (unless net.ipv4.tcp_migrate_req, Linux 5.14), and so do the handshakes that are
// under way.

// ownQueues reports whether the workers have sockets of their own for a network.
func (k *keeper) ownQueues(network string) bool {
	return k.opt.ReusePort && k.several() && (strings.HasPrefix(network, "tcp") || strings.HasPrefix(network, "udp"))
}

// openQueues binds the sockets of the workers but the first.
func (k *keeper) openQueues() error {
	k.crew.queues = map[int][]int{}
	for _, s := range k.sockets {
		if !k.ownQueues(s.Network) {
			continue
		}
		network, blocking, err := likeness(s)
		for slot := 1; slot < k.slots() && err == nil; slot++ {
			var fd int
			if fd, err = netfd.Bind(context.Background(), network, s.Address, true); err == nil {
				k.crew.queues[s.FD] = append(k.crew.queues[s.FD], fd)
				if !blocking {
					err = netfd.SetNonblock(fd)
				}
			}
		}
		if errors.Is(err, unix.EADDRINUSE) || errors.Is(err, unix.EACCES) {
			// inet_csk_get_port(): the sockets of one address are of one user (sk_uid), and systemd's are root's.
			err = fmt.Errorf("%w: the kernel lets no other user than the one of the first socket, which for one from systemd is root, add to it", err)
		}
		if err != nil {
			return fmt.Errorf("give each worker a queue of socket %q (%s): %w; bind it here with --listen and without a socket unit, or let the workers share it without --reuse-port", s.Name, s.Address, err)
		}
	}
	return nil
}

// likeness is the network to bind another socket like s with, and whether s blocks.
func likeness(s Socket) (network string, blocking bool, err error) {
	if on, err := unix.GetsockoptInt(s.FD, unix.SOL_SOCKET, unix.SO_REUSEPORT); err != nil || on == 0 {
		return "", false, errors.Join(err, errors.New("it was inherited without SO_REUSEPORT; its socket unit needs ReusePort=yes"))
	}
	domain, err := unix.GetsockoptInt(s.FD, unix.SOL_SOCKET, unix.SO_DOMAIN)
	if err != nil {
		return "", false, err
	}
	network = s.Network
	if domain == unix.AF_INET {
		network += "4"
	} else if only, err := unix.GetsockoptInt(s.FD, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY); err != nil || only == 1 {
		network += "6"
	}
	flags, err := unix.FcntlInt(uintptr(s.FD), unix.F_GETFL, 0)
	return network, flags&unix.O_NONBLOCK == 0, err
}
