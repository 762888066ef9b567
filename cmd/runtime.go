package cmd

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/zdt-dev/zdt/dbusctl"
	"github.com/zdt-dev/zdt/handoff/control"
)

// controlPatience bounds a question to a runtime, which answers in
// microseconds unless its process is stopped or starved.
const controlPatience = time.Second

// errNoRuntime: nothing answers at the control socket.
var errNoRuntime = errors.New("the main process has no zdt runtime")

// connectRuntime connects to the runtime of a main process and proves that it
// is the one. The socket lies where the service's user can write, so whoever
// listens must be root or that user (as the kernel says), and must say that it
// is the main process. A lie in that last point comes from the service itself
// and harms nobody else.
//
// The status is returned, as far as it is known, also when the proof fails.
func (f *factory) connectRuntime(ctx context.Context, path string, main int, uid uint32) (*control.Client, control.Status, error) {
	ctx, cancel := context.WithTimeout(ctx, controlPatience)
	defer cancel()
	client, err := f.dialControl(ctx, path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, control.Status{}, fmt.Errorf("%w: there is no %s", errNoRuntime, path)
	case errors.Is(err, syscall.ECONNREFUSED):
		return nil, control.Status{}, fmt.Errorf("%w: nobody listens on %s", errNoRuntime, path)
	case err != nil:
		return nil, control.Status{}, err
	}
	st, err := proveRuntime(ctx, client, main, uid)
	if err != nil {
		client.Close()
		return nil, st, err
	}
	return client, st, nil
}

func proveRuntime(ctx context.Context, client *control.Client, main int, uid uint32) (control.Status, error) {
	if peer := client.Peer(); peer.UID != 0 && peer.UID != uid {
		return control.Status{}, fmt.Errorf("not trusted: uid %d listens on the control socket, the service runs as uid %d", peer.UID, uid)
	}
	st, err := client.Status(ctx)
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return st, fmt.Errorf("the runtime does not answer within %v: is the process stopped?", controlPatience)
	case err != nil:
		return st, err
	case st.TookOver && st.PID != main:
		return st, fmt.Errorf("systemd takes pid %d for the main process, but it ended and pid %d serves again in its place", main, st.PID)
	case st.PID != main:
		return st, fmt.Errorf("pid %d answers at the control socket, the main process is pid %d", st.PID, main)
	}
	return st, nil
}

// mainUID is the user a unit's main process runs as.
func mainUID(u dbusctl.Unit) (uint32, error) {
	if u.UID != dbusctl.NoUID && (u.UID != 0 || u.User == "" && !u.DynamicUser) {
		return u.UID, nil
	}
	return procUID(int(u.MainPID))
}

// procUID reads the effective uid from /proc/PID/status: the directory's owner
// would be root for a process that may not be dumped.
func procUID(pid int) (uint32, error) {
	file, err := os.Open("/proc/" + strconv.Itoa(pid) + "/status")
	if err != nil {
		return 0, err
	}
	defer file.Close()
	for s := bufio.NewScanner(file); s.Scan(); {
		if rest, ok := strings.CutPrefix(s.Text(), "Uid:"); ok {
			if ids := strings.Fields(rest); len(ids) == 4 {
				n, err := strconv.ParseUint(ids[1], 10, 32)
				return uint32(n), err
			}
		}
	}
	return 0, fmt.Errorf("read uid of pid %d: no Uid: line", pid)
}
