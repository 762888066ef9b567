package cmd

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/zdt-dev/zdt/internal/fdstore"
	"github.com/zdt-dev/zdt/internal/sdnotify"
)

// newKeepSocketsCmd is what zdt adopt has systemd run as ExecReload= of a service whose program holds the port itself: the
// program that is started next inherits its sockets. systemd takes descriptors only from processes of the service.
func newKeepSocketsCmd(f *factory) *cobra.Command {
	cmd := &cobra.Command{
		Use:    "keep-sockets NAME=NETWORK:ADDRESS…",
		Hidden: true, // nobody but systemd has a use for it
		Short:  "Have systemd keep the program's sockets (ExecReload=)",
		Long: `Take duplicates of the sockets that processes of this service listen on, and have
systemd keep them in its file descriptor store for whatever it starts next. This
is a step of zdt adopt --restart, which writes it into the unit for a moment.`,
		Example: `  ExecReload=+/usr/local/bin/zdt keep-sockets http=tcp:0.0.0.0:80`,
		Args:    arguments(1, 64, "the sockets"),
	}
	return f.command(cmd, func(_ context.Context, args []string) error {
		var wishes []fdstore.Wish
		for _, text := range args {
			w, err := fdstore.ParseWish(text)
			if err != nil {
				return usage("keep-sockets http=tcp:0.0.0.0:80", "keep-sockets: %w", err)
			}
			wishes = append(wishes, w)
		}
		group, err := groupOf("self")
		if err != nil {
			return fmt.Errorf("find the processes of the service: %w", err)
		}
		// A service with Delegate= has its control processes in a group of their own.
		group = strings.TrimSuffix(group, "/.control")
		pids := slices.DeleteFunc(processesIn(group), func(pid int) bool { return pid == os.Getpid() })
		taken, err := fdstore.Take(pids, belongsTo(group), wishes)
		if err != nil {
			return err
		}
		defer fdstore.Close(taken)
		return fdstore.Put(sdnotify.Notifier{Socket: f.getenv("NOTIFY_SOCKET")}, taken)
	}, ExitOK, ExitUnexpected, ExitUsage)
}

// processesIn are the processes in a control group of systemd's and below it.
func processesIn(group string) (pids []int) {
	for _, mount := range []string{"", "unified", "systemd"} { // the latter two on a host with hierarchies of cgroup v1
		pids = append(pids, groupProcesses(filepath.Join(cgroups, mount, group))...)
	}
	slices.Sort(pids)
	return slices.Compact(pids)
}

// belongsTo tells whether a process is in a control group or below it.
func belongsTo(group string) func(pid int) bool {
	return func(pid int) bool {
		now, err := groupOf(fmt.Sprint(pid))
		return err == nil && (now == group || strings.HasPrefix(now, group+"/"))
	}
}

// groupOf is the control group of a process, as cgroups(7) has it in /proc/PID/cgroup; systemd's own hierarchy where there are several.
func groupOf(process string) (string, error) {
	data, err := os.ReadFile("/proc/" + process + "/cgroup")
	if err != nil {
		return "", err
	}
	for _, prefix := range []string{"0::", "1:name=systemd:"} {
		for line := range strings.Lines(string(data)) {
			if group, ok := strings.CutPrefix(strings.TrimSuffix(line, "\n"), prefix); ok && group != "/" {
				return group, nil
			}
		}
	}
	return "", fmt.Errorf("no group of systemd's in /proc/%s/cgroup", process)
}
