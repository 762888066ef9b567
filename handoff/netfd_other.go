//go:build !linux

package handoff

import "net"

func unreadBytes(net.Conn) int    { return 0 }
func brokenPipe(error) bool       { return false }
func connectionReset(error) bool  { return false }
func outOfDescriptors(error) bool { return false }
