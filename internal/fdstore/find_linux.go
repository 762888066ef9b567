package fdstore

import (
	"cmp"
	"errors"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/zdt-dev/zdt/internal/netfd"
)

// Held is a socket that processes listen on, or receive from.
type Held struct {
	Network, Address string // as package net writes them
	// Several: more than one socket has the address (SO_REUSEPORT).
	Several bool
}

// Find lists the sockets of the processes that clients come to: those that listen and, of datagram sockets, those with an address
// and without a peer. still is as for Take.
func Find(pids []int, still func(pid int) bool) (all []Held, err error) {
	seen := map[string]bool{}
	for _, pid := range pids {
		process, err := unix.PidfdOpen(pid, 0)
		if errors.Is(err, unix.ESRCH) {
			continue // it has ended
		}
		if err != nil {
			return nil, err
		}
		if still(pid) {
			all, err = findIn(process, pid, seen, all)
		}
		unix.Close(process)
		if err != nil {
			return nil, err
		}
	}
	slices.SortFunc(all, func(a, b Held) int {
		return cmp.Or(cmp.Compare(a.Network, b.Network), cmp.Compare(a.Address, b.Address))
	})
	return all, nil
}

func findIn(process, pid int, seen map[string]bool, all []Held) ([]Held, error) {
	links, err := sockets(pid)
	if err != nil {
		return nil, err
	}
	for number, link := range links {
		if seen[link] {
			continue
		}
		seen[link] = true
		fd, err := unix.PidfdGetfd(process, number, 0)
		switch {
		case errors.Is(err, unix.EBADF), errors.Is(err, unix.ESRCH): // closed meanwhile
			continue
		case err != nil:
			return nil, err
		}
		network, address, err := netfd.Info(fd)
		peer := connected(fd)
		unix.Close(fd)
		if err != nil || peer || address == "" {
			continue
		}
		twice := false
		for i, h := range all {
			if h.Network == network && h.Address == address {
				all[i].Several, twice = true, true
			}
		}
		if !twice {
			all = append(all, Held{Network: network, Address: address})
		}
	}
	return all, nil
}
