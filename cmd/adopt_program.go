package cmd

import (
	"debug/buildinfo"
	"net"
	"path/filepath"
	"slices"
	"strings"

	"github.com/zdt-dev/zdt/handoffcheck"
	"github.com/zdt-dev/zdt/unitgen"
)

// familiar is what zdt knows of a foreign program: how it is told of its sockets, and to finish.
type familiar struct {
	run         []string
	nonBlocking bool
	// args makes arguments for a program that stays in the foreground of those that the unit has.
	args func(rest string) (string, error)
}

// familiars by the base name of the program. docs/recipes has what was measured of each.
func familiars(program string) (familiar, bool) {
	switch program {
	case "nginx":
		return familiar{run: []string{"--pass=nginx", "--stop-signal=QUIT"}, nonBlocking: true, args: foregroundNginx}, true
	case "gunicorn", "gunicorn3":
		return familiar{args: func(rest string) (string, error) {
			if strings.Contains(rest+" ", " --daemon ") || strings.Contains(rest+" ", " -D ") {
				return "", fail(ExitRefused, "give the arguments without --daemon behind --", "gunicorn would go into the background")
			}
			return rest, nil
		}}, true
	}
	return familiar{}, false
}

// foregroundNginx has nginx stay where zdt run sees it.
func foregroundNginx(rest string) (string, error) {
	switch {
	case strings.Contains(rest, "daemon off;"):
		return rest, nil
	case strings.Contains(rest, "daemon on;"):
		return strings.Replace(rest, "daemon on;", "daemon off;", 1), nil
	case strings.Contains(rest+" ", " -g "):
		return "", fail(ExitRefused, `give the arguments behind --, with "daemon off;" in -g`, "nginx would go into the background: its -g says nothing of it")
	}
	return rest + " -g 'daemon off;'", nil
}

// findRuntime decides who hands over, and completes what zdt run has to be told.
func (p *adoptPlan) findRuntime(o adoptOptions) error {
	a := &p.adoption
	if a.Runtime == "" {
		a.Runtime = unitgen.RuntimeHelper
		if linksHandoff(p.execPath()) || o.Exec != "" && linksHandoff(p.source) {
			a.Runtime = unitgen.RuntimeLibrary
		}
	}
	switch {
	case a.Runtime != unitgen.RuntimeHelper && a.Runtime != unitgen.RuntimeLibrary:
		return usage("use library or helper", "adopt: --runtime %q is unknown", a.Runtime)
	case a.Runtime == unitgen.RuntimeLibrary:
		a.NonBlocking = true
		if len(o.Listen) == 0 && p.record.Program == "" {
			p.forgetNames()
		}
		return nil
	}
	known, ok := familiars(filepath.Base(p.execPath()))
	if ok {
		for _, flag := range known.run {
			p.runFlag(flag)
		}
		a.NonBlocking = known.nonBlocking
		if o.Args == nil {
			prefix, word, rest, err := unitgen.SplitCommand(a.Command)
			if err == nil && (setting(p.settings, "Type") == "forking" || a.Exec != "nginx") { // any other Type= has it in the foreground already
				rest, err = known.args(rest)
			}
			if err != nil {
				return err
			}
			a.Command = prefix + word + rest
		}
	}
	// A program whose unit says how it finishes is told so by zdt run.
	if signal := setting(p.settings, "KillSignal"); signal != "" && signal != "SIGTERM" {
		p.runFlag("--stop-signal=" + strings.TrimPrefix(signal, "SIG"))
	}
	// Workers of it speak to systemd, and so to zdt.
	if access := setting(p.settings, "NotifyAccess"); access == "all" {
		p.runFlag("--notify-access=group")
	}
	if err := p.findReady(); err != nil {
		return err
	}
	told := slices.ContainsFunc(a.Run, func(flag string) bool {
		return strings.HasPrefix(flag, "--pass=") || strings.HasPrefix(flag, "--stdin=") || flag == "--strategy=restart"
	})
	if !ok && !told && !strings.Contains(a.Command, "{fd:") && len(a.Bind) > 0 {
		return fail(ExitRefused, "zdt run --help lists the ways; with {fd:NAME} behind -- an argument says it, with --pass systemd the variables of systemd do",
			"%s has bound %s itself: say how it learns of a socket that it inherits (--pass, --stdin, or {fd:NAME} in its arguments)", p.program, a.Bind[0].Addr)
	}
	if setting(p.settings, "Type") == "forking" && !ok && o.Args == nil {
		return fail(ExitRefused, "give the arguments with which it stays in the foreground behind --", "%s goes into the background (Type=forking), where zdt run does not see it", p.program)
	}
	return nil
}

