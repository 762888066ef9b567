package handoff

import (
	"errors"
	"slices"

	"github.com/zdt-dev/zdt/handoff/control"
	"github.com/zdt-dev/zdt/internal/netfd"
	"github.com/zdt-dev/zdt/internal/takeover"
	"github.com/zdt-dev/zdt/internal/wire"
)

// A process in another container cannot be forked by the service: it is started
// by whoever runs containers, finds the service at a path that both share
// (Options.Takeover), and asks for its sockets. From then on it is a
// candidate like any other. What differs is at the edges:
//
//   - the sockets come over the link, and not by inheritance: give and adopt here,
//   - the incumbent has no process to signal or to wait for, only the link: takeover_invite.go,
//   - each side has a supervisor of its own, and perhaps a control socket: takeover_join.go.

// openTakeover serves the takeover socket fd, or none (fd < 0). It owns fd,
// also when it fails.
func openTakeover(h *Handoff, fd int) (*takeover.Server, error) {
	return takeover.Serve(fd, h.opt.Takeover, takeover.Runtime{
		Asked: func(l *wire.Link, ask wire.Message, pid int) (code, why string) {
			code, why = control.CodeNotReady, "this generation is done"
			h.do(func(m *machine) { code, why = m.asked(l, ask, pid) })
			return code, why
		},
		Log: h.events.Logger().With("service", h.opt.Service),
	})
}

// give sends every socket of this generation, and then hello.
func (h *Handoff) give(l *wire.Link, hello wire.Message) error {
	return h.sockets.pass(func(names []string, fds []int) error {
		g := takeover.Gift{Names: names, FDs: fds, Takeover: h.takeover.FD(), Control: h.control.FD()}
		return g.Send(l, h.opt.ControlSocket, hello)
	})
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
		if slices.ContainsFunc(adopted, func(a *socket) bool { return takeover.SameSocket(a.fd, s.fd) }) {
			netfd.Close(s.fd)
			continue
		}
		r.all = append(r.all, s)
	}
	return errors.Join(errs...)
}
