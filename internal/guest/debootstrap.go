package guest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"
)

// debootstrap unpacks the image's Debian suite into dir, and installs the tool first when it is missing.
func (s Store) debootstrap(ctx context.Context, image Image, dir string) error {
	mirror, err := s.prepare(ctx)
	if err != nil {
		return err
	}
	args := []string{"--variant=minbase", "--include=" + packages, string(image), dir}
	if mirror != "" { // else debootstrap knows the suite's own archive
		args = append(args, mirror)
	}
	if out, err := runTool(ctx, "debootstrap", args...); err != nil {
		return fmt.Errorf("debootstrap %s: %w\n%s", string(image), err, lastLines(out, 20))
	}
	return nil
}

// prepare makes sure of the tool and finds the mirror to use. One process at a time: `apt-get update` does not wait for
// another one.
func (s Store) prepare(ctx context.Context) (mirrorURI string, err error) {
	unlock, err := lock(ctx, filepath.Join(s.Dir, ".lock-apt"))
	if err != nil {
		return "", fmt.Errorf("lock apt: %w", err)
	}
	defer unlock()
	if _, err := exec.LookPath("debootstrap"); err != nil {
		s.logf("installing debootstrap")
		if err := installDebootstrap(ctx); err != nil {
			return "", err
		}
	}
	return mirror(ctx)
}

func installDebootstrap(ctx context.Context) error {
	install := []string{"-y", "-o", "DPkg::Lock::Timeout=300", "--no-install-recommends", "install", "debootstrap"}
	if _, err := runTool(ctx, "apt-get", install...); err == nil {
		return nil
	}
	// A machine that never fetched the package lists, or whose lists are too old.
	if out, err := runTool(ctx, "apt-get", "-o", "DPkg::Lock::Timeout=300", "update"); err != nil {
		return fmt.Errorf("update package lists: %w\n%s", err, lastLines(out, 20))
	}
	if out, err := runTool(ctx, "apt-get", install...); err != nil {
		return fmt.Errorf("install debootstrap: %w\n%s", err, lastLines(out, 20))
	}
	return nil
}

// mirror returns the Debian archive that the host's apt is configured with, or "" when it has none (an Ubuntu host).
func mirror(ctx context.Context) (string, error) {
	ask := func() (string, error) {
		out, err := runTool(ctx, "apt-get", "indextargets", "--format", targetFormat)
		if err != nil {
			return "", fmt.Errorf("ask apt for its mirror: %w\n%s", err, lastLines(out, 5))
		}
		return pickMirror(out), nil
	}
	uri, err := ask()
	if uri != "" || err != nil {
		return uri, err
	}
	// apt says nothing about an archive before it has its Release file.
	if out, err := runTool(ctx, "apt-get", "-o", "DPkg::Lock::Timeout=300", "update"); err != nil {
		return "", fmt.Errorf("update package lists: %w\n%s", err, lastLines(out, 20))
	}
	return ask()
}

// targetFormat is one line per index file of the host's archives. Label tells the security archive, which has no
// complete suite, from the main one.
const targetFormat = "$(CREATED_BY)|$(ORIGIN)|$(LABEL)|$(COMPONENT)|$(REPO_URI)"

// pickMirror chooses from the lines of targetFormat the first archive that debootstrap can use.
func pickMirror(targets string) string {
	for line := range strings.Lines(targets) {
		f := strings.Split(strings.TrimSpace(line), "|")
		if len(f) != 5 || f[0] != "Packages" || f[1] != "Debian" || f[2] != "Debian" || f[3] != "main" {
			continue
		}
		for _, scheme := range []string{"http://", "https://", "ftp://", "file:/"} {
			if strings.HasPrefix(f[4], scheme) {
				return f[4]
			}
		}
	}
	return ""
}

// runTool runs a tool of the host and returns both its outputs as one text. The tool is PID 1 of a pid namespace and
// has a mount namespace: whatever ends it, or this process, also ends what it started and unmounts what it mounted.
func runTool(ctx context.Context, name string, args ...string) (string, error) {
	// PDEATHSIG fires when the *thread* that started the child ends. A locked one does not, while Run waits on it.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive", "LC_ALL=C.UTF-8", "APT_LISTCHANGES_FRONTEND=none")
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.WaitDelay = 5 * time.Second
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Setsid:       true, // Ctrl-C in a terminal is for this process, which then ends ctx
		Pdeathsig:    syscall.SIGKILL,
		Cloneflags:   syscall.CLONE_NEWPID,
		Unshareflags: syscall.CLONE_NEWNS,
	}
	err := cmd.Run()
	if ctx.Err() != nil {
		err = errors.Join(ctx.Err(), err)
	}
	return out.String(), err
}
