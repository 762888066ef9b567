package dbusctl

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/godbus/dbus/v5"
)

// Manager is a connection to one systemd. Open it with [Dial].
type Manager struct {
	conn   *dbus.Conn
	direct bool // no bus daemon between: no matches to add, no owner to track
	sig    *dispatcher

	stop context.CancelFunc // ends the keeper and all watches
	life context.Context

	mu      sync.Mutex // guards what follows
	closed  bool
	running sync.WaitGroup
}

// Dial connects to systemd and subscribes to its signals. ctx bounds the
// dialling only; the connection lives until Close. The error matches ErrNoBus
// when there is no bus or no systemd on it.
func Dial(ctx context.Context, o Options) (*Manager, error) {
	var first *Error
	for _, ep := range endpoints(o, os.Getenv, os.Geteuid()) {
		m, err := dialEndpoint(ctx, ep)
		if err == nil {
			return m, nil
		}
		e := dialError(ctx, o, ep, err)
		if first == nil {
			first = e
		} else {
			first.Detail += "; " + e.Detail
		}
	}
	return nil, first
}

func dialError(ctx context.Context, o Options, ep endpoint, err error) *Error {
	var known *Error
	if errors.As(err, &known) {
		return known
	}
	e := &Error{Op: "connect to systemd", Err: ErrNoBus, Detail: ep.address + ": " + oneLine(err.Error()), Hint: hintNoBus}
	if o.User {
		e.Op = "connect to the user's systemd"
		e.Hint = "no user manager runs for this user here: log in as the user (not by su or sudo), or run loginctl enable-linger and set XDG_RUNTIME_DIR=/run/user/UID"
	}
	switch {
	case ctx.Err() != nil:
		e.Err = fmt.Errorf("%w: %w", ErrNoBus, ctx.Err())
		e.Detail = "no answer from " + ep.address
	case errors.Is(err, fs.ErrPermission):
		e.Err, e.Hint = ErrNotAuthorised, "run it as the user that owns this systemd, or as root"
	}
	return e
}

func dialEndpoint(ctx context.Context, ep endpoint) (*Manager, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	life, stop := context.WithCancel(context.WithoutCancel(ctx))
	m := &Manager{direct: ep.direct, sig: newDispatcher(ep.direct), life: life, stop: stop}
	// godbus' own channels may reorder signals when the reader lags (each
	// late one gets a goroutine), hence a handler of our own, which the
	// library calls in the order of arrival.
	conn, err := dbus.Dial(ep.address, dbus.WithSignalHandler(m.sig))
	if err != nil {
		stop()
		return nil, err
	}
	m.conn = conn

	// The handshake reads without a deadline: closing the connection is the
	// only way to end it early.
	hello := make(chan error, 1)
	go func() { hello <- m.handshake() }()
	select {
	case err = <-hello:
	case <-ctx.Done():
		conn.Close()
		<-hello
		err = ctx.Err()
	}
	if err == nil {
		err = m.subscribe(ctx)
	}
	if err != nil {
		stop()
		conn.Close()
		return nil, err
	}
	m.running.Add(1)
	go m.keep()
	return m, nil
}

func (m *Manager) handshake() error {
	if err := m.conn.Auth(nil); err != nil {
		return err
	}
	if m.direct {
		return m.nudge()
	}
	return m.conn.Hello()
}

// nudge waits until systemd answers on its private socket. When it reads the
// end of the authentication and our first message at once, it leaves that
// message in its buffer until more comes (252 and 257, about every second
// time); systemctl is spared because it authenticates in one burst and waits
// before it goes on. So more is sent until an answer arrives.
func (m *Manager) nudge() error {
	const ping = "org.freedesktop.DBus.Peer.Ping"
	systemd := m.conn.Object(destination, managerPath)
	answer := systemd.Go(ping, 0, make(chan *dbus.Call, 1)).Done
	again := time.NewTicker(5 * time.Millisecond)
	defer again.Stop()
	for {
		select {
		case reply := <-answer:
			return reply.Err
		case <-again.C:
			systemd.Go(ping, dbus.FlagNoReplyExpected, nil)
		}
	}
}

// subscribe finds systemd on the bus and asks it for signals, of which it
// sends none until somebody subscribes.
func (m *Manager) subscribe(ctx context.Context) error {
	const op = "connect to systemd"
	if !m.direct {
		for _, rule := range [][]dbus.MatchOption{
			{dbus.WithMatchSender(busIface), dbus.WithMatchInterface(busIface),
				dbus.WithMatchMember("NameOwnerChanged"), dbus.WithMatchArg(0, destination)},
			managerRule("JobRemoved"),
		} {
			if err := m.conn.AddMatchSignalContext(ctx, rule...); err != nil {
				return explain(ctx, op, "", err)
			}
		}
		owner, err := m.findOwner(ctx)
		if err != nil {
			return explain(ctx, op, "", err)
		}
		m.sig.setFirstOwner(owner)
	}
	return m.resubscribe(ctx)
}