// forgetNames takes the names away that zdt has made up: a program that hands over by itself has names of its own, and finds by
// its address what has none.
func (p *adoptPlan) forgetNames() {
	for i := range p.adoption.Bind {
		p.adoption.Bind[i].FDName = ""
	}
	for i := range p.holds {
		p.holds[i].Name = noName
	}
}

// runFlag adds a flag of zdt run unless it was given.
func (p *adoptPlan) runFlag(flag string) {
	name, _, _ := strings.Cut(flag, "=")
	if !slices.ContainsFunc(p.adoption.Run, func(f string) bool { return strings.HasPrefix(f, name+"=") }) {
		p.adoption.Run = append(p.adoption.Run, flag)
	}
}

// findReady says how the program is known to be ready: by READY=1 if it has said so to systemd, else when it answers.
func (p *adoptPlan) findReady() error {
	kind := setting(p.settings, "Type")
	if kind == "notify" || kind == "notify-reload" || slices.ContainsFunc(p.adoption.Run, func(f string) bool { return strings.HasPrefix(f, "--ready=") }) {
		return nil
	}
	var addresses []string
	for _, l := range p.adoption.Bind {
		if l.Proto == "tcp" {
			addresses = append(addresses, l.Addr)
		}
	}
	for _, u := range p.sockets {
		for _, l := range u.Listen {
			if l.Type == "Stream" && !strings.HasPrefix(l.Address, "/") && !strings.HasPrefix(l.Address, "@") {
				addresses = append(addresses, l.Address)
			}
		}
	}
	for _, address := range addresses {
		host, port, err := net.SplitHostPort(address)
		if err != nil {
			continue
		}
		switch host {
		case "", "0.0.0.0":
			host = "127.0.0.1"
		case "::":
			host = "::1"
		}
		p.runFlag("--ready=tcp:" + net.JoinHostPort(host, port))
		return nil
	}
	return fail(ExitRefused, "say it with --ready, for example --ready http://127.0.0.1:8000/", "%s does not tell systemd when it is ready (Type=%s), and no socket of it is known", p.program, kind)
}

// findSettings looks which of the unit's settings have to change for a handoff.
func (p *adoptPlan) findSettings(o adoptOptions) error {
	a := &p.adoption
	ready, drain := o.ReadyTimeout, o.DrainTimeout
	if ready == 0 {
		ready = unitgen.DefaultReadyTimeout
	}
	if drain == 0 {
		drain = unitgen.DefaultDrainTimeout
	}
	a.PIDFile = setting(p.settings, "PIDFile") != ""
	a.RemainAfterExit = truth(setting(p.settings, "RemainAfterExit"))
	a.ExitType = setting(p.settings, "ExitType") == "cgroup"
	a.Restart = slices.Contains([]string{"", "no"}, setting(p.settings, "Restart"))
	now := handoffcheck.Facts{Service: p.props, Ready: ready, Drain: drain}
	for _, f := range handoffcheck.Look(now) {
		a.TimeoutStop = a.TimeoutStop || f.ID == "ZDT005"
		a.TimeoutStart = a.TimeoutStart || f.ID == "ZDT006"
	}
	if len(p.record.Files) > 0 { // systemd has its values already
		a.TimeoutStop, a.TimeoutStart = p.record.TimeoutStop, p.record.TimeoutStart
	}
	for _, s := range p.sockets {
		a.Sockets = append(a.Sockets, s.Name)
	}
	if o.Socket {
		a.Sockets = append(a.Sockets, p.name+".socket")
	}
	a.KeepMode = setting(p.settings, "RuntimeDirectory") != "" || setting(p.settings, "RuntimeDirectoryMode") != ""
	if a.Runtime == unitgen.RuntimeHelper && len(p.sockets) == 0 {
		a.NonBlocking = false // zdt run binds them as they have to be
	}
	if p.source == "" {
		p.note("in-place", "zdt handoff "+p.name+" goes over to a new version of it", "%s stays where it is: its package replaces it", p.program)
	}
	return nil
}

// setting is the last value of a key in [Service].
func setting(all []unitgen.Setting, key string) (value string) {
	for _, s := range all {
		if s.Section == "Service" && s.Key == key {
			value = s.Value
		}
	}
	return value
}

// truth reads a boolean as systemd does.
func truth(s string) bool {
	return slices.Contains([]string{"1", "yes", "y", "true", "t", "on"}, strings.ToLower(s))
}

// linksHandoff reports whether a program was built with package handoff, which a Go program tells (debug/buildinfo).
func linksHandoff(path string) bool {
	info, err := buildinfo.ReadFile(path)
	if err != nil {
		return false
	}
	for _, dep := range info.Deps {
		if dep.Path == "github.com/zdt-dev/zdt" {
			return true
		}
	}
	return info.Main.Path == "github.com/zdt-dev/zdt" // one of the examples
}
