package handoff

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/zdt-dev/zdt/internal/listenfds"
	"github.com/zdt-dev/zdt/internal/netfd"
)

// handed describes one descriptor of a "sockets" packet.
type handed struct {
	// Name is the socket's; empty for what has a role.
	Name string `json:"name,omitempty"`
	Role string `json:"role,omitempty"`
	// Dev and Ino are the file that the control socket is found at. A process
	// that has its control socket at the very same file shares it.
	Dev uint64 `json:"dev,omitempty"`
	Ino uint64 `json:"ino,omitempty"`
}

// What a descriptor is that is no socket of the service.
const (
	roleControl  = "control"
	roleTakeover = "takeover"
)

// maxNames bounds the names in one packet, in bytes of JSON, far enough below
// maxPacket for the rest.
const maxNames = 48 << 10

// give sends every socket of this generation, and then hello.
func (h *Handoff) give(l *link, hello message) error {
	return h.sockets.pass(func(names []string, fds []int) error {
		list := make([]handed, 0, len(names)+2)
		for _, name := range names {
			list = append(list, handed{Name: name})
		}
		if fd := h.takeover.fd(); fd >= 0 {
			list, fds = append(list, handed{Role: roleTakeover}), append(fds, fd)
		}
		if fd := h.control.FD(); fd >= 0 {
			dev, ino, _ := fileAt(h.opt.ControlSocket)
			list, fds = append(list, handed{Role: roleControl, Dev: dev, Ino: ino}), append(fds, fd)
		}
		total := len(list)
		for len(list) > 0 {
			n, err := fitting(list)
			if err != nil {
				return err
			}
			if err := l.sendFiles(message{Type: msgSockets, Total: total, Sockets: list[:n]}, fds[:n]...); err != nil {
				return err
			}
			list, fds = list[n:], fds[n:]
		}
		return l.send(hello)
	})
}

// fitting returns how many of list go into one packet: as many as the kernel
// passes at once, and as have room.
func fitting(list []handed) (int, error) {
	size := 0
	for i, item := range list {
		text, err := json.Marshal(item)
		if err != nil {
			return 0, err
		}
		if size += len(text) + 1; i == maxBatch || i > 0 && size > maxNames {
			return i, nil
		}
	}
	return len(list), nil
}

// gift is what a process was given that asked for a service. It owns the
// descriptors.
type gift struct {
	names             []string
	fds               []int // of names
	control, takeover int   // or -1
	file              handed
	total, got        int
}

func emptyGift() gift { return gift{control: -1, takeover: -1} }

// add takes the descriptors of a packet over, also when it fails.
func (g *gift) add(m message) error {
	defer m.closeFiles() // those that nobody wanted
	switch {
	case len(m.files) != len(m.Sockets):
		// A receiver short of descriptors gets the first few, and no error.
		return fmt.Errorf("%d of %d sockets came through: out of descriptors (LimitNOFILE=, ulimit -n)?", len(m.files), len(m.Sockets))
	case g.total != 0 && g.total != m.Total, g.got+len(m.files) > m.Total:
		return fmt.Errorf("%w: sockets that do not add up", errPacket)
	}
	g.total = m.Total
	for i, item := range m.Sockets {
		switch {
		case item.Role == roleControl && g.control < 0:
			g.control, g.file = m.files[i], item
		case item.Role == roleTakeover && g.takeover < 0:
			g.takeover = m.files[i]
		case item.Role != "":
			netfd.Close(m.files[i]) // of a newer peer
		case !listenfds.ValidName(item.Name):
			m.files = m.files[i:]
			return fmt.Errorf("%w: a socket called %q", errPacket, item.Name)
		default:
			g.names, g.fds = append(g.names, item.Name), append(g.fds, m.files[i])
		}
	}
	g.got += len(m.files)
	m.files = nil
	return nil
}

// complete reports whether everything announced has come.
func (g *gift) complete() error {
	switch {
	case g.got != g.total:
		return fmt.Errorf("%w: hello after %d of %d sockets", errPacket, g.got, g.total)
	case g.takeover < 0:
		return fmt.Errorf("%w: no takeover socket among %d sockets", errPacket, g.total)
	}
	return nil
}

func (g *gift) close() {
	for _, fd := range append(g.fds, g.control, g.takeover) {
		if fd >= 0 {
			netfd.Close(fd)
		}
	}
	*g = emptyGift()
}

// shares reports whether the control socket at path is the one in the gift:
// old and new process see the same directory.
func (g *gift) shares(path string) bool {
	if g.control < 0 || path == "" {
		return false
	}
	dev, ino, ok := fileAt(path)
	return ok && dev == g.file.Dev && ino == g.file.Ino
}

// adopt registers the sockets of a gift and owns them, also when it fails. They
// come before those that systemd has passed: the clients are there. What systemd
// has passed and is the very same socket is closed; a manager of containers may
// pass its own listening sockets to both.
func (r *sockets) adopt(names []string, fds []int) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	own := r.all
	r.all = nil
	var errs []error
	for i, name := range names {
		errs = append(errs, r.take(name, fds[i], fromPredecessor))
	}
	adopted := r.all
	for _, s := range own {
		if slices.ContainsFunc(adopted, func(a *socket) bool { return sameSocket(a.fd, s.fd) }) {
			netfd.Close(s.fd)
			continue
		}
		r.all = append(r.all, s)
	}
	return errors.Join(errs...)
}
