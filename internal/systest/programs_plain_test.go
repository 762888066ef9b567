package systest

import (
	"fmt"
	"math"
	"regexp"
	"slices"
	"strings"
	"testing"

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
	switch flag("pass") {
	case "nginx":
		settings = append(settings, "Environment=NGINX=3;")
	case "server-starter":
		settings = append(settings, "Environment=SERVER_STARTER_PORT=127.0.0.1:8080=3")
	case "einhorn":
		settings = append(settings, "Environment=EINHORN_FDS=3")
	}
	if flag("stdin") != "" {
		settings = append(settings, "StandardInput=socket", "StandardOutput=journal", "StandardError=journal")
	}
	text := "[Service]\n" + strings.Join(append(settings, environment...), "\n") + "\n"
	return strings.ReplaceAll(text, "{fd:http}", "3"), nil
}

// stops has systemd restart the program so many times under load, without zdt, and returns what clients noticed, and how
// many requests failed in each.
func (s *service) stops(p foreign, times int) (report load.Report, failed []int) {
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
	lost := l.Report().Failed
	for range times {
		s.run("systemctl", "restart", s.unit)
		s.flows(l)
		now := l.Report().Failed
		failed, lost = append(failed, now-lost), now
	}
	return l.Stop(), failed
}

// excess is by how much the mean of some counts is above that of others, and by how much it may be so by chance: four
// standard errors of the difference, which one comparison in 30,000 goes beyond if nothing is the matter. A program
// that closes idle connections fails those whose next request is on its way, one time none and another time
// several. Either side counts as if it had one failure more, as none in twenty does not mean that there never is one.
func excess(counts, others []int) (more, chance float64) {
	moments := func(counts []int) (mean, err float64) {
		n := float64(len(counts))
		for _, c := range counts {
			mean += float64(c) / n
		}
		variance := 1 / n
		for _, c := range counts {
			variance += (float64(c) - mean) * (float64(c) - mean) / (n - 1)
		}
		return mean, variance / n
	}
	mean, err := moments(counts)
	other, otherErr := moments(others)
	return mean - other, 4 * math.Sqrt(err+otherErr)
}

func TestExcess(t *testing.T) {
	repeat := func(n int, counts ...int) (all []int) {
		for range n {
			all = append(all, counts...)
		}
		return all
	}
	for _, tt := range []struct {
		name           string
		counts, others []int
		more           float64
		chance         bool // explains it
	}{
		{"nothing fails", repeat(21, 0), repeat(21, 0), 0, true},
		{"once in 20", append(repeat(19, 0), 1), repeat(20, 0), 0.05, true},
		{"a bad moment of the machine", append(repeat(19, 0), 8), repeat(20, 0), 0.4, true},
		{"always one", repeat(20, 1), repeat(20, 0), 1, false},
		{"two thirds", repeat(7, 0, 1, 1), repeat(21, 0), 2. / 3, false},
		{"the same spread", repeat(5, 0, 1, 2, 5), repeat(5, 0, 1, 2, 5), 0, true},
		{"one client more", repeat(5, 1, 2, 3, 2), repeat(5, 0, 1, 2, 1), 1, false},
		{"twice as many", repeat(5, 3, 4, 5, 4), repeat(5, 1, 2, 3, 2), 2, false},
		{"fewer", repeat(20, 0), repeat(20, 3), -3, true},
	} {
		more, chance := excess(tt.counts, tt.others)
		if math.Abs(more-tt.more) > 1e-9 || (more <= chance) != tt.chance {
			t.Errorf("%s: %.3f more, of which %.3f may be chance", tt.name, more, chance)
		}
	}
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
