package handoff

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"

	"github.com/zdt-dev/zdt/handoff/control"
	"github.com/zdt-dev/zdt/internal/netfd"
	"github.com/zdt-dev/zdt/internal/wire"
)

// receive takes a batch of connections from the other generation. It runs in
// the goroutine that reads l, one batch after the other, and owns the
// descriptors in msg.
//
// The order is the protocol's: build, acknowledge, serve. Until the
// acknowledgement is sent nothing is read or written, so that the sender can
// go on with what is not taken, whatever happens here.
func (h *Handoff) receive(l *wire.Link, msg wire.Message) {
	defer msg.CloseFiles()
	taken, answer, resets := h.build(&msg)
	shorten(&answer)
	h.countMoves(func(m *control.Moves) {
		m.Taken += len(taken)
		m.Refused += len(answer.Refused) - resets
	})
	if err := acknowledge(l, answer); err != nil {
		h.events.Logger().Warn("acknowledge connections", "error", err)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			for _, a := range taken {
				a.conn.Close() // this process's copy: the sender was not told
			}
			h.countMoves(func(m *control.Moves) { m.Taken -= len(taken) })
			return
		}
		// The sender is gone, and its copies with it: these are ours now.
	}
	for _, a := range taken {
		h.deliver(a)
	}
}

// leaveRoom closes connections that would take the last descriptors of this
// process: new clients, the control socket and the program's own files have to go
// on as well, and the sender serves to their end those that stay with it.
func leaveRoom(files []int) {
	room := descriptorRoom()
	for i, fd := range files {
		if fd >= room { // the kernel gives the lowest number that is free
			netfd.Close(fd)
			files[i] = -1
		}
	}
}

// acknowledge waits as long as the sender lives and does not read: to give up
// would leave both sides with a claim. A generation that ends gives up, and takes nothing.
func acknowledge(l *wire.Link, answer wire.Message) error {
	for {
		err := l.Send(answer)
		if !errors.Is(err, os.ErrDeadlineExceeded) || l.IsClosing() {
			return err
		}
	}
}

// arrival is a connection that this generation has taken.
type arrival struct {
	cargo  cargo
	conn   net.Conn  // tracked
	server *arrivals // of HTTP/1
}

// build makes connections of what can be taken and the answer to the sender. Of those
// refused, resets were by clients that had gone: nothing is the matter with this process.
func (h *Handoff) build(msg *wire.Message) (taken []arrival, answer wire.Message, resets int) {
	answer = wire.Message{Type: wire.Moved, Batch: msg.Batch}
	refuse := func(i int, reason string) {
		answer.Refused = append(answer.Refused, wire.Refusal{Index: i, Reason: reason})
	}
	if msg.Count < 1 || msg.Count > maxBatch {
		h.events.Logger().Warn("refuse a batch of connections", "count", msg.Count)
		return nil, answer, 0
	}
	refuseAll := func(reason string) ([]arrival, wire.Message, int) {
		for i := range msg.Count {
			refuse(i, reason)
		}
		return nil, answer, 0
	}
	// Counted before the question: a drain that begins after it waits for what comes.
	h.tracker.accepting.Add(1)
	defer func() {
		h.tracker.accepting.Add(-1)
		h.tracker.wake()
	}()
	if !h.taking.Load() {
		return refuseAll("this generation ends")
	}
	if len(msg.Files) == 0 {
		return refuseAll("no descriptor came through: out of descriptors (LimitNOFILE=)?")
	}
	loads, err := readManifest(msg.Files[0], msg.Count)
	if err != nil {
		return refuseAll(err.Error())
	}
	leaveRoom(msg.Files[1:])
	b, err := newBuilder()
	if err != nil {
		return refuseAll(err.Error())
	}
	defer b.close()
	for i, load := range loads {
		switch {
		case i+1 >= len(msg.Files):
			// The kernel passes as many as the receiver has room for, and no error.
			refuse(i, "its descriptor did not come through: out of descriptors (LimitNOFILE=)?")
			continue
		case msg.Files[i+1] < 0:
			refuse(i, "the descriptors that are left are kept for new clients (LimitNOFILE=)")
			continue
		}
		server, ok := h.canTake(load, msg.Files[i+1])
		if !ok {
			refuse(i, fmt.Sprintf("nobody here speaks %s (socket %q)", load.Protocol, load.Socket))
			continue
		}
		network, err := connectionNetwork(msg.Files[i+1])
		if err != nil {
			refuse(i, err.Error())
			continue
		}
		peer, err := peerAddress(msg.Files[i+1], network)
		if err != nil {
			resets++
			refuse(i, err.Error()) // the sender sees the end as well, and knows the address
			continue
		}
		h.verify(msg.Files[i+1], load)
		if load.Protocol == protocolHTTP1 {
			load.Pending = bytes.TrimLeft(load.Pending, "\r\n") // see conn.trimmed
		}
		if load.rests() {
			taken = append(taken, arrival{load, h.tracker.trackAtRest(msg.Files[i+1], network, load.Socket, peer), server})
			msg.Files[i+1] = -1
			continue
		}
		c, err := b.build(msg.Files[i+1])
		// At once, and not with the batch: two for each connection might be more than there are.
		netfd.Close(msg.Files[i+1])
		msg.Files[i+1] = -1
		if err != nil {
			refuse(i, err.Error())
			continue
		}
		taken = append(taken, arrival{load, h.arrive(c, load, peer), server})
	}
	answer.Count = len(taken)
	return taken, answer, resets
}

