package handoff

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"

	"github.com/zdt-dev/zdt/handoff/control"
	"github.com/zdt-dev/zdt/internal/gate"
	"github.com/zdt-dev/zdt/internal/netfd"
)

// ListenReusePort returns a group of listeners on one address, each with a
// socket, and so an accept queue, of its own: the kernel spreads connections over
// them (SO_REUSEPORT), and workers that accept do not meet. network is tcp, tcp4 or
// tcp6. Elsewhere than on Linux it returns one listener.
//
// All sockets of a group have the name and are handed over together. That is
// what keeps the clients: a connection that waits in the queue of a socket is lost
// with the socket, however many others have the same address.
//
//   - When the predecessor had more than n, all of them are returned: in each queue
//     clients wait. Serve them all; to have fewer, Close some, or let go of them by
//     a restart.
//   - When it had fewer, the rest is bound in addition. Those listen as soon as this
//     generation is the service: before the commit the handoff may still be undone, and
//     what waited in their queues would be lost.
//   - Of a socket unit with ReusePort=yes come as many as there are units with this
//     FileDescriptorName=. Options the unit has set on them are not copied to those
//     that are bound in addition, and the kernel lets these join only when
//     the same user has bound the others: root, where systemd has.
//
// When nothing was inherited, nobody else may listen on address: the kernel would let
// any process of the same user in and give it a share of the connections. This is
// probed for, and an inherited socket of another name is found that way too.
//
// Closing one listener of a group while others go on loses what waits in its
// queue, unless net.ipv4.tcp_migrate_req is 1 (Linux ≥ 5.14): control.Status.MigrateReq
// tells, and so does the log. A handoff does not depend on it.
//
// The caller owns the listeners.
func (h *Handoff) ListenReusePort(name, network, address string, n int) ([]*Listener, error) {
	switch {
	case n < 1:
		return nil, fmt.Errorf("listen %q: %d sockets", name, n)
	case network != "tcp" && network != "tcp4" && network != "tcp6":
		return nil, fmt.Errorf("listen %q: SO_REUSEPORT with network %q: want tcp, tcp4 or tcp6", name, network)
	}
	if err := h.sentAway(); err != nil {
		return nil, err
	}
	members, err := h.sockets.listenGroup(name, network, address, n)
	if err != nil {
		return nil, err
	}
	// Added sockets listen once the commit has come: it did, or it will find them.
	h.do(func(m *machine) {
		if m.service {
			m.listenAdded()
		}
	})
	var out []*Listener
	for _, m := range members {
		l := &Listener{h: h, inner: m.listener, socket: m.socket, stop: make(chan struct{})}
		h.gate.Add(m.listener.(gate.Socket))
		h.opened(l)
		out = append(out, l)
	}
	return out, nil
}

// member is one socket of a group.
type member struct {
	listener net.Listener
	socket   *socket
}

// listenGroup opens the n sockets of a group, or as many as were inherited. Those
// it adds to inherited ones do not listen before listenAdded.
func (r *sockets) listenGroup(name, network, address string, n int) (group []member, err error) {
	if !canReusePort {
		ln, s, err := r.listen(name, network, address)
		return []member{{ln, s}}, err
	}
	inherited, err := r.claimGroup(name, network, address)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			r.disband(group, inherited)
		}
	}()
	for _, s := range inherited {
		ln, err := netfd.From(s.fd, net.FileListener)
		if err != nil {
			return group, fmt.Errorf("use inherited socket %q: %w", name, err)
		}
		group = append(group, member{ln, s})
	}
	if len(group) == 0 {
		ln, err := listenFirst(context.Background(), network, address)
		if err != nil {
			return group, r.bindError(name, network, address, err)
		}
		s, err := r.bound(name, ln, network, ln.Addr().String())
		if err != nil {
			ln.Close()
			return group, fmt.Errorf("keep socket %q for the successor: %w", name, err)
		}
		group = append(group, member{ln, s})
	}
	for len(group) < n {
		m, err := r.addMember(group[0].socket, name, len(inherited) == 0)
		if err != nil {
			return group, fmt.Errorf("add a socket to the %d of %q on %s: %w", len(group), name, group[0].socket.address, err)
		}
		group = append(group, m)
	}
	return group, nil
}

// claimGroup claims the inherited sockets of a group: of those of the name that one
// that claim finds, and all that have its address.
func (r *sockets) claimGroup(name, network, address string) ([]*socket, error) {
	first, err := r.open(name, network, address)
	if first == nil || err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	group := []*socket{first}
	for _, s := range r.all {
		if s != first && !s.inUse && s.origin != boundHere && s.name == first.name && s.network == first.network && s.address == first.address {
			s.inUse = true
			group = append(group, s)
		}
	}
	return group, nil
}

