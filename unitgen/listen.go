package unitgen

import (
	"net/netip"
	"path"
	"regexp"
	"strconv"
	"strings"
	"unicode"
)

// A Listen is one socket of a service, written [PROTO:]ADDR[=FDNAME].
type Listen struct {
	// Proto is the network as Go's net package names it: tcp, udp, unix,
	// unixgram or unixpacket.
	Proto string
	// Addr is ":8080", "127.0.0.1:80", "[::1]:80", an absolute path, or
	// "@name" for an abstract unix socket.
	Addr string
	// FDName is the name the program finds the socket by; without one it goes
	// by the address. Sockets of one name share a socket unit.
	FDName string
}

// fdName is the rule for FDName. It is narrower than systemd's: the name
// becomes part of a unit's name.
var fdName = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9_-]{0,62}[A-Za-z0-9])?$`)

// sunPathMax is how many bytes of a path fit into sockaddr_un beside its NUL.
const sunPathMax = 107

const listenFix = "write it as [PROTO:]ADDR[=FDNAME], for example :8080, tcp:127.0.0.1:8080=http, udp:[::1]:53 or /run/app.sock"

// ParseListen reads [PROTO:]ADDR[=FDNAME]. PROTO is tcp (the default for
// ADDR:PORT), udp, unix (the default for a path or @name), unixgram or
// unixpacket. The last "=" begins FDNAME. The error is an *InputError.
func ParseListen(s string) (Listen, error) {
	l, err := splitListen(s)
	if err == nil {
		err = l.validate(s)
	}
	if err != nil {
		return Listen{}, err
	}
	if !l.local() && l.Addr[0] != ':' {
		l.Addr = netip.MustParseAddrPort(l.Addr).String() // one spelling per address
	}
	return l, nil
}

// ParseTemplateListen is ParseListen for a socket of a template. With %i, which stands for the instance, it may
// be anything until that is known: Spec.Validate tells.
func ParseTemplateListen(s string) (Listen, error) {
	if !strings.Contains(s, specifier) {
		return ParseListen(s)
	}
	return splitListen(s)
}

// splitListen takes a socket apart.
func splitListen(s string) (Listen, error) {
	var l Listen
	rest := s
	if i := strings.LastIndexByte(rest, '='); i >= 0 {
		if l.FDName = rest[i+1:]; l.FDName == "" {
			return Listen{}, refuse("listen", s, "the name after = is empty", listenFix)
		}
		rest = rest[:i]
	}
	if proto, addr, ok := strings.Cut(rest, ":"); ok {
		switch proto {
		case "tcp", "udp", "unix", "unixgram", "unixpacket":
			l.Proto, rest = proto, addr
		}
	}
	if l.Proto == "" {
		l.Proto = "tcp"
		if strings.HasPrefix(rest, "/") || strings.HasPrefix(rest, "@") {
			l.Proto = "unix"
		}
	}
	if _, err := strconv.Atoi(fill(rest, "0")); err == nil && !l.local() {
		rest = ":" + rest // systemd's own spelling of a port on all addresses
	}
	l.Addr = rest
	return l, nil
}

// String returns l as ParseListen reads it.
func (l Listen) String() string {
	s := l.Addr
	if l.Proto != "tcp" && l.Proto != "unix" {
		s = l.Proto + ":" + s
	}
	if l.FDName != "" {
		s += "=" + l.FDName
	}
	return s
}

// at is the socket of one instance of a template.
func (l Listen) at(instance string) Listen {
	l.Addr = fill(l.Addr, instance)
	return l
}

func (l Listen) local() bool { return strings.HasPrefix(l.Proto, "unix") }

// validate checks a Listen that was parsed or built by hand; given is how it
// was written.
func (l Listen) validate(given string) error {
	if l.FDName != "" {
		switch {
		case !fdName.MatchString(l.FDName):
			return refuse("listen", given, "the name after = may have letters, digits, - and _ and at most 64 of them", listenFix)
		case l.FDName == "unknown" || l.FDName == "stored" || l.FDName == "connection":
			return refuse("listen", given, "systemd gives the name after = a meaning of its own", "choose another name")
		}
	}
	switch l.Proto {
	case "tcp", "udp":
		return l.validateInet(given)
	case "unix", "unixgram", "unixpacket":
		return l.validateUnix(given)
	}
	return refuse("listen", given, "unknown protocol", listenFix)
}

func (l Listen) validateInet(given string) error {
	addr := l.Addr
	if strings.HasPrefix(addr, ":") {
		addr = "[::]" + addr
	}
	ap, err := netip.ParseAddrPort(addr)
	if err != nil {
		if i := strings.LastIndexByte(addr, ':'); i >= 0 {
			if _, err := netip.ParseAddr(strings.Trim(addr[:i], "[]")); err == nil {
				return refuse("listen", given, "not an address and port: that is a number from 1 to 65535", listenFix)
			}
		}
		host, port, _ := strings.Cut(addr, ":")
		_, atoi := strconv.Atoi(port)
		if host != "" && atoi == nil && !strings.ContainsAny(host, "[]/") {
			return refuse("listen", given, "not an IP address (systemd resolves no names)", "use :"+port+" for all addresses, or an address such as 127.0.0.1:"+port)
		}
		return refuse("listen", given, "not an address and port, nor a path", listenFix)
	}
	if ap.Port() == 0 {
		return refuse("listen", given, "port 0 is not a port anybody can connect to", listenFix)
	}
	if ap.Addr().Zone() != "" {
		return refuse("listen", given, "an interface in an address must exist when systemd reads the unit, also at boot", "listen on all addresses and set BindToDevice= in a drop-in of the socket unit")
	}
	return nil
}

func (l Listen) validateUnix(given string) error {
	a := l.Addr
	switch {
	case len(a) < 2 || a[0] != '/' && a[0] != '@':
		return refuse("listen", given, "a unix socket is an absolute path or @name", listenFix)
	case len(a) > sunPathMax:
		return refuse("listen", given, "longer than the 107 bytes the kernel allows", "choose a shorter path")
	case strings.ContainsFunc(a, func(r rune) bool { return !unicode.IsPrint(r) || r == ' ' || r == '\\' || r == unicode.ReplacementChar }):
		return refuse("listen", given, "spaces, backslashes and control characters are not possible here", "choose another path")
	case a[0] == '/' && path.Clean(a) != a:
		return refuse("listen", given, "not a plain path", "write "+path.Clean(a))
	}
	return nil
}

// directive is the line of a socket unit for l.
func (l Listen) directive(s Spec) string {
	key := map[string]string{
		"tcp": "ListenStream", "unix": "ListenStream",
		"udp": "ListenDatagram", "unixgram": "ListenDatagram",
		"unixpacket": "ListenSequentialPacket",
	}[l.Proto]
	return key + "=" + s.value(strings.TrimPrefix(l.Addr, ":"))
}

// addrPort is the address of a tcp or udp socket, [::] when none is given.
func (l Listen) addrPort() netip.AddrPort {
	if l.Addr[0] == ':' {
		return netip.MustParseAddrPort("[::]" + l.Addr)
	}
	return netip.MustParseAddrPort(l.Addr)
}

// collides reports whether the kernel would refuse to bind both a and b.
func (a Listen) collides(b Listen) bool {
	if a.local() != b.local() {
		return false
	}
	if a.local() {
		return a.Addr == b.Addr // the type does not matter: it is one name
	}
	if a.Proto != b.Proto {
		return false
	}
	x, y := a.addrPort(), b.addrPort()
	if x.Port() != y.Port() {
		return false
	}
	if x.Addr() == y.Addr() {
		return true
	}
	// UDP sockets may share a port, the narrower address wins. For TCP a
	// wildcard takes the port; [::] takes IPv4's too (BindIPv6Only=both).
	wild := func(w, n netip.Addr) bool { return w.IsUnspecified() && (w.Is6() || n.Is4() || n.Is4In6()) }
	return a.Proto == "tcp" && (wild(x.Addr(), y.Addr()) || wild(y.Addr(), x.Addr()))
}
