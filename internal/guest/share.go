package guest

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Share makes a directory of the host the guest's as well, at path: guests that share one are like containers with a
// common volume. It stays the caller's; the mount goes with the guest.
//
// A bind mount cannot reach into another mount namespace. A detached copy of a mount can be made in one and attached
// in another since Linux 5.2.
func (g *Guest) Share(hostDir, path string) error {
	tree, err := unix.OpenTree(unix.AT_FDCWD, hostDir, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return fmt.Errorf("share %s: open_tree: %w", hostDir, err)
	}
	defer unix.Close(tree)
	err = g.enter(mountNamespace, func() error {
		if err := os.MkdirAll(path, 0o755); err != nil {
			return err
		}
		return unix.MoveMount(tree, "", unix.AT_FDCWD, path, unix.MOVE_MOUNT_F_EMPTY_PATH)
	})
	if err != nil {
		return fmt.Errorf("share %s with guest as %s: %w", hostDir, path, err)
	}
	return nil
}
