//go:build linux

package journal

import (
	"os"
	"testing"
)

// The test binary plays journalctl (fakeJournalctl) and, in guests, services
// that write events (actor).
func TestMain(m *testing.M) {
	if len(os.Args) > 2 {
		switch os.Args[1] {
		case "fake-journalctl":
			os.Exit(fakeJournalctl(os.Args[2], os.Args[3:]))
		case "actor":
			os.Exit(actor(os.Args[2]))
		}
	}
	os.Exit(m.Run())
}