// addMember binds one more socket beside first.
func (r *sockets) addMember(first *socket, name string, listen bool) (member, error) {
	fd, err := bindBeside(first.fd)
	if err != nil {
		return member{}, err
	}
	s := &socket{name: name, network: first.network, address: first.address, origin: boundHere, fd: fd, inUse: true}
	if listen {
		err = beginListen(fd)
	} else {
		s.begin, s.silent = make(chan struct{}), true
	}
	var ln net.Listener
	if err == nil {
		ln, err = netfd.From(fd, net.FileListener)
	}
	if err != nil {
		netfd.Close(fd)
		return member{}, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.all = append(r.all, s)
	return member{ln, s}, nil
}

// disband undoes what listenGroup has done when it fails.
func (r *sockets) disband(group []member, inherited []*socket) {
	for _, m := range group {
		m.listener.Close()
		if !slices.Contains(inherited, m.socket) {
			r.drop(m.socket)
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, s := range inherited {
		s.inUse = false
	}
}

// listenAdded lets the sockets listen that were added to groups before this
// generation was the service.
func (r *sockets) listenAdded() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	var errs []error
	for _, s := range r.all {
		if !s.silent {
			continue
		}
		if err := beginListen(s.fd); err != nil {
			errs = append(errs, fmt.Errorf("listen with an added socket of %q on %s: %w", s.name, s.address, err))
			continue // its Accept waits to the end, the others of the group serve
		}
		s.silent = false
		close(s.begin)
	}
	return errors.Join(errs...)
}

func (m *machine) listenAdded() {
	if err := m.h.sockets.listenAdded(); err != nil {
		m.h.events.Logger().Error("serve with fewer sockets than asked for", "service", m.h.opt.Service, "error", err)
	}
}

// siblings counts the sockets that the kernel would give s's connections to.
func (r *sockets) siblings(s *socket) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	if s.silent || !slices.Contains(r.all, s) || !reusesPort(s.fd) {
		return 0
	}
	n := 0
	for _, other := range r.all {
		if other != s && !other.silent && other.network == s.network && other.address == s.address && reusesPort(other.fd) {
			n++
		}
	}
	return n
}

// migrateReq is net.ipv4.tcp_migrate_req, as far as it matters here: nil without
// a socket that has SO_REUSEPORT, or on a kernel that does not know it.
func (r *sockets) migrateReq() *int {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !slices.ContainsFunc(r.all, func(s *socket) bool { return s.network == "tcp" && reusesPort(s.fd) }) {
		return nil
	}
	if v, ok := readMigrateReq(); ok {
		return &v
	}
	return nil
}

// tellLeaving says what becomes of the connections that wait in a socket of a
// group which closes while others go on.
func (h *Handoff) tellLeaving(s *socket) {
	if h.draining.Load() || h.sockets.siblings(s) == 0 {
		return // a successor has them all, or all of them close
	}
	value, known := readMigrateReq()
	if why := lostWith(value, known); why != "" {
		h.events.Logger().Warn("a socket of a SO_REUSEPORT group closes: "+why, "service", h.opt.Service, "socket", s.name, "address", s.address)
	}
}

// lostWith says what is lost with a socket of a group, "" for nothing.
func lostWith(migrateReq int, known bool) string {
	switch {
	case migrateReq == 1:
		return ""
	case known:
		return fmt.Sprintf("connections that wait in it or are on their way into it are reset, because net.ipv4.tcp_migrate_req is %d; \"sysctl net.ipv4.tcp_migrate_req=1\" makes the kernel give them to the others", migrateReq)
	default:
		return "connections that wait in it or are on their way into it are reset; Linux 5.14 and later can give them to the others (net.ipv4.tcp_migrate_req)"
	}
}

// bindError explains why a socket could not be bound.
func (r *sockets) bindError(name, network, address string, err error) error {
	if addressInUse(err) {
		if s, inUse := r.holder(network, address); s != nil && inUse {
			return fmt.Errorf("bind socket %q: %w: it is the address of socket %q, which this process uses already", name, err, s.name)
		} else if s != nil {
			return fmt.Errorf("bind socket %q: %w: it is the address of the inherited socket %q (%s), which nothing here has asked for: ask for it by that name, or rename it (FileDescriptorName= of the socket unit)",
				name, err, s.name, s.address)
		}
	}
	if names := r.inheritedNames(); len(names) > 0 {
		return fmt.Errorf("bind socket %q, which is not among the inherited ones [%s]: %w", name, strings.Join(names, ", "), err)
	}
	return fmt.Errorf("bind socket %q: %w", name, err)
}

// holder finds the socket of the registry that has an address.
func (r *sockets) holder(network, address string) (s *socket, inUse bool) {
	if strings.HasPrefix(network, "tcp") {
		if a, err := net.ResolveTCPAddr(network, address); err == nil {
			address = a.String()
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, s := range r.all {
		if netfd.SameKind(s.network, network) && netfd.SameAddress(s.address, address) {
			return s, s.inUse
		}
	}
	return nil, false
}

// status is what an operator sees of a socket.
func (s *socket) status() control.Socket {
	return control.Socket{
		Name: s.name, Network: s.network, Address: s.address, Origin: s.origin, InUse: s.inUse,
		ReusePort: s.network == "tcp" && reusesPort(s.fd),
	}
}
