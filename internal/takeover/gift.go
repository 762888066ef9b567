package takeover

import (
	"encoding/json"
	"fmt"

	"github.com/zdt-dev/zdt/internal/listenfds"
	"github.com/zdt-dev/zdt/internal/netfd"
	"github.com/zdt-dev/zdt/internal/wire"
)

// Gift is what one process gives to another: the sockets of a service. Where it
// arrives it owns the descriptors; where it is sent from they stay the sender's.
type Gift struct {
	Names []string
	FDs   []int // of Names
	// Control and Takeover are the sockets that the service itself is found by, or -1.
	Control, Takeover int

	file       wire.Handed // that the control socket is found at
	total, got int
}

// NoGift is one without anything.
func NoGift() Gift { return Gift{Control: -1, Takeover: -1} }

// maxNames bounds the names in one packet, in bytes of JSON, far enough below
// wire.MaxPacket for the rest.
const maxNames = 48 << 10

// maxSockets is how many sockets travel in one packet.
const maxSockets = wire.MaxFiles - 1

// Send gives g to the process at the other end of l, and then says hello to it.
// controlPath is where g.Control is found.
func (g Gift) Send(l *wire.Link, controlPath string, hello wire.Message) error {
	list, fds := make([]wire.Handed, 0, len(g.Names)+2), append([]int(nil), g.FDs...)
	for _, name := range g.Names {
		list = append(list, wire.Handed{Name: name})
	}
	if g.Takeover >= 0 {
		list, fds = append(list, wire.Handed{Role: wire.RoleTakeover}), append(fds, g.Takeover)
	}
	if g.Control >= 0 {
		dev, ino, _ := fileAt(controlPath)
		list, fds = append(list, wire.Handed{Role: wire.RoleControl, Dev: dev, Ino: ino}), append(fds, g.Control)
	}
	total := len(list)
	for len(list) > 0 {
		n, err := fitting(list)
		if err != nil {
			return err
		}
		if err := l.SendFiles(wire.Message{Type: wire.Sockets, Total: total, Sockets: list[:n]}, fds[:n]...); err != nil {
			return err
		}
		list, fds = list[n:], fds[n:]
	}
	return l.Send(hello)
}

// fitting returns how many of list go into one packet: as many as the kernel
// passes at once, and as have room.
func fitting(list []wire.Handed) (int, error) {
	size := 0
	for i, item := range list {
		text, err := json.Marshal(item)
		if err != nil {
			return 0, err
		}
		if size += len(text) + 1; i == maxSockets || i > 0 && size > maxNames {
			return i, nil
		}
	}
	return len(list), nil
}

// add takes the descriptors of a packet over, also when it fails.
func (g *Gift) add(m wire.Message) error {
	defer m.CloseFiles() // those that nobody wanted
	switch {
	case len(m.Files) != len(m.Sockets):
		// A receiver short of descriptors gets the first few, and no error.
		return fmt.Errorf("%d of %d sockets came through: out of descriptors (LimitNOFILE=, ulimit -n)?", len(m.Files), len(m.Sockets))
	case g.total != 0 && g.total != m.Total, g.got+len(m.Files) > m.Total:
		return fmt.Errorf("%w: sockets that do not add up", wire.ErrPacket)
	}
	g.total = m.Total
	for i, item := range m.Sockets {
		switch {
		case item.Role == wire.RoleControl && g.Control < 0:
			g.Control, g.file = m.Files[i], item
		case item.Role == wire.RoleTakeover && g.Takeover < 0:
			g.Takeover = m.Files[i]
		case item.Role != "":
			netfd.Close(m.Files[i]) // of a newer peer
		case !listenfds.ValidName(item.Name):
			m.Files = m.Files[i:]
			return fmt.Errorf("%w: a socket called %q", wire.ErrPacket, item.Name)
		default:
			g.Names, g.FDs = append(g.Names, item.Name), append(g.FDs, m.Files[i])
		}
	}
	g.got += len(m.Files)
	m.Files = nil
	return nil
}

// complete reports whether everything announced has come.
func (g *Gift) complete() error {
	switch {
	case g.got != g.total:
		return fmt.Errorf("%w: hello after %d of %d sockets", wire.ErrPacket, g.got, g.total)
	case g.Takeover < 0:
		return fmt.Errorf("%w: no takeover socket among %d sockets", wire.ErrPacket, g.total)
	}
	return nil
}

// Close closes what arrived.
func (g *Gift) Close() {
	for _, fd := range append(g.FDs, g.Control, g.Takeover) {
		if fd >= 0 {
			netfd.Close(fd)
		}
	}
	*g = NoGift()
}

// Shares reports whether the control socket at path is the one in the gift:
// old and new process see the same directory.
func (g *Gift) Shares(path string) bool {
	if g.Control < 0 || path == "" {
		return false
	}
	dev, ino, ok := fileAt(path)
	return ok && dev == g.file.Dev && ino == g.file.Ino
}
