package handoffcheck

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
)

// serviceChecks are about the settings of the service unit.
func serviceChecks() []Check {
	return []Check{
		{
			ID: "ZDT001", Severity: Blocker, handoff: true, Family: FamilyUnit, Title: "systemd is not told who the main process is",
			Why: "only with Type=notify systemd waits until a new process is ready and listens to who is the main one; zdt upgrades nothing else",
			More: `With another Type= systemd listens to nobody, unless NotifyAccess= says so: it takes the end of the first
process for the end of the service, and ends the new one with it, in the middle of the handoff. Where NotifyAccess= is set a handoff
works, but a start counts as done before the program is ready. systemd 252 and older do not know Type=notify-reload: they log it
and take the type for simple, if there is no other line.

A program that was started without NOTIFY_SOCKET cannot say anything: after the change it has to be restarted once.`,
			look: func(f Facts) []sight {
				switch kind := f.Service.Text("Type"); kind {
				case "", "notify", "notify-reload":
					return nil
				default:
					return f.service("Type="+kind, "Type=notify", "NotifyAccess=main")
				}
			},
		},
		{
			ID: "ZDT003", Severity: Risk, Family: FamilyUnit, Title: "a reload is a signal that the program does not expect",
			Why: "with Type=notify-reload systemctl reload sends SIGHUP, which ends a Go program, and waits for messages that no runtime sends",
			More: `systemd 253 and later send ReloadSignal= (SIGHUP unless it is set) for a reload, whether there is an ExecReload= or not, and
wait for RELOADING=1 and READY=1. The library has no handler for SIGHUP, so the service ends and is started again; with
` + "`ReloadSignal=SIGUSR2`" + ` it hands over, and the reload fails with its timeout all the same. zdt run takes SIGHUP for an order to
renew itself. With Type=notify and ` + "`ExecReload=zdt handoff`" + ` the exit status of the reload is that of the handoff.`,
			look: func(f Facts) []sight {
				if f.Service.Text("Type") != "notify-reload" {
					return nil
				}
				return f.service("Type=notify-reload", "Type=notify")
			},
		},
		{
			ID: "ZDT004", Severity: Risk, Family: FamilyUnit, Title: "a stop reaches the program beside zdt run, or not at all",
			Why: "zdt run passes a stop on as the program's own signal and in the right order, and only KillMode=mixed leaves that to it",
			More: `With ` + "`control-group`" + ` systemd sends SIGTERM to the program as well, which to many means "at once", and to a worker whose master
would have finished first. With ` + "`process` and `none`" + ` the program lives on, with the sockets, when zdt itself has been killed, and
serves beside the one that systemd starts.

With the library any mode will do: the main process waits for the generation that drains.`,
			look: func(f Facts) []sight {
				mode := f.Service.Text("KillMode")
				if !f.Helper || mode == "" || mode == "mixed" {
					return nil
				}
				return f.service("KillMode="+mode, "KillMode=mixed")
			},
		},
		{
			ID: "ZDT007", Severity: Risk, Family: FamilyUnit, Title: "nothing starts the service again",
			Why: "a new generation that crashes after it has taken over leaves nobody: without Restart= the service stays down until the next client wakes it through a socket unit, or an operator",
			look: func(f Facts) []sight {
				if f.Service.Text("Restart") != "no" {
					return nil
				}
				return f.service("Restart=no", "Restart=always", "RestartSec=100ms")
			},
		},
		{
			ID: "ZDT008", Severity: Risk, Family: FamilyUnit, Title: "a crash loop closes the sockets",
			Why: "a service that reaches its start limit fails its socket units with it: clients are refused, where they could have waited",
			More: `systemd counts the starts by Restart= and by clients. When there are StartLimitBurst= of them in
StartLimitIntervalSec= it gives up, and a socket unit whose service cannot be started fails, too: its ports are closed. A crash
loop is better paced by RestartSec=; new clients wait in the queue of the socket meanwhile.`,
			look: func(f Facts) []sight {
				if limit, ok := f.Service.Span("StartLimitIntervalUSec"); !ok || limit == 0 || f.Service.Number("StartLimitBurst") == 0 || len(f.Sockets) == 0 {
					return nil
				}
				limit, _ := f.Service.Span("StartLimitIntervalUSec")
				return []sight{{seen: fmt.Sprintf("StartLimitBurst=%d in StartLimitIntervalSec=%s", f.Service.Number("StartLimitBurst"), limit),
					unit: f.Service.Name, dropIn: []string{"[Unit]", "StartLimitIntervalSec=0"}}}
			},
		},
		{
			ID: "ZDT009", Severity: Risk, Family: FamilyUnit, Title: "the unit goes on without its program",
			Why: "with RemainAfterExit=yes the unit stays active when its last process has ended without an error, and nothing starts another one: clients wait for ever",
			look: func(f Facts) []sight {
				if !f.Service.Is("RemainAfterExit") {
					return nil
				}
				return f.service("RemainAfterExit=yes", "RemainAfterExit=no")
			},
		},
		{
			ID: "ZDT010", Severity: Risk, Family: FamilyUnit, Title: "the end of the main process is not the end of the service",
			Why: "with ExitType=cgroup a generation that crashes is not noticed while any other process of the unit lives",
			look: func(f Facts) []sight {
				if f.Service.Text("ExitType") != "cgroup" {
					return nil
				}
				return f.service("ExitType=cgroup", "ExitType=main")
			},
		},
		{
			ID: "ZDT011", Severity: Risk, Family: FamilyUnit, Title: "systemd takes the program for zdt run",
			Why: "after each reload systemd reads PIDFile= and takes what is in it for the main process: the program, where it has to be zdt run",
			More: `The next upgrade is refused, because who answers at the control socket is not the main process. With the library
the file does no harm.`,
			look: func(f Facts) []sight {
				if path := f.Service.Text("PIDFile"); path != "" && f.Helper {
					return f.service("PIDFile="+path, "PIDFile=")
				}
				return nil
			},
		},
		{
			ID: "ZDT012", Severity: Risk, Family: FamilyUnit, Title: "a reload does something else",
			Why: "whoever calls systemctl reload expects a handoff, and to be told when it was undone: that is what zdt handoff does",
			look: func(f Facts) []sight {
				commands := f.Service.Commands("ExecReload")
				if slices.ContainsFunc(commands, isZdt("handoff")) || !f.Service.Has("ExecReload") {
					return nil
				}
				seen := "no ExecReload="
				if len(commands) > 0 {
					seen = "ExecReload=" + strings.Join(commands[0], " ")
				}
				return f.service(seen, "ExecReload=", "ExecReload="+f.Zdt+" handoff")
			},
		},
		{
			ID: "ZDT013", Severity: Risk, Family: FamilyUnit, Title: "a stop after a handoff cuts requests",
			Why: "after a handoff systemd takes the main process for somebody else's child and sends SIGKILL right behind SIGTERM; with an ExecStop= it waits",
			More: `systemd 252 to 257 note at the moment of MAINPID= that the process is not their child, and do not look again when
the old process has ended and it became one (only a daemon-reload makes them). They do wait for the end of an ExecStop= command, and ` + "`zdt stop`" + ` ends when the
main process has. Under ` + "`zdt run`" + ` the main process stays the same and none of this applies.`,
			look: func(f Facts) []sight {
				if f.Helper || !f.Service.Has("ExecStop") || len(f.Service.Commands("ExecStop")) > 0 {
					return nil
				}
				return f.service("no ExecStop=", "ExecStop=-"+f.Zdt+" stop")
			},
		},
		{
			ID: "ZDT014", Severity: Blocker, unmanaged: true, Family: FamilyUnit, Title: "systemd does not start the unit",
			Why: "a unit that is masked can run on, but neither a restart nor a rollback would bring it back",
			look: func(f Facts) []sight {
				if f.Service.Text("LoadState") != "masked" {
					return nil
				}
				return []sight{{seen: f.Service.Name + " is masked", fix: "systemctl unmask " + f.Service.Name}}
			},
		},
		{
			ID: "ZDT015", Severity: Risk, unmanaged: true, Family: FamilyUnit, Title: "systemd has not read the unit as it is on disk",
			Why: "a restart or a rollback by systemd may start something else than the files say",
			look: func(f Facts) (all []sight) {
				for _, u := range append([]Unit{f.Service}, f.Sockets...) {
					if u.Is("NeedDaemonReload") {
						all = append(all, sight{seen: u.Name + " changed on disk", fix: "systemctl daemon-reload"})
					}
				}
				return all
			},
		},
	}
}

// service is a sight of the service unit that lines of its [Service] section mend.
func (f Facts) service(seen string, lines ...string) []sight {
	return []sight{{seen: seen, unit: f.Service.Name, dropIn: append([]string{"[Service]"}, lines...)}}
}

// isZdt matches the argument list of a verb of zdt.
func isZdt(verb string) func([]string) bool {
	return func(argv []string) bool {
		return len(argv) >= 2 && filepath.Base(argv[0]) == "zdt" && slices.Contains(argv[1:], verb)
	}
}
