package cmd

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/zdt-dev/zdt/handoff/control"
)

// target is where the clients of zdt prove go. The caller closes it.
type target struct {
	Network string // tcp, unix
	Address string // host:port, a path, or @name
	Host    string // for the Host header
	Path    string // of the requests
	Socket  string // the name of the service's socket; "": --url

	file *os.File // unix: the very socket that was looked at; nil: Address is trusted
}

func (t *target) close() {
	if t.file != nil {
		t.file.Close()
	}
}

func (t *target) dial(ctx context.Context) (net.Conn, error) {
	address := t.Address
	if t.file != nil {
		address = "/proc/self/fd/" + strconv.Itoa(int(t.file.Fd()))
	}
	var d net.Dialer
	return d.DialContext(ctx, t.Network, address)
}

// url is the target for people.
func (t *target) url() string {
	if t.Network == "unix" {
		return t.Path + " of unix:" + t.Address
	}
	return "http://" + t.Host + t.Path
}

func (t *target) doc() proveTarget {
	return proveTarget{Network: t.Network, Address: t.Address, Socket: t.Socket, Host: t.Host, Path: t.Path}
}

// parseTarget reads --url. The path is empty when it has none.
func parseTarget(s string) (*target, error) {
	if file, ok := strings.CutPrefix(s, "unix:"); ok {
		if !filepath.IsAbs(file) && !strings.HasPrefix(file, "@") {
			return nil, errors.New("a file needs its absolute path")
		}
		return &target{Network: "unix", Address: file, Host: "localhost"}, nil
	}
	u, err := url.Parse(s)
	var wrong *url.Error
	switch {
	case errors.As(err, &wrong):
		return nil, wrong.Err // without the URL once more
	case err != nil:
		return nil, err
	case u.Scheme == "https":
		return nil, errors.New("the clients speak plain HTTP, not TLS")
	case u.Scheme != "http" || u.Hostname() == "":
		return nil, errors.New("that is no http:// address")
	case u.User != nil || u.Fragment != "":
		return nil, errors.New("a user or a fragment cannot be sent")
	}
	if !inRequestLine(u.Host + u.RequestURI()) {
		return nil, errors.New("a space cannot be sent: write %20")
	}
	t := &target{Network: "tcp", Address: u.Host, Host: u.Host}
	if u.Port() == "" {
		t.Address = net.JoinHostPort(u.Hostname(), "80")
	}
	if u.Path != "" || u.RawQuery != "" {
		t.Path = u.RequestURI()
	}
	return t, nil
}

// inRequestLine tells whether a text can be sent in the head of a request as it is.
func inRequestLine(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r >= 0x7f })
}

// target is what --url says, or a socket of the service.
func (p *prover) target(h handoffTarget, st control.Status) (*target, error) {
	var t *target
	var err error
	if p.o.URL != "" {
		t, err = parseTarget(p.o.URL)
	} else {
		t, err = socketTarget(st.Sockets, h.uid, p.f.euid)
		if err != nil {
			err = fail(ExitRefused, "say where it answers HTTP: "+p.f.zdt()+" prove "+p.o.Service+" --url http://HOST:PORT/PATH", "%w", err)
		}
	}
	if err == nil && t.Path == "" {
		t.Path = p.o.Path
	}
	return t, err
}

// socketTarget chooses among the sockets a runtime names. What it names is the word of the service's user, who could name
// anything: a root that believes it must not be led to where that user could not go itself.
func socketTarget(sockets []control.Socket, uid uint32, euid int) (*target, error) {
	s, err := chooseSocket(sockets)
	if err != nil {
		return nil, err
	}
	t := &target{Network: s.Network, Address: s.Address, Socket: s.Name, Host: "localhost"}
	if s.Network == "unix" {
		if strings.HasPrefix(s.Address, "@") || euid != 0 {
			return t, nil // the kernel asks no permission, or that of the caller itself
		}
		t.file, err = openServiceSocket(s.Address, uid)
	} else {
		t.Address, err = localAddress(s.Address)
		t.Host = t.Address
	}
	if err != nil {
		return nil, fmt.Errorf("socket %s of the service: %w", clean(s.Name), err)
	}
	return t, nil
}

// chooseSocket takes the one that is called http, or else the first that may speak it.
func chooseSocket(sockets []control.Socket) (control.Socket, error) {
	var best control.Socket
	rank := func(s control.Socket) int {
		switch {
		case !s.InUse || s.Network != "tcp" && s.Network != "unix":
			return 0
		case s.Name == "http":
			return 4
		case strings.HasPrefix(s.Name, "https") || strings.HasSuffix(s.Address, ":443"):
			return 1
		case strings.Contains(s.Name, "http"):
			return 3
		}
		return 2
	}
	for _, s := range sockets {
		if rank(s) > rank(best) {
			best = s
		}
	}
	if rank(best) == 0 {
		return best, errors.New("the service has no stream socket in use")
	}
	return best, nil
}

// localAddress is an address to reach a listener at, which must be one of this host.
func localAddress(s string) (string, error) {
	a, err := netip.ParseAddrPort(s)
	if err != nil {
		return "", fmt.Errorf("address %s: %w", clean(s), err)
	}
	ip := a.Addr().Unmap()
	switch {
	case ip.IsUnspecified() && ip.Is4():
		ip = netip.AddrFrom4([4]byte{127, 0, 0, 1})
	case ip.IsUnspecified():
		ip = netip.IPv6Loopback()
	case !ip.IsLoopback():
		own, err := net.InterfaceAddrs()
		if err != nil {
			return "", err
		}
		if !slices.ContainsFunc(own, func(n net.Addr) bool {
			prefix, err := netip.ParsePrefix(n.String())
			return err == nil && prefix.Addr().Unmap() == ip.WithZone("")
		}) {
			return "", fmt.Errorf("%s is no address of this host", clean(s))
		}
	}
	return netip.AddrPortFrom(ip, a.Port()).String(), nil
}

// openServiceSocket opens (O_PATH) a socket file that the user uid could connect to, without a symbolic link anywhere in
// its path. Through /proc/self/fd it can be connected to, whatever the path names later.
func openServiceSocket(path string, uid uint32) (*os.File, error) {
	fd, err := unix.Openat2(unix.AT_FDCWD, path, &unix.OpenHow{
		Flags: unix.O_PATH | unix.O_NOFOLLOW | unix.O_CLOEXEC, Resolve: unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
	}) // Linux 5.6
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: clean(path), Err: err}
	}
	file := os.NewFile(uintptr(fd), path)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		file.Close()
		return nil, err
	}
	switch {
	case st.Mode&unix.S_IFMT != unix.S_IFSOCK:
		err = fmt.Errorf("%s is not a socket", clean(path))
	case st.Mode&0o002 == 0 && st.Uid != uid: // connect(2) needs the right to write
		err = fmt.Errorf("%s is not open to the service's own user", clean(path))
	default:
		return file, nil
	}
	file.Close()
	return nil, err
}
