package handoffcheck

import (
	"fmt"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// restartChecks are about what systemd does when a new generation crashes.
func restartChecks() []Check {
	return []Check{{
		ID: "ZDT081", Severity: Risk, Family: FamilyUnit, Title: "not every crash is followed by a start",
		Why: "a new generation that crashes after it has taken over leaves nobody, if systemd counts its end among those that no start is to follow",
		More: `Restart=on-success, on-watchdog, on-abnormal and on-abort leave out programs that end with a status other than 0: a panic of Go has 2,
log.Fatal 1. RestartPreventExitStatus= holds whatever Restart= says; with Restart=on-failure no start follows what is in
SuccessExitStatus= either. zdt run ends as its program did.`,
		look: func(f Facts) (all []sight) {
			switch restart := f.Service.Text("Restart"); restart {
			case "on-success", "on-watchdog", "on-abnormal", "on-abort":
				all = f.service("Restart="+restart, "Restart=always")
			case "on-failure":
				all = slices.Concat(all, f.crashes("SuccessExitStatus"))
			case "", "no":
				return nil // or ZDT007
			}
			return slices.Concat(all, f.crashes("RestartPreventExitStatus"))
		},
	}}
}

// crashes are those among the ends in a list that crashes have, too.
func (f Facts) crashes(key string) []sight {
	statuses, signals := f.Service.ends(key)
	isCrash := func(n int32) bool { return n == 1 || n == 2 } // log.Fatal, panic
	kills := func(n int32) bool {
		return slices.Contains([]syscall.Signal{unix.SIGABRT, unix.SIGBUS, unix.SIGFPE, unix.SIGILL, unix.SIGKILL, unix.SIGSEGV, unix.SIGSYS, unix.SIGTRAP}, syscall.Signal(n))
	}
	if !slices.ContainsFunc(statuses, isCrash) && !slices.ContainsFunc(signals, kills) {
		return nil
	}
	seen := endsText(statuses, signals)
	lines := []string{key + "="}
	if left := endsText(slices.DeleteFunc(statuses, isCrash), slices.DeleteFunc(signals, kills)); left != "" {
		lines = append(lines, key+"="+left)
	}
	return f.service(key+"="+seen, lines...)
}

// ends are exit statuses and signals: (aiai).
func (u Unit) ends(key string) (statuses, signals []int32) {
	pair, _ := u.Properties[key].([]any)
	if len(pair) != 2 {
		return nil, nil
	}
	statuses, _ = pair[0].([]int32)
	signals, _ = pair[1].([]int32)
	return slices.Clone(statuses), slices.Clone(signals)
}

// endsText is what a unit file has for them.
func endsText(statuses, signals []int32) string {
	var words []string
	for _, n := range statuses {
		words = append(words, fmt.Sprint(n))
	}
	for _, n := range signals {
		words = append(words, unix.SignalName(syscall.Signal(n)))
	}
	return strings.Join(words, " ")
}
