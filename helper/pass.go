package helper

import (
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"

	"github.com/zdt-dev/zdt/internal/listenfds"
)

// Socket is a socket that the program inherits. The helper owns FD and keeps it
// open for every generation to come.
type Socket struct {
	// Name is the socket's name in LISTEN_FDNAMES and in {fd:NAME}.
	Name string
	// Network is one of package net: tcp, udp, unix, unixgram, unixpacket.
	Network string
	// Address is what the socket is bound to: host:port, a path, or @name.
	Address string
	FD      int
}

// Passing is how a program is told which descriptors are its sockets. The ways do not
// disturb one another, they differ in the names of the variables only, so that
// more than one may be chosen.
//
// Besides, {fd:NAME} in an argument or in a variable's value becomes the number of
// the descriptor, {port:NAME} the port and {addr:NAME} the whole address of the
// socket of that name; {worker} becomes the number of the worker, from 1. To be
// meant literally, the brace in front of fd:, port:, addr: or worker} is written
// twice: {{fd:http} becomes {fd:http}. Any other brace is left alone.
type Passing struct {
	// Systemd is sd_listen_fds(3): LISTEN_PID, LISTEN_FDS, LISTEN_FDNAMES.
	Systemd bool
	// ServerStarter is SERVER_STARTER_PORT, "127.0.0.1:80=3;/run/web.sock=4", and
	// SERVER_STARTER_GENERATION. It knows stream sockets only.
	ServerStarter bool
	// Einhorn is EINHORN_FDS, EINHORN_FD_COUNT, EINHORN_FD_0 …, EINHORN_FD_FAMILY_0 … and EINHORN_CHILD_INDEX.
	// EINHORN_MASTER_PID and EINHORN_SOCK_PATH are not set: they promise a
	// control socket that takes acknowledgements, and a program that finds the first and
	// not the second refuses to start. It knows stream sockets only.
	Einhorn bool
	// Nginx is what nginx leaves for its next binary: NGINX=3;4; — a number without
	// its semicolon is not read. nginx closes those that its configuration
	// does not listen on, and never becomes a daemon when the variable is there.
	Nginx bool
	// Stdin is the name of the socket that becomes descriptor 0 and nothing else, as
	// inetd does it for "wait" services and Java's System.inheritedChannel expects
	// it. It is no part of LISTEN_FDS then, which begins with 3 by definition.
	Stdin string

	generation int // SERVER_STARTER_GENERATION
	worker     int // EINHORN_CHILD_INDEX, which counts from 0; 0: there is none
}

// envGroup marks the processes of one group, see group.Kill.
const envGroup = "ZDT_GROUP"

// staleNames are variables that described this process, or one before it, and
// would lie about the program. LISTEN_PIDFDID is checked by libsystemd since 259.
var staleNames = [...]string{
	"LISTEN_PID", "LISTEN_PIDFDID", "LISTEN_FDS", "LISTEN_FDNAMES",
	"WATCHDOG_PID", "SYSTEMD_EXEC_PID", "ZDT_PREDECESSOR_FD", envGroup,
	"SERVER_STARTER_PORT", "SERVER_STARTER_GENERATION", "NGINX",
}

func isStale(kv string) bool {
	name, value, _ := strings.Cut(kv, "=")
	if value == ownPID {
		return false // somebody here has just written it, as WATCHDOG_PID
	}
	return slices.Contains(staleNames[:], name) || strings.HasPrefix(name, "EINHORN_")
}

// given is a socket with the number that the program sees.
type given struct {
	Socket
	number int
}

// arrange says how argv is started with the sockets. env is the environment
// the program shall have; what it says of descriptors is replaced. Stdio is the
// helper's own but for Stdin.
func (p Passing) arrange(sockets []Socket, argv, env []string) (program, error) {
	prog := program{Stdio: [3]int{0, 1, 2}}
	all := make([]given, 0, len(sockets))
	stdin := false
	for _, s := range sockets {
		if !listenfds.ValidName(s.Name) {
			return program{}, fmt.Errorf("pass socket %q: a name has 1 to 255 printable ASCII characters and no colon", s.Name)
		}
		if p.Stdin != "" && s.Name == p.Stdin {
			if stdin {
				return program{}, fmt.Errorf("pass socket %q as descriptor 0: there is more than one of that name", s.Name)
			}
			stdin = true
			prog.Stdio[0] = s.FD
			all = append(all, given{s, 0})
			continue
		}
		all = append(all, given{s, listenfds.Start + len(prog.FDs)})
		prog.FDs = append(prog.FDs, s.FD)
	}
	if p.Stdin != "" && !stdin {
		return program{}, fmt.Errorf("pass a socket as descriptor 0: %w", noSuchName(all, p.Stdin))
	}
	for i, arg := range argv {
		expanded, err := expand(arg, all, p.worker)
		if err != nil {
			return program{}, fmt.Errorf("argument %d %q: %w", i, arg, err)
		}
		prog.Argv = append(prog.Argv, expanded)
	}
	for _, kv := range env {
		if isStale(kv) {
			continue
		}
		name, value, ok := strings.Cut(kv, "=")
		if ok && value != ownPID {
			expanded, err := expand(value, all, p.worker)
			if err != nil {
				return program{}, fmt.Errorf("variable %s: %w", name, err)
			}
			kv = name + "=" + expanded
		}
		prog.Env = append(prog.Env, kv)
	}
	told, err := p.variables(all)
	if err != nil {
		return program{}, err
	}
	prog.Env = append(prog.Env, told...)
	if len(prog.Argv) > 0 {
		prog.Path = prog.Argv[0]
	}
	return prog, prog.check()
}