// arrival is how long systemd may take to come to a bus that has just been
// started: it is on its way there only when the bus daemon runs.
const arrival = 2 * time.Second

// findOwner returns systemd's name on the bus.
func (m *Manager) findOwner(ctx context.Context) (owner string, err error) {
	late := time.NewTimer(arrival)
	defer late.Stop()
	for {
		err = m.conn.BusObject().CallWithContext(ctx, busIface+".GetNameOwner", 0, destination).Store(&owner)
		var reply dbus.Error
		if !errors.As(err, &reply) || reply.Name != "org.freedesktop.DBus.Error.NameHasNoOwner" {
			return owner, err
		}
		select {
		case <-m.sig.back():
		case <-late.C:
			return "", err
		case <-ctx.Done():
			return "", ctx.Err()
		}
	}
}

// managerRule matches a signal of systemd's manager object.
func managerRule(member string, more ...dbus.MatchOption) []dbus.MatchOption {
	return append([]dbus.MatchOption{dbus.WithMatchSender(destination), dbus.WithMatchObjectPath(managerPath),
		dbus.WithMatchInterface(managerIface), dbus.WithMatchMember(member)}, more...)
}

func (m *Manager) resubscribe(ctx context.Context) error {
	err := m.call(ctx, once, managerPath, managerIface+".Subscribe", nil)
	var reply dbus.Error
	if errors.As(err, &reply) && reply.Name == "org.freedesktop.systemd1.AlreadySubscribed" {
		err = nil // systemd carries the list of subscribers over a re-exec
	}
	if err != nil {
		return explain(ctx, "subscribe to systemd", "", err)
	}
	return nil
}

// keep renews the subscription when systemd comes back to the bus after a
// re-exec, and then makes everyone who waits look again: signals may have been
// missed in between. It runs until the connection ends.
func (m *Manager) keep() {
	defer m.running.Done()
	for {
		back := m.sig.back()
		select {
		case <-m.life.Done():
			return
		case <-m.conn.Context().Done():
			return
		case <-back:
		}
		ctx, cancel := context.WithTimeout(m.life, 10*time.Second)
		// An error means that systemd left again, in which case it will be
		// back again, or that the connection is gone, which others notice.
		_ = m.resubscribe(ctx)
		cancel()
		m.sig.pokeAll()
	}
}

// Close ends the connection, and with it all watches and waiting calls, and
// returns when their goroutines have ended.
func (m *Manager) Close() error {
	m.mu.Lock()
	m.closed = true
	m.mu.Unlock()
	m.stop()
	err := m.conn.Close()
	m.running.Wait()
	return err
}

// Done is closed when the connection has ended, by Close or by the bus.
func (m *Manager) Done() <-chan struct{} { return m.conn.Context().Done() }

// Err is nil while the connection lives, and tells afterwards why it ended;
// the error matches ErrNoBus.
func (m *Manager) Err() error {
	if m.conn.Context().Err() == nil {
		return nil
	}
	return m.lost("keep the connection to systemd", "")
}

// lost is the error of an operation that the end of the connection ended.
func (m *Manager) lost(op, unit string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return &Error{Op: op, Unit: unit, Err: ErrNoBus, Detail: "the connection is closed"}
	}
	return &Error{Op: op, Unit: unit, Err: ErrNoBus, Detail: "the bus closed the connection", Hint: hintNoBus}
}

// Version is systemd's version, as a number for comparisons (252) and in full
// ("252.38-1~deb12u1").
func (m *Manager) Version(ctx context.Context) (int, string, error) {
	const op = "read systemd's version"
	var v dbus.Variant
	if err := m.call(ctx, reading, managerPath, propsIface+".Get", []any{&v}, managerIface, "Version"); err != nil {
		return 0, "", explain(ctx, op, "", err)
	}
	full, _ := v.Value().(string)
	n, err := parseVersion(full)
	if err != nil {
		return 0, full, &Error{Op: op, Err: err}
	}
	return n, full, nil
}

// parseVersion reads the leading number: "252.38-1~deb12u1", "v246.10", "258~rc1".
func parseVersion(s string) (int, error) {
	digits := strings.TrimPrefix(s, "v")
	if i := strings.IndexFunc(digits, func(r rune) bool { return r < '0' || r > '9' }); i >= 0 {
		digits = digits[:i]
	}
	n, err := strconv.Atoi(digits)
	if err != nil {
		return 0, fmt.Errorf("unexpected version %q", s)
	}
	return n, nil
}
