package handoff

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"syscall"

	"github.com/zdt-dev/zdt/handoff/control"
	"github.com/zdt-dev/zdt/internal/listenfds"
	"github.com/zdt-dev/zdt/internal/netfd"
)

// Where a socket came from.
const (
	fromSystemd     = "systemd"
	fromPredecessor = "predecessor"
	boundHere       = "bound"
)

// socket is one socket this generation holds for the next. The registry owns
// fd; the Listener or PacketConn over it owns a duplicate of its own.
type socket struct {
	name, network, address, origin string
	fd                             int
	inUse                          bool

	// Of a socket that was added to a group: it does not listen before begin is closed.
	begin  chan struct{} // nil: it listens from the start
	silent bool          // begin is not closed
}

// sockets is the registry of everything a successor gets.
//
// Inherited sockets that this release does not use stay in it and are passed
// on: with systemd holding the address, a later release (or the earlier one,
// after a rollback) could not bind it by itself.
type sockets struct {
	mu  sync.Mutex
	all []*socket
}

// inherit takes descriptors listenfds.Start and up. It owns them from here on,
// also when it fails.
func (r *sockets) inherit(names []string, origin string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	var errs []error
	for i, name := range names {
		errs = append(errs, r.take(name, listenfds.Start+i, origin))
	}
	return errors.Join(errs...)
}

// take registers a socket that came from elsewhere. It owns fd, also when it
// fails. The caller holds mu.
func (r *sockets) take(name string, fd int, origin string) error {
	netfd.Claim(fd)
	network, address, err := netfd.Info(fd)
	if err == nil {
		err = netfd.SetNonblock(fd)
	}
	if err != nil {
		netfd.Close(fd)
		return fmt.Errorf("inherited socket %q: %w", name, err)
	}
	r.all = append(r.all, &socket{name: name, network: network, address: address, origin: origin, fd: fd})
	return nil
}

// claim finds the inherited socket for name, or nil when nothing was inherited
// that could be meant. Among several of one name (a socket unit with several
// ListenStream= lines) the one with the wanted address is taken, else the first.
func (r *sockets) claim(name, network, address string) (*socket, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	var found *socket
	taken, wrong := false, ""
	for _, s := range r.all {
		if s.origin == boundHere || !r.meant(s, name, network, address) {
			continue
		}
		switch {
		case !netfd.SameKind(s.network, network):
			wrong = s.network
		case s.inUse:
			taken = true
		case found == nil || netfd.SameAddress(s.address, address) && !netfd.SameAddress(found.address, address):
			found = s
		}
	}
	switch {
	case found != nil:
		found.inUse = true
		return found, nil
	case taken:
		return nil, fmt.Errorf("inherited socket %q is in use already", name)
	case wrong != "":
		return nil, fmt.Errorf("inherited socket %q is %s, the program wants %s", name, wrong, network)
	}
	return nil, nil
}

// meant reports whether s is what a program calls name. Socket units without
// FileDescriptorName= pass the unit's own name, LISTEN_FDNAMES may be missing
// altogether: then the address decides.
func (r *sockets) meant(s *socket, name, network, address string) bool {
	if s.name == name {
		return true
	}
	unnamed := s.name == "unknown" || strings.HasSuffix(s.name, ".socket")
	return unnamed && netfd.SameKind(s.network, network) && netfd.SameAddress(s.address, address)
}

// bound registers a socket that this process bound itself. It duplicates the
// descriptor and owns the duplicate.
func (r *sockets) bound(name string, s syscall.Conn, network, address string) (*socket, error) {
	fd, err := netfd.Dup(s)
	if err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	sock := &socket{name: name, network: strings.TrimRight(network, "46"), address: address, origin: boundHere, fd: fd, inUse: true}
	r.all = append(r.all, sock)
	return sock, nil
}