// arrive tracks a connection that came from another generation.
func (h *Handoff) arrive(c net.Conn, load cargo, peer net.Addr) net.Conn {
	tracked := h.tracker.track(c, load.Socket, peer)
	base, _ := baseConn(tracked)
	base.replay = load.Pending
	return tracked
}

// deliver gives a connection to whoever goes on with it, and owns it no more.
func (h *Handoff) deliver(a arrival) {
	h.mu.Lock()
	f := h.onConn[a.cargo.Protocol]
	h.mu.Unlock()
	switch {
	case a.server != nil:
		a.server.add(a.conn, a.cargo)
	case f != nil:
		go f(a.conn, a.cargo.Session)
	}
}

// maxTakes bounds what is said of takes (bytes of JSON), so that it fits into a packet
// with the rest of a greeting.
const maxTakes = 40 << 10

// takes are the connections this generation can go on with. Of more than fit, those
// that are left out are closed politely by the other one.
func (h *Handoff) takes() []wire.Take {
	h.mu.Lock()
	defer h.mu.Unlock()
	var all []wire.Take
	for name, servers := range h.httpServers {
		if len(servers) > 0 {
			all = append(all, wire.Take{Protocol: protocolHTTP1, Socket: name})
		}
	}
	for protocol := range h.onConn {
		all = append(all, wire.Take{Protocol: protocol})
	}
	size := 0
	for i, t := range all {
		if text, err := json.Marshal(t); err == nil {
			size += len(text) + 1
		}
		if size > maxTakes {
			h.events.Logger().Warn("some connections cannot move here: the names of sockets and protocols are too long", "left out", len(all)-i)
			return all[:i]
		}
	}
	return all
}

// canTake reports whether this generation can go on with a connection, and
// which server does if it is HTTP/1. Sockets may share a name, those of one socket
// unit above all, and have servers of their own: then the address it was
// accepted at decides.
func (h *Handoff) canTake(c cargo, fd int) (server *arrivals, ok bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if c.Protocol != protocolHTTP1 {
		return nil, h.onConn[c.Protocol] != nil
	}
	servers := h.httpServers[c.Socket]
	if len(servers) == 1 {
		return servers[0], true
	}
	network, address := localAddress(fd)
	for _, s := range servers {
		if acceptedAt(s.Addr(), network, address) {
			return s, true
		}
	}
	return nil, false
}

// acceptedAt reports whether a connection with that local address can have
// come in through a listener at addr.
func acceptedAt(addr net.Addr, network, address string) bool {
	if addr.Network() != network {
		return false
	}
	if addr.String() == address {
		return true
	}
	bound, ok := addr.(*net.TCPAddr)
	if !ok || !bound.IP.IsUnspecified() {
		return false
	}
	local, err := netip.ParseAddrPort(address)
	return err == nil && int(local.Port()) == bound.Port
}

// tellTakes tells the other generation that takes has changed. Before READY
// says the same again, and without another generation nothing is said.
func (h *Handoff) tellTakes() { h.do(func(m *machine) { m.tellTakes() }) }