// variables are those of the conventions chosen. One that has nothing to tell is
// left out: an empty SERVER_STARTER_PORT is an error to those who read it.
func (p Passing) variables(all []given) ([]string, error) {
	var env, names, starter, einhorn []string
	var nginx strings.Builder
	for _, g := range all {
		number := strconv.Itoa(g.number)
		if g.number >= listenfds.Start {
			names = append(names, g.Name)
		}
		if strings.HasPrefix(g.Network, "tcp") || strings.HasPrefix(g.Network, "udp") || g.Network == "unix" {
			nginx.WriteString(number + ";")
		}
		if !g.stream() {
			continue
		}
		// Readers differ in which = they cut at and none has a way to quote.
		if p.ServerStarter && strings.ContainsAny(g.Address, "=;") {
			return nil, fmt.Errorf("pass socket %q the way of Server::Starter: its address %q must not hold = or ;", g.Name, g.Address)
		}
		starter = append(starter, strings.TrimPrefix(g.Address, ":")+"="+number)
		if p.Einhorn {
			i := strconv.Itoa(len(einhorn))
			env = append(env, "EINHORN_FD_"+i+"="+number, "EINHORN_FD_FAMILY_"+i+"="+g.family())
		}
		einhorn = append(einhorn, number)
	}
	if p.Systemd && len(names) > 0 {
		env = append(env, "LISTEN_PID="+ownPID, "LISTEN_FDS="+strconv.Itoa(len(names)), "LISTEN_FDNAMES="+strings.Join(names, ":"))
	}
	if p.ServerStarter && len(starter) > 0 {
		env = append(env, "SERVER_STARTER_PORT="+strings.Join(starter, ";"), "SERVER_STARTER_GENERATION="+strconv.Itoa(p.generation))
	}
	if p.Einhorn && p.worker > 0 {
		env = append(env, "EINHORN_CHILD_INDEX="+strconv.Itoa(p.worker-1))
	}
	if p.Einhorn && len(einhorn) > 0 {
		env = append(env, "EINHORN_FD_COUNT="+strconv.Itoa(len(einhorn)), "EINHORN_FDS="+strings.Join(einhorn, " "))
	}
	if p.Nginx && nginx.Len() > 0 {
		env = append(env, "NGINX="+nginx.String())
	}
	return env, nil
}

func (g given) stream() bool { return g.Network == "unix" || strings.HasPrefix(g.Network, "tcp") }

// family is the socket's family in C's word for it.
func (g given) family() string {
	switch host, _, _ := net.SplitHostPort(g.Address); {
	case g.Network == "unix":
		return "AF_UNIX"
	case strings.Contains(host, ":"):
		return "AF_INET6"
	default:
		return "AF_INET"
	}
}

// placeholders are what may stand between { and the name. The last has none.
var placeholders = [...]string{"fd:", "port:", "addr:", placeWorker}

const placeWorker = "worker}"

// expand replaces the placeholders in text.
func expand(text string, all []given, worker int) (string, error) {
	var out strings.Builder
	for {
		before, rest, found := strings.Cut(text, "{")
		out.WriteString(before)
		if !found {
			return out.String(), nil
		}
		if kind := placeholder(strings.TrimPrefix(rest, "{")); kind != "" && strings.HasPrefix(rest, "{") {
			out.WriteString(rest[:1+len(kind)])
			text = rest[1+len(kind):]
			continue
		}
		kind := placeholder(rest)
		if kind == "" {
			out.WriteByte('{')
			text = rest
			continue
		}
		if kind == placeWorker {
			out.WriteString(strconv.Itoa(max(1, worker)))
			text = rest[len(kind):]
			continue
		}
		name, after, closed := strings.Cut(rest[len(kind):], "}")
		if !closed {
			return "", fmt.Errorf("{%s has no closing brace; write {{%s for the text itself", kind, kind)
		}
		value, err := resolve(kind, name, all)
		if err != nil {
			return "", fmt.Errorf("{%s%s}: %w; write {{%s for the text itself", kind, name, err, kind)
		}
		out.WriteString(value)
		text = after
	}
}

// placeholder returns the kind of placeholder that text begins with.
func placeholder(text string) string {
	for _, kind := range placeholders {
		if strings.HasPrefix(text, kind) {
			return kind
		}
	}
	return ""
}

func resolve(kind, name string, all []given) (string, error) {
	var found []given
	for _, g := range all {
		if g.Name == name {
			found = append(found, g)
		}
	}
	if len(found) == 0 {
		return "", noSuchName(all, name)
	}
	if len(found) > 1 {
		return "", fmt.Errorf("%d sockets are named %q; give each a name of its own (FileDescriptorName= in a socket unit)", len(found), name)
	}
	switch g := found[0]; kind {
	case "fd:":
		return strconv.Itoa(g.number), nil
	case "addr:":
		return g.Address, nil
	default:
		_, port, err := net.SplitHostPort(g.Address)
		if err != nil || strings.HasPrefix(g.Network, "unix") {
			return "", fmt.Errorf("the socket's address %q has no port", g.Address)
		}
		return port, nil
	}
}

// noSuchName says which names there are instead.
func noSuchName(all []given, name string) error {
	var names []string
	for _, g := range all {
		names = append(names, g.Name)
	}
	if names == nil {
		return fmt.Errorf("no socket is named %q, there are none at all", name)
	}
	slices.Sort(names)
	return fmt.Errorf("no socket is named %q, there is: %s", name, strings.Join(slices.Compact(names), ", "))
}
