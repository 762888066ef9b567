package helper

import (
	"bufio"
	"bytes"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// ports are the TCP ports of the sockets.
func ports(sockets []Socket) []int {
	var all []int
	for _, s := range sockets {
		if _, text, err := net.SplitHostPort(s.Address); err == nil && s.Network == "tcp" {
			if port, err := strconv.Atoi(text); err == nil {
				all = append(all, port)
			}
		}
	}
	return all
}

// connections counts the established TCP connections that clients have to one of the
// ports and that a process of the generation holds. It is what can be told of a program that
// does not tell: not whether a request is under way on them. 0 where /proc cannot
// be looked at.
func (b band) connections(ports []int) int {
	if len(ports) == 0 {
		return 0
	}
	held := map[string]bool{}
	for _, pid := range b.members(processes()) {
		for _, inode := range socketsOf(pid) {
			held[inode] = true
		}
	}
	n := 0
	for _, table := range []string{"/proc/net/tcp", "/proc/net/tcp6"} {
		f, err := os.Open(table)
		if err != nil {
			continue
		}
		for s := bufio.NewScanner(f); s.Scan(); {
			if inode, ok := establishedAt(s.Bytes(), ports); ok && held[inode] {
				n++
			}
		}
		f.Close()
	}
	return n
}

// tcpEstablished is the state in /proc/net/tcp, TCP_ESTABLISHED.
const tcpEstablished = "01"

// establishedAt reads a line of /proc/net/tcp: local address and port in hex, remote
// ones, state, …, and the inode as the tenth field.
func establishedAt(line []byte, ports []int) (inode string, ok bool) {
	f := bytes.Fields(line)
	if len(f) < 10 || string(f[3]) != tcpEstablished {
		return "", false
	}
	_, hex, _ := strings.Cut(string(f[1]), ":")
	port, err := strconv.ParseUint(hex, 16, 16)
	if err != nil || !slices.Contains(ports, int(port)) {
		return "", false
	}
	return string(f[9]), true
}

// socketsOf are the inodes of the sockets that a process has.
func socketsOf(pid int) []string {
	dir := filepath.Join("/proc", strconv.Itoa(pid), "fd")
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil
	}
	var all []string
	for _, e := range entries {
		to, err := os.Readlink(filepath.Join(dir, e.Name()))
		if inode, ok := strings.CutPrefix(to, "socket:["); ok && err == nil {
			all = append(all, strings.TrimSuffix(inode, "]"))
		}
	}
	return all
}
