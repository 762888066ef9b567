package wire

import (
	"github.com/zdt-dev/zdt/handoff/control"
	"github.com/zdt-dev/zdt/internal/netfd"
)

// Type is what a message is.
type Type string

// The types; package wire says who sends which, and when.
const (
	Hello    Type = "hello"
	Ready    Type = "ready"
	Commit   Type = "commit"
	Abort    Type = "abort"
	Progress Type = "progress"
	Stop     Type = "stop"
	Quit     Type = "quit"
	Bye      Type = "bye"
	Takes    Type = "takes"
	Move     Type = "move"
	Moved    Type = "moved"
	Takeover Type = "takeover"
	Refused  Type = "refused"
	Sockets  Type = "sockets"
)

// Message is every packet. Unknown types and fields are ignored, so that a
// newer peer may say more.
type Message struct {
	Type Type `json:"type"`

	// hello, takeover, refused
	Version    int    `json:"version,omitempty"`     // the sender's newest
	MinVersion int    `json:"min_version,omitempty"` // and oldest version
	PID        int    `json:"pid,omitempty"`         // the receiver's, as the incumbent's fork returned it
	Generation int    `json:"generation,omitempty"`  // the receiver's
	TxID       string `json:"txid,omitempty"`
	ControlFD  int    `json:"control_fd,omitempty"`  // the control socket's descriptor in the receiver
	TakeoverFD int    `json:"takeover_fd,omitempty"` // the takeover socket's
	// SharesControl: the sender, a newcomer, answers on the receiver's control socket after the commit.
	SharesControl bool `json:"shares_control,omitempty"`
	// Capabilities are what the sender can do beyond its version's minimum; absent in version 1.
	Capabilities []string `json:"capabilities,omitempty"`

	// hello, takes
	Takes []Take `json:"takes,omitempty"`

	// move, moved
	Batch   uint64    `json:"batch,omitempty"`
	Count   int       `json:"count,omitempty"` // connections in the batch; connections taken
	Refused []Refusal `json:"refused,omitempty"`

	// takeover
	Exe string `json:"exe,omitempty"` // what the sender runs, as its own mount namespace calls it

	// sockets
	Total   int      `json:"total,omitempty"` // in all packets
	Sockets []Handed `json:"sockets,omitempty"`

	// refused
	Code string `json:"code,omitempty"` // one of package control's, or CodeVersion

	// abort, stop, refused
	Reason string `json:"reason,omitempty"`

	// progress, bye
	Connections *control.Counts `json:"connections,omitempty"`

	// Files are the descriptors that came with the packet, owned by whoever has the message.
	Files []int `json:"-"`
}

// CloseFiles closes what came with the packet.
func (m *Message) CloseFiles() {
	for _, fd := range m.Files {
		if fd >= 0 {
			netfd.Close(fd)
		}
	}
	m.Files = nil
}

// Take is something a generation can go on with when a connection moves to it.
type Take struct {
	Protocol string `json:"protocol"`
	// Socket restricts http/1 to connections of one listening socket: what a
	// release serves as HTTP on one port it may serve as something else on another.
	Socket string `json:"socket,omitempty"`
}

// Refusal says which connection of a batch the receiver did not take. The
// sender still owns it.
type Refusal struct {
	Index  int    `json:"index"`
	Reason string `json:"reason"`
}

// Handed describes one descriptor of a "sockets" packet.
type Handed struct {
	// Name is the socket's; empty for what has a role.
	Name string `json:"name,omitempty"`
	Role string `json:"role,omitempty"`
	// Dev and Ino are the file that the control socket is found at. A process
	// that has its control socket at the very same file shares it.
	Dev uint64 `json:"dev,omitempty"`
	Ino uint64 `json:"ino,omitempty"`
}

// What a descriptor is that is no socket of the service.
const (
	RoleControl  = "control"
	RoleTakeover = "takeover"
)
