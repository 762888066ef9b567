package guest

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// Path returns the host's view of a path inside the guest, for tools that want a name. Beware of symbolic links with
// absolute targets: the host follows them to its own files. The methods below do not.
func (g *Guest) Path(path string) string {
	return filepath.Join(fmt.Sprintf("/proc/%d/root", g.pid), path)
}

// WriteFile makes a file inside the guest, with its parents, and replaces one that exists in one step, so that a
// program that is running can be replaced. The umask is not applied.
func (g *Guest) WriteFile(path string, data []byte, mode os.FileMode) error {
	return g.replace(path, strings.NewReader(string(data)), mode)
}

// Copy copies a file of the host into the guest, like WriteFile.
func (g *Guest) Copy(hostPath, guestPath string, mode os.FileMode) error {
	f, err := os.Open(hostPath)
	if err != nil {
		return err
	}
	defer f.Close()
	return g.replace(guestPath, f, mode)
}

func (g *Guest) replace(path string, data io.Reader, mode os.FileMode) error {
	return g.enter(mountNamespace, func() error {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		// A process forked meanwhile has the file open for writing until it executes something, and until then
		// nobody can execute the file (ETXTBSY). Tests fork all the time.
		syscall.ForkLock.RLock()
		defer syscall.ForkLock.RUnlock()
		tmp, err := os.CreateTemp(filepath.Dir(path), ".guest-")
		if err != nil {
			return err
		}
		defer os.Remove(tmp.Name()) // fails after the rename, as it should
		if _, err := io.Copy(tmp, data); err != nil {
			tmp.Close()
			return err
		}
		if err := tmp.Chmod(mode); err != nil {
			tmp.Close()
			return err
		}
		if err := tmp.Close(); err != nil {
			return err
		}
		return os.Rename(tmp.Name(), path)
	})
}

// ReadFile reads a file of the guest.
func (g *Guest) ReadFile(path string) ([]byte, error) {
	var data []byte
	err := g.enter(mountNamespace, func() (err error) {
		data, err = os.ReadFile(path)
		return err
	})
	return data, err
}
