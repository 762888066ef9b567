//go:build linux

package helper

import (
	"context"
	"fmt"
	"math"
	"net"
	"os"
	"strconv"
	"time"

	"github.com/zdt-dev/zdt/handoff/control"
	"github.com/zdt-dev/zdt/internal/listenfds"
	"github.com/zdt-dev/zdt/internal/netfd"
	"github.com/zdt-dev/zdt/internal/sdnotify"
	"github.com/zdt-dev/zdt/journal"
)

// open gets a helper everything it has for its whole life. Nothing of it is left
// open when it fails.
func open(o Options) (*keeper, error) {
	k := newKeeper(o)
	k.watchdog = watchdogOf(os.Getenv, os.Getpid())
	k.ignoreSIGPIPE = os.Getenv("SYSTEMD_EXEC_PID") == strconv.Itoa(os.Getpid())
	var err error
	defer func() {
		if err != nil {
			k.declineTakeover(err)
			k.release()
		}
	}()
	if err = k.inherit(os.Getenv, os.Getpid()); err != nil {
		return nil, fmt.Errorf("take over inherited sockets: %w", err)
	}
	if err = k.join(); err != nil {
		return nil, err
	}
	for _, l := range o.Listen {
		if err = k.bind(l); err != nil {
			return nil, fmt.Errorf("listen on %s %s: %w", l.Network, l.Address, err)
		}
	}
	if err = k.openQueues(); err != nil {
		return nil, err
	}
	if k.reaper, err = startReaper(); err != nil {
		return nil, err
	}
	if err = k.greet(); err != nil {
		return nil, err
	}
	k.watch()
	return k, nil
}

func newKeeper(o Options) *keeper {
	exe, _ := os.Executable() // for people
	n := sdnotify.Notifier{Socket: os.Getenv("NOTIFY_SOCKET")}
	return &keeper{
		crew: crew{others: make([]*generation, max(0, o.Workers-1))},
		opt:  o, app: o.App.Defaults(), exe: exe, notifier: n, courier: startCourier(n), started: time.Now(),
		events: journal.NewLog(o.Service, journal.NewWriter(journal.DefaultSocket), o.Logger), watchers: control.Watchers{},
		news: make(chan news), calls: make(chan func()), deaf: make(chan struct{}),
	}
}

// inherit takes the descriptors over that systemd has passed. Those that are no sockets to
// accept on, or to receive from, are what the program had put into systemd's store (FDSTORE=1).
func (k *keeper) inherit(getenv func(string) string, pid int) error {
	if !listenfds.MeantFor(getenv, pid) {
		return nil
	}
	names, err := listenfds.Names(getenv)
	if err != nil {
		return err
	}
	for i, name := range names {
		fd := listenfds.Start + i
		netfd.Claim(fd)
		s := Socket{Name: name, FD: fd}
		if s.Network, s.Address, err = netfd.Info(fd); err != nil {
			k.stored = append(k.stored, s)
			continue
		}
		k.sockets = append(k.sockets, s)
	}
	return nil
}

// closeStored closes what only the first generation gets. A copy that stayed here would
// keep a connection open that the program has closed.
func (k *keeper) closeStored() {
	for _, s := range k.stored {
		netfd.Close(s.FD)
	}
	k.stored = nil
}

// bind binds a socket unless one of its name was inherited. One that has the
// address by another name is not bound a second time: its clients would wait in two queues. All addresses of IPv4 and all
// of IPv6 with one port are two sockets, as nginx has them, and the second is of IPv6 alone then.
func (k *keeper) bind(l Listen) error {
	for _, s := range k.sockets { // whatever their order: the name decides
		switch {
		case s.Name == l.Name && !netfd.SameKind(s.Network, l.Network):
			return fmt.Errorf("the inherited socket %q is %s", s.Name, s.Network)
		case s.Name == l.Name:
			return nil
		}
	}
	network := l.Network
	for _, s := range k.sockets {
		switch same := netfd.SameKind(s.Network, l.Network); {
		case same && apart(s, l.Address):
			if network == "tcp" || network == "udp" {
				network += "6"
			}
		case same && netfd.SameAddress(s.Address, l.Address):
			return fmt.Errorf("it was inherited already, by the name of %q", s.Name)
		}
	}
	fd, err := netfd.Bind(context.Background(), network, l.Address, k.ownQueues(l.Network))
	if err != nil {
		return err
	}
	s := Socket{Name: l.Name, FD: fd}
	if s.Network, s.Address, err = netfd.Info(fd); err != nil {
		netfd.Close(fd)
		return err
	}
	k.sockets = append(k.sockets, s)
	k.bound++
	return nil
}

// apart reports whether a socket has all addresses of IPv4 and address is all of IPv6.
func apart(s Socket, address string) bool {
	have, port, err := net.SplitHostPort(s.Address)
	return err == nil && have == "0.0.0.0" && address == "[::]:"+port
}

// environ is what a generation's environment has besides the unit's.
func (k *keeper) environ(g *generation) []string {
	env := append(listenfds.Strip(g.app.Environ, "NOTIFY_SOCKET", "WATCHDOG_USEC", "ZDT_TAKEOVER", "ZDT_GENERATION", "ZDT_WORKER", "ZDT_CONTROL_SOCKET", "ZDT_APP_PID"),
		"NOTIFY_SOCKET="+g.mailbox.Path(),
		"ZDT_GENERATION="+strconv.Itoa(g.number), "ZDT_WORKER="+strconv.Itoa(g.slot+1),
		// For a program that hands over by itself when nobody does it for it.
		"ZDT_CONTROL_SOCKET=-", "ZDT_APP_PID="+ownPID)
	if k.watchdog > 0 {
		env = append(env, "WATCHDOG_USEC="+strconv.FormatInt(k.watchdog.Microseconds(), 10), "WATCHDOG_PID="+ownPID)
	}
	return env
}

// release closes what open has opened.
func (k *keeper) release() {
	k.closeCrossing()
	if k.reaper != nil {
		k.reaper.stop()
	}
	for _, s := range k.sockets {
		netfd.Close(s.FD)
	}
	k.closeQueues()
	k.closeStored()
	k.courier.Close()
	k.events.Close()
}

// watchdogOf is WATCHDOG_USEC if it is meant for this process; 0: systemd watches no heartbeat.
func watchdogOf(getenv func(string) string, pid int) time.Duration {
	if p := getenv("WATCHDOG_PID"); p != "" && p != strconv.Itoa(pid) {
		return 0
	}
	usec, err := strconv.ParseUint(getenv("WATCHDOG_USEC"), 10, 63)
	if err != nil || usec > math.MaxInt64/1000 {
		return 0 // systemd's own: it writes no other
	}
	return time.Duration(usec) * time.Microsecond
}
