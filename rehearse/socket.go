package rehearse

import (
	"fmt"
	"net"
	"path"
	"slices"
	"strings"

	"github.com/zdt-dev/zdt/unitgen"
)

// Socket is one socket of the rehearsal.
type Socket struct {
	Name    string `json:"name"`    // in LISTEN_FDNAMES
	Network string `json:"network"` // tcp, udp, unix, unixgram, unixpacket
	Address string `json:"address"` // the service's
	// At is where it is reached: in the namespace of the rehearsal the address of before, or another path.
	At string `json:"at"`

	asked bool // it has to be accepted on
}

// stream reports whether there are connections to it.
func (s Socket) stream() bool {
	return s.Network == "tcp" || s.Network == "unix" || s.Network == "unixpacket"
}

// path reports whether it is a file.
func (s Socket) path() bool { return strings.HasPrefix(s.Address, "/") }

// directive is the line of a socket unit.
func (s Socket) directive() string {
	switch s.Network {
	case "udp", "unixgram":
		return "ListenDatagram"
	case "unixpacket":
		return "ListenSequentialPacket"
	}
	return "ListenStream"
}

// dial is the address that leads to it: one cannot connect to all addresses.
func (s Socket) dial() string {
	host, port, err := net.SplitHostPort(s.At)
	if err != nil {
		return s.At
	}
	switch host {
	case "", "0.0.0.0", "::":
		host = "127.0.0.1" // of a socket for IPv6 alone this is not one; see dialAny
	}
	return net.JoinHostPort(host, port)
}

// networkOf is the network of a line of a socket unit, by systemd's name of the line and its address; "" is none that can be
// rehearsed.
func networkOf(kind, address string) string {
	local := strings.HasPrefix(address, "/") || strings.HasPrefix(address, "@")
	_, _, err := net.SplitHostPort(address)
	switch {
	case kind == "Stream" && local:
		return "unix"
	case kind == "Datagram" && local:
		return "unixgram"
	case kind == "SequentialPacket" && local:
		return "unixpacket"
	case err != nil || strings.HasPrefix(address, "vsock:"):
		return ""
	case kind == "Stream":
		return "tcp"
	case kind == "Datagram":
		return "udp"
	}
	return ""
}

// group is a socket unit of the rehearsal.
type group struct {
	unit    string
	name    string // FileDescriptorName=
	from    *SocketUnit
	sockets []int // of the plan
}

// droppedOfSocket are those settings of [Socket] that the rehearsal has otherwise or that would touch the service.
var droppedOfSocket = []string{
	"ListenStream", "ListenDatagram", "ListenSequentialPacket", "ListenFIFO", "ListenSpecial", "ListenNetlink", "ListenMessageQueue", "ListenUSBFunction",
	"Service", "FileDescriptorName", "ExecStartPre", "ExecStartPost", "ExecStopPre", "ExecStopPost", "Symlinks", "RemoveOnStop",
	"PrivateNetwork", "NetworkNamespacePath", "DeferAcceptSec", "BindToDevice", "Accept", "FlushPending",
}

func (p *Plan) socketUnits() []string {
	var names []string
	for _, g := range p.groups {
		names = append(names, g.unit)
	}
	return names
}

// socketText is a socket unit of the rehearsal.
func (p *Plan) socketText(g group) ([]byte, error) {
	var kept []unitgen.Setting
	unit := func(key, value string) { kept = append(kept, unitgen.Setting{Section: "Unit", Key: key, Value: value}) }
	socket := func(key, value string) {
		kept = append(kept, unitgen.Setting{Section: "Socket", Key: key, Value: value})
	}
	unit("Description", "Socket of a rehearsal")
	unit("CollectMode", "inactive-or-failed")
	unit("StopWhenUnneeded", "yes") // when the rehearsal has ended, however it did
	if g.from != nil {
		all, err := settingsOf(g.from.Facts.Name, "socket", g.from.Files)
		if err != nil {
			return nil, err
		}
		for _, set := range all {
			if set.Section == "Socket" && set.Key == "BindToDevice" && set.Value != "" {
				p.differ("BindToDevice=%s of %s: there are no devices in a rehearsal", set.Value, g.from.Facts.Name)
			}
			if set.Section == "Socket" && !slices.Contains(droppedOfSocket, set.Key) {
				kept = append(kept, set)
			}
		}
	} else {
		socket("BindIPv6Only", "both")
	}
	for _, i := range g.sockets {
		s := p.Sockets[i]
		socket(s.directive(), strings.ReplaceAll(s.At, "%", "%%"))
	}
	socket("FileDescriptorName", strings.ReplaceAll(g.name, "%", "%%"))
	socket("Service", p.Name+".service")
	socket("FlushPending", "yes") // what waited for the candidate was the rehearsal's
	socket("FreeBind", "yes")
	socket("RemoveOnStop", "yes")
	socket("NetworkNamespacePath", namespacePlaceholder)
	return unitgen.WriteSettings(kept), nil
}

// namespacePlaceholder stands in the units for the path of the namespace, which there is only when they are written.
const namespacePlaceholder = "/proc/0/fd/0"

// private is the address of a socket in the rehearsal.
func (p *Plan) private(s Socket, runDir string) string {
	if s.path() {
		return path.Join(runDir, fmt.Sprintf("%s.%d.sock", p.Name, len(p.Sockets)))
	}
	return s.Address
}
