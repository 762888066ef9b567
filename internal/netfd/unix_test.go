package netfd

import (
	"net"
	"os"
	"path/filepath"
	"testing"
)

// connect(2) says ECONNREFUSED for any file that is no socket: that alone must
// not be the end of somebody's file.
func TestStaleSocketFile(t *testing.T) {
	dir, err := os.MkdirTemp("", "zdt")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	path := func(name string) string { return filepath.Join(dir, name) }
	if err := os.WriteFile(path("file"), []byte("precious"), 0o644); err != nil {
		t.Fatal(err)
	}
	live, err := net.Listen("unix", path("live"))
	if err != nil {
		t.Fatal(err)
	}
	defer live.Close()
	stale, err := net.ListenUnix("unix", &net.UnixAddr{Name: path("stale"), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	stale.SetUnlinkOnClose(false)
	stale.Close()
	if err := os.Symlink(path("stale"), path("link")); err != nil {
		t.Fatal(err)
	}
	gram, err := net.ListenPacket("unixgram", path("gram"))
	if err != nil {
		t.Fatal(err)
	}
	defer gram.Close()
	for _, name := range []string{"file", "live", "gram", "link", "missing", "stale"} {
		RemoveStaleFile(path(name))
	}
	RemoveStaleFile("")
	RemoveStaleFile("@abstract")
	for name, want := range map[string]bool{"file": true, "live": true, "gram": true, "link": true, "stale": false} {
		if _, err := os.Lstat(path(name)); (err == nil) != want {
			t.Errorf("%s: %v", name, err)
		}
	}
}