// replace puts another socket under an entry and closes the descriptor it had.
// The registry owns fd.
func (r *sockets) replace(s *socket, fd int, addr net.Addr) {
	r.mu.Lock()
	defer r.mu.Unlock()
	netfd.Close(s.fd)
	s.fd, s.network, s.address, s.origin = fd, addr.Network(), addr.String(), boundHere
}

// drop closes the registry's descriptor: the program closed the listener, so
// no successor shall have it.
func (r *sockets) drop(s *socket) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for i, other := range r.all {
		if other == s {
			r.all = append(r.all[:i], r.all[i+1:]...)
			netfd.Close(s.fd)
			return
		}
	}
}

// pass calls f with the names and descriptors for a successor. They stay the
// registry's and do not change during f.
func (r *sockets) pass(f func(names []string, fds []int) error) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	var names []string
	var fds []int
	for _, s := range r.all {
		if s.silent {
			continue // a successor refuses what does not listen
		}
		names = append(names, s.name)
		fds = append(fds, s.fd)
	}
	return f(names, fds)
}

func (r *sockets) list() []control.Socket {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []control.Socket
	for _, s := range r.all {
		out = append(out, s.status())
	}
	return out
}

// inheritedNames lists what was inherited, for errors.
func (r *sockets) inheritedNames() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var names []string
	for _, s := range r.all {
		if s.origin != boundHere {
			names = append(names, fmt.Sprintf("%s (%s %s)", s.name, s.network, s.address))
		}
	}
	return names
}

// close closes every descriptor of the registry.
func (r *sockets) close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, s := range r.all {
		netfd.Close(s.fd)
		if s.silent {
			close(s.begin) // whoever waits finds the gate closed
		}
	}
	r.all = nil
}

// listen opens the stream socket for name, inherited or bound.
func (r *sockets) listen(name, network, address string) (net.Listener, *socket, error) {
	s, err := r.open(name, network, address)
	if err != nil {
		return nil, nil, err
	}
	if s != nil {
		ln, err := netfd.From(s.fd, net.FileListener)
		if err != nil {
			return nil, nil, fmt.Errorf("use inherited socket %q: %w", name, err)
		}
		netfd.KeepFile(ln)
		return ln, s, nil
	}
	if network == "unix" || network == "unixpacket" {
		netfd.RemoveStaleFile(address)
	}
	var lc net.ListenConfig
	ln, err := lc.Listen(context.Background(), network, address)
	if err != nil {
		return nil, nil, r.bindError(name, network, address, err)
	}
	netfd.KeepFile(ln)
	s, err = r.bound(name, ln.(syscall.Conn), network, ln.Addr().String())
	if err != nil {
		ln.Close()
		return nil, nil, fmt.Errorf("keep socket %q for the successor: %w", name, err)
	}
	return ln, s, nil
}

// listenPacket is listen for datagram sockets.
func (r *sockets) listenPacket(name, network, address string) (net.PacketConn, *socket, error) {
	s, err := r.open(name, network, address)
	if err != nil {
		return nil, nil, err
	}
	if s != nil {
		pc, err := netfd.From(s.fd, net.FilePacketConn)
		if err != nil {
			return nil, nil, fmt.Errorf("use inherited socket %q: %w", name, err)
		}
		return pc, s, nil
	}
	if network == "unixgram" {
		netfd.RemoveStaleFile(address)
	}
	var lc net.ListenConfig
	pc, err := lc.ListenPacket(context.Background(), network, address)
	if err != nil {
		return nil, nil, r.bindError(name, network, address, err)
	}
	s, err = r.bound(name, pc.(syscall.Conn), network, pc.LocalAddr().String())
	if err != nil {
		pc.Close()
		return nil, nil, fmt.Errorf("keep socket %q for the successor: %w", name, err)
	}
	return pc, s, nil
}

func (r *sockets) open(name, network, address string) (*socket, error) {
	if !listenfds.ValidName(name) {
		return nil, fmt.Errorf("socket name %q: want printable ASCII without a colon, as for FileDescriptorName=", name)
	}
	return r.claim(name, network, address)
}
