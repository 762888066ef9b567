// Package rehearse starts the candidate of an upgrade beside the service that runs: in a unit of its own with the
// service's sandbox, user, environment and limits, and with sockets of the same names and addresses in a network
// namespace of their own. The candidate must become READY, accept, pass the gates, and end well on SIGTERM.
//
// The unit is made from the service's own unit file and drop-ins, with what would touch the service left out or
// changed (plan.go, service.go, socket.go), and is written below /run: systemd finds a new unit without a daemon-reload.
// Before anything is started, what systemd makes of it is compared with what it says of the service (settings.go).
//
// The addresses are the service's own, which is what makes a rehearsal tell the truth about programs that find a socket
// by its address: the namespace (namespace_linux.go) is another one, in which every address is local. Only sockets are
// in it. The program is in the namespace of the service, with its databases and its name server.
package rehearse
