//go:build !linux

package wire

const (
	msgTrunc    = 0
	rightsSpace = 0
)

func rights([]int) []byte { return nil }

func receivedFiles([]byte) []int { return nil }

// ConnectionReset is known on Linux only.
func ConnectionReset(error) bool { return false }

// BrokenPipe is known on Linux only.
func BrokenPipe(error) bool { return false }
