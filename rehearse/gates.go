package rehearse

import (
	"net"
	"net/url"
	"path"
	"slices"
	"strings"

	"github.com/zdt-dev/zdt/internal/health"
)

// chooseGates adds those of the gates that can be asked about a rehearsal. The others are told.
func (p *Plan) chooseGates(gates []health.Gate) {
	for _, g := range gates {
		if why := p.unasked(g.String()); why != "" {
			p.Skipped = append(p.Skipped, Skipped{g.String(), why})
			continue
		}
		p.Gates = append(p.Gates, g)
	}
}

// unasked is why a gate cannot be asked; "" if it can.
func (p *Plan) unasked(gate string) string {
	kind, network, address := targetOf(gate)
	switch kind {
	case "exec":
		return ""
	case "journal", "journal!", "errors":
		return "the journal of a rehearsal is not the service's"
	case "":
		return "it is not understood"
	}
	if p.find(network, address) < 0 {
		return "no socket of the service has the address " + address
	}
	return ""
}

// targetOf is the kind of a gate and the address that it asks, by how it is written; see docs/gates.md.
func targetOf(gate string) (kind, network, address string) {
	word := gate
	if strings.HasPrefix(gate, `"`) {
		word, _, _ = strings.Cut(gate[1:], `"`)
	} else if word, _, _ = strings.Cut(gate, " "); !strings.Contains(word, ":") {
		// The options of an exec gate stand in front of it.
		return "exec", "", ""
	}
	kind, rest, _ := strings.Cut(word, ":")
	switch kind {
	case "http", "https":
		u, err := url.Parse(word)
		if err != nil || u.Host == "" {
			return "", "", ""
		}
		port := u.Port()
		if port == "" {
			port = map[string]string{"http": "80", "https": "443"}[kind]
		}
		return kind, "tcp", net.JoinHostPort(u.Hostname(), port)
	case "http+unix":
		file, _, _ := strings.Cut(rest, ":")
		return kind, "unix", file
	case "tcp", "unix":
		return kind, kind, rest
	case "exec", "journal", "journal!", "errors":
		return kind, "", ""
	}
	if strings.Contains(gate, "exec:") {
		return "exec", "", ""
	}
	return "", "", ""
}

// find is the socket that a connection to the address would reach on this host, or -1.
func (p *Plan) find(network, address string) int {
	if network == "unix" {
		return slices.IndexFunc(p.Sockets, func(s Socket) bool {
			return (s.Network == "unix" || s.Network == "unixpacket") && path.Clean(s.Address) == path.Clean(address)
		})
	}
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return -1
	}
	return slices.IndexFunc(p.Sockets, func(s Socket) bool {
		bound, boundPort, err := net.SplitHostPort(s.Address)
		return err == nil && s.Network == "tcp" && port == boundPort && reaches(host, bound)
	})
}

// reaches reports whether host can mean a socket that is bound to the address bound. A name other than localhost is not looked
// up here: with the right port it is taken for one of this host.
func reaches(host, bound string) bool {
	to := net.ParseIP(bound)
	if bound == "" || to.IsUnspecified() {
		return true
	}
	ip := net.ParseIP(host)
	return ip == nil && (host != "localhost" || to.IsLoopback()) || ip != nil && ip.Equal(to)
}
