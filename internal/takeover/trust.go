package takeover

import "fmt"

// overflowUID is what the kernel says of a user that has no number in the
// user namespace of whoever asks (/proc/sys/kernel/overflowuid).
const overflowUID = 65534

// trusted reports why a process of user uid may not have the service's
// sockets, or give them, seen from a process of user euid.
//
// Only uids are looked at. A pid means nothing here: SO_PEERCRED says 0 for a
// process in another pid namespace.
func trusted(uid uint32, euid int) error {
	switch {
	case uid == overflowUID:
		return fmt.Errorf("its user has no number here (uid %d): it runs in a user namespace with other mappings, or as nobody. Run both with the same mappings and as a user of the service's own", uid)
	case uid == 0, int(uid) == euid:
		return nil
	}
	return fmt.Errorf("it runs as uid %d, and only root and uid %d are: run both as the same user", uid, euid)
}
