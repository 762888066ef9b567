package systest

import (
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/zdt-dev/zdt/internal/load"
)

// Without zdt run: the same program with the same arguments behind the same socket, as systemd starts it. What clients
// notice of its stop is the program's own doing.

// plainDropIn makes of a unit that runs "zdt run FLAGS -- COMMAND" one that runs COMMAND.
func plainDropIn(unit string) (string, error) {
	var line string
	var environment []string
	for l := range strings.Lines(unit) {
		l = strings.TrimSpace(l)
		if strings.HasPrefix(l, "ExecStart=") {
			line = l
		}
		if strings.HasPrefix(l, "Environment=") && strings.Contains(l, "{fd:") {
			environment = append(environment, l)
		}
	}
	flags, command, ok := strings.Cut(line, " -- ")
	if !ok || !strings.Contains(flags, " run ") && !strings.HasSuffix(flags, " run") {
		return "", fmt.Errorf("%q is not zdt run", line)
	}
	flag := func(name string) string {
		m := regexp.MustCompile(`--` + name + `[= ]([^" ]*)`).FindStringSubmatch(flags)
		if m == nil {
			return ""
		}
		return m[1]
	}
	// A program that answers a probe does not speak to systemd, most likely. KillMode=process: what the program has left
	// running when it ends may go on, as under zdt run.
	settings := []string{"Type=exec", "ExecStart=", "ExecStart=" + command, "ExecReload=", "KillMode=process", "TimeoutStopSec=8s", "NotifyAccess=all"}
	if flag("ready") == "" {
		settings[0] = "Type=notify"
	}
	if stop := flag("stop-signal"); stop != "" {
		settings = append(settings, "KillSignal=SIG"+stop)
	}
	if flag("pass") == "nginx" {
		settings = append(settings, "Environment=NGINX=3;")
	}
	if flag("stdin") != "" {
		settings = append(settings, "StandardInput=socket", "StandardOutput=journal", "StandardError=journal")
	}
	text := "[Service]\n" + strings.Join(append(settings, environment...), "\n") + "\n"
	return strings.ReplaceAll(text, "{fd:http}", "3"), nil
}

// stops has systemd restart the program so many times under load, without zdt, and returns what clients noticed.
func (s *service) stops(p foreign, times int) load.Report {
	s.t.Helper()
	dropIn, err := plainDropIn(s.run("systemctl", "cat", s.unit))
	if err != nil {
		s.t.Fatal(err)
	}
	s.run("systemctl", "stop", s.unit) // while the signal is zdt's
	if state := s.show("ActiveState"); state != "inactive" && !p.hangs {
		s.t.Errorf("after systemctl stop the unit is %s, %s", state, s.show("Result"))
	}
	s.writeUnit("/etc/systemd/system/"+s.unit+".d/plain.conf", dropIn)
	s.run("systemctl", "daemon-reload")
	s.run("systemctl", "start", s.unit)
	l := s.load(programLoad())
	s.flows(l)
	for range times {
		s.run("systemctl", "restart", s.unit)
		s.flows(l)
	}
	return l.Stop()
}

// flows waits until all clients get answers again.
func (s *service) flows(l *load.Load) {
	s.t.Helper()
	begin := l.Report().Requests
	s.await("answers to all clients", func() bool { return l.Report().Requests >= begin+150 })
}

// failures are those of a report by kind, for the log.
func failures(r load.Report) string {
	kinds := map[load.Kind]int{}
	for _, f := range r.Failures {
		kinds[f.Kind]++
	}
	var all []string
	for kind, n := range kinds {
		all = append(all, fmt.Sprintf("%d %s", n, kind))
	}
	slices.Sort(all)
	return strings.Join(all, ", ")
}
