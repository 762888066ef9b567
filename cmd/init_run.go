package cmd

import (
	"strings"

	"github.com/spf13/pflag"

	"github.com/zdt-dev/zdt/unitgen"
)

// runFlagsOfInit are the flags of zdt run that init takes under the same names and
// writes into ExecStart=. Those that init has itself, as --listen, reach
// zdt run by way of the sockets and the variables of the unit.
var runFlagsOfInit = [...]struct{ name, usage string }{
	{"ready", "helper: when the program is ready, `WHEN` is notify (READY=1, default), http://HOST:PORT/PATH, tcp:ADDR, unix:PATH, exec:COMMAND or alive:D"},
	{"notify-access", "helper: whose messages count, `WHO` is main (default) or group"},
	{"pass", "helper: how the program learns of its sockets, `HOW` is systemd (default), server-starter, einhorn, nginx or none"},
	{"stdin", "helper: the socket `FDNAME` becomes standard input"},
	{"stop-signal", "helper: `SIG` makes the program finish and end (default TERM)"},
	{"pause-signal", "helper: `SIG` makes it stop accepting for a while"},
	{"resume-signal", "helper: `SIG` undoes --pause-signal"},
	{"workers", "helper: `N` processes of the program serve side by side (default 1)"},
	{"strategy", "helper: `HOW` is handoff (default), or restart for a program that cannot run twice at a time"},
}

func addRunFlags(flags *pflag.FlagSet) {
	for _, f := range runFlagsOfInit {
		flags.String(f.name, "", f.usage)
	}
}

// runFlags are those that were given, as ExecStart= has them.
func runFlags(flags *pflag.FlagSet, runtime string) (given []string, err error) {
	for _, f := range runFlagsOfInit {
		if !flags.Changed(f.name) {
			continue
		}
		value, err := flags.GetString(f.name)
		if err != nil {
			return nil, err
		}
		if runtime != string(unitgen.RuntimeHelper) {
			return nil, usage("add --runtime helper, or leave it out", "init: --%s is for programs that zdt run starts", f.name)
		}
		if strings.TrimSpace(value) == "" {
			return nil, usage("", "init: --%s is empty", f.name)
		}
		given = append(given, "--"+f.name+"="+value)
	}
	if len(given) > 0 {
		// zdt run would refuse them when the service starts; it may as well do so now.
		_, err = parseRun(append(append([]string{"zdt", "run"}, given...), "--", "program"), []string{"PATH="})
	}
	return given, err
}
