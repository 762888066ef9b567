// Package wire is what two generations of a service say to each other at a
// handoff, and how: messages, and the link they travel on. Package handoff and
// zdt run speak it, and docs/protocol.md describes it.
//
// The wire between an incumbent and its candidate is a private SOCK_SEQPACKET
// pair made by the incumbent, or a connection to its takeover socket; one JSON
// document a packet.
//
//	candidate → incumbent   takeover  I was not started by you and want your service
//	incumbent → candidate   refused   not now, or not to you
//	incumbent → candidate   sockets   some of my sockets, with their descriptors; hello follows
//	incumbent → candidate   hello     who you are: pid, generation; my versions
//	candidate → incumbent   hello     the version I chose
//	candidate → incumbent   ready     I accept from now on
//	incumbent → candidate   commit    you are the service
//	incumbent → candidate   abort     end: finish what you accepted
//	incumbent → candidate   progress  how my drain goes
//	either → other          takes     which connections I can go on with
//	leaving → staying       move      connections, with their descriptors
//	staying → leaving       moved     which of them I have taken
//	candidate → incumbent   stop      I end: so does the service, or this handoff
//	candidate → incumbent   quit      the service ends at once, and so do you
//	incumbent → candidate   bye       my last word, with the final counts
//
// The end of the other process shows as the end of the stream.
package wire

import "fmt"

// The versions that this package speaks.
//
//	1  handoff without moving connections
//	2  capabilities; takes, move, moved
const (
	Version    = 2
	MinVersion = 1
)

// CapabilityMove: the sender of a hello understands takes, move and moved.
const CapabilityMove = "move"

// CodeVersion is why a takeover is refused when there is no version that both sides
// speak; the other reasons are codes of package control.
const CodeVersion = "version"

// MaxFiles is how many descriptors travel in one packet: SCM_MAX_FD of Linux. More are EINVAL.
const MaxFiles = 253

// MaxPacket bounds a packet, in bytes. Messages are a few hundred bytes.
const MaxPacket = 64 << 10

// versionError is the answer to a peer with which there is no common version.
type versionError struct{ self, min, peer, peerMin int }

func (e *versionError) Error() string {
	return fmt.Sprintf("wire protocol: the peer speaks versions %d to %d, this program %d to %d", e.peerMin, e.peer, e.min, e.self)
}

// ChooseVersion returns the newest version both sides speak.
func ChooseVersion(peer, peerMin int) (int, error) {
	v := min(Version, peer)
	if v < MinVersion || v < peerMin {
		return 0, &versionError{Version, MinVersion, peer, peerMin}
	}
	return v, nil
}
