package rehearse

import (
	"context"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/zdt-dev/zdt/internal/health"
	"github.com/zdt-dev/zdt/internal/script"
)

// askGates asks the gates that can be asked. They are the service's own, with its own addresses, which in the namespace of the
// rehearsal lead to the candidate.
func (r *run) askGates(ctx context.Context) error {
	if len(r.plan.Gates) == 0 {
		return nil
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	env, closeDoors, err := r.openDoors(ctx)
	if err != nil {
		return err
	}
	defer closeDoors()
	prober := health.Prober{
		Dial:  r.connect,
		Whose: r.ns.whose,
		Command: func(ctx context.Context, c script.Command) script.Result {
			c.Env = append(c.Env, env...)
			return script.Run(ctx, c)
		},
	}
	w := prober.Run(ctx, r.plan.Gates, health.Candidate{
		Service: r.result.Service, TxID: r.opt.TxID, PID: r.main, Release: r.opt.Release.ID, Exe: r.opt.Release.Path,
	}, func(p health.Progress) { r.tell(p.String()) })
	select {
	case <-w.Passed():
	case err = <-w.Failed():
	case <-ctx.Done():
		err = context.Cause(ctx)
	}
	r.result.Gates = w.Close()
	return err
}

// connect is a gate's connection: to the address of the service, and to the socket of the rehearsal.
func (r *run) connect(ctx context.Context, network, address string) (net.Conn, error) {
	i := r.plan.find(network, address)
	if i < 0 {
		return nil, fmt.Errorf("no socket of the rehearsal has the address %s", address)
	}
	s := r.plan.Sockets[i]
	return r.ns.dial(ctx, s.Network, s.dial())
}

// openDoors makes, when a gate is a command, each stream socket reachable from outside of the namespace for as long as ctx
// lasts, and returns the variables that say where: commands run where the service does.
func (r *run) openDoors(ctx context.Context) (env []string, closeAll func(), err error) {
	var doors sync.WaitGroup
	var open []net.Listener
	closeAll = func() {
		for _, ln := range open {
			ln.Close()
		}
		doors.Wait()
	}
	env = []string{"ZDT_REHEARSAL=1"}
	commands := false
	for _, g := range r.plan.Gates {
		kind, _, _ := targetOf(g.String())
		commands = commands || kind == "exec"
	}
	for _, s := range r.plan.Sockets {
		if !commands || !s.stream() {
			continue
		}
		name := "ZDT_ADDR_" + variable(s.Name)
		if s.path() {
			env = append(env, name+"="+s.At)
			continue
		}
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			closeAll()
			return nil, nil, fmt.Errorf("open a way into the rehearsal: %w", err)
		}
		open = append(open, ln)
		env = append(env, name+"="+ln.Addr().String())
		doors.Go(func() { r.forward(ctx, ln, s) })
	}
	return env, closeAll, nil
}

// forward passes connections on until ln is closed and they have ended.
func (r *run) forward(ctx context.Context, ln net.Listener, s Socket) {
	var conns sync.WaitGroup
	defer conns.Wait()
	for {
		in, err := ln.Accept()
		if err != nil {
			return
		}
		conns.Go(func() {
			defer in.Close()
			out, err := r.ns.dial(ctx, s.Network, s.dial())
			if err != nil {
				return
			}
			defer out.Close()
			defer context.AfterFunc(ctx, func() { in.Close(); out.Close() })()
			back := make(chan struct{})
			go func() {
				defer close(back)
				io.Copy(out, in)
				if c, ok := out.(interface{ CloseWrite() error }); ok {
					c.CloseWrite()
				}
			}()
			io.Copy(in, out)
			in.Close()
			<-back
		})
	}
}

// variable is a name as part of the name of a variable.
func variable(name string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z':
			return r - 'a' + 'A'
		case r >= 'A' && r <= 'Z', r >= '0' && r <= '9':
			return r
		}
		return '_'
	}, name)
}

func signalName(n int) string { return unix.SignalName(syscall.Signal(n)) }
