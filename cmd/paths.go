package cmd

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/zdt-dev/zdt/unitgen"
)

// Paths are where the parts of a service are.
type Paths struct {
	Units   string // unit files
	State   string // NAME below it: the release store
	Runtime string // NAME/control.sock below it
	Locks   string // NAME.lock below it
	// Operators: NAME below it, what unprivileged operators ask for; "" where there can be none.
	Operators string
	Polkit    string // the administrator's rules are in rules.d below it

	// Root is put in front of Units and State when zdt works on the files of a
	// system that does not run, as systemctl --root does.
	Root string
}

// systemPaths are those of the system manager.
func systemPaths(root string) Paths {
	return Paths{Units: unitgen.DefaultUnitDir, State: unitgen.DefaultStateRoot, Runtime: "/run/zdt", Locks: "/run/lock/zdt", Operators: "/var/lib/zdt-operators", Polkit: "/etc/polkit-1", Root: root}
}

// userPaths are those of the caller's user manager, in the XDG directories.
func userPaths(getenv func(string) string, uid int) (Paths, error) {
	or := func(name, fallback string) string {
		// The XDG specification: a path that is not absolute is to be ignored.
		if v := getenv(name); filepath.IsAbs(v) {
			return filepath.Clean(v)
		}
		return fallback
	}
	home := getenv("HOME")
	config, state := or("XDG_CONFIG_HOME", ""), or("XDG_STATE_HOME", "")
	if !filepath.IsAbs(home) && (config == "" || state == "") {
		return Paths{}, fail(ExitRefused, "set HOME, or XDG_CONFIG_HOME and XDG_STATE_HOME", "--user: the home directory is not known")
	}
	if config == "" {
		config = filepath.Join(home, ".config")
	}
	if state == "" {
		state = filepath.Join(home, ".local/state")
	}
	run := or("XDG_RUNTIME_DIR", fmt.Sprintf("/run/user/%d", uid))
	return Paths{
		Units: filepath.Join(config, "systemd/user"), State: filepath.Join(state, "zdt"),
		Runtime: filepath.Join(run, "zdt"), Locks: filepath.Join(run, "zdt/lock"),
	}, nil
}

// disk is where path is seen from here.
func (p Paths) disk(path string) string { return filepath.Join(p.Root, path) }

// StateDir is the release store of a service as the running system sees it.
func (p Paths) StateDir(name string) string { return filepath.Join(p.State, name) }

// OperatorsOf is where the operators of a service put their requests.
func (p Paths) OperatorsOf(name string) string { return filepath.Join(p.Operators, name) }

// Control is the service's control socket.
func (p Paths) Control(name string) string { return filepath.Join(p.Runtime, name, "control.sock") }

// Lock is the service's lock file.
func (p Paths) Lock(name string) string {
	if p.Root != "" {
		return filepath.Join(p.disk(p.State), "."+name+".lock")
	}
	return filepath.Join(p.Locks, name+".lock")
}

// Services are the names of all services with a store.
func (p Paths) Services() ([]string, error) {
	entries, err := os.ReadDir(p.disk(p.State))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	var names []string
	for _, e := range entries {
		if e.IsDir() && unitgen.ValidateName(e.Name()) == nil {
			names = append(names, e.Name())
		}
	}
	slices.Sort(names)
	return names, err
}

// Instances are the names of all services with a store that are instances of a template, "web@": those with numbers by
// their value, which is how an operator counts them.
func (p Paths) Instances(template string) ([]string, error) {
	all, err := p.Services()
	names := slices.DeleteFunc(all, func(name string) bool {
		of, _, ok := unitgen.SplitName(name)
		return !ok || of != template
	})
	slices.SortFunc(names, compareInstances)
	return names, err
}

// compareInstances orders names so that web@2 comes before web@10.
func compareInstances(a, b string) int {
	_, x, _ := unitgen.SplitName(a)
	_, y, _ := unitgen.SplitName(b)
	m, errm := strconv.ParseUint(x, 10, 64)
	n, errn := strconv.ParseUint(y, 10, 64)
	switch {
	case errm == nil && errn == nil && m != n:
		return cmp.Compare(m, n)
	case (errm == nil) != (errn == nil): // numbers before words
		if errm == nil {
			return -1
		}
		return 1
	}
	return strings.Compare(a, b)
}

// serviceName accepts NAME and, because people copy it from systemctl,
// NAME.service.
func serviceName(arg string) (string, error) {
	name := strings.TrimSuffix(arg, ".service")
	if err := unitgen.ValidateName(name); err != nil {
		return "", err
	}
	return name, nil
}
