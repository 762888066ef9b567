package cmd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/spf13/cobra"

	"github.com/zdt-dev/zdt/dbusctl"
	"github.com/zdt-dev/zdt/handoff/control"
	"github.com/zdt-dev/zdt/release"
	"github.com/zdt-dev/zdt/unitgen"
)

func TestCodeOf(t *testing.T) {
	for _, tt := range []struct {
		err  error
		want ExitCode
	}{
		{nil, ExitOK},
		{errors.New("anything"), ExitUnexpected},
		{fail(ExitRefused, "", "no"), ExitRefused},
		{fmt.Errorf("step: %w", fail(ExitNotRestored, "", "no")), ExitNotRestored},
		{fail(ExitRefused, "", "%w", fs.ErrPermission), ExitRefused}, // who made the Failure knew better
		{signalled{syscall.SIGINT}, 130},
		{signalled{syscall.SIGTERM}, 143},
		{signalled{syscall.SIGHUP}, 129},
		{&unitgen.InputError{Field: "name"}, ExitUsage},
		{errors.Join(&unitgen.InputError{Field: "a"}, &unitgen.InputError{Field: "b"}), ExitUsage},
		{&dbusctl.Error{Op: "connect", Err: dbusctl.ErrNoBus}, ExitUnavailable},
		{&dbusctl.Error{Op: "start", Err: dbusctl.ErrNotAuthorised}, ExitNotAuthorised},
		{&dbusctl.Error{Op: "read", Err: dbusctl.ErrNoUnit}, ExitRefused}, /* 4 is for status and watch */
		{&dbusctl.Error{Op: "reload", Err: dbusctl.ErrBusy}, ExitBusy},
		{&release.HeldError{Path: "/run/lock/zdt/web.lock"}, ExitBusy},
		{&control.Error{Op: "arm", Code: control.CodeBusy}, ExitBusy},
		{&control.Error{Op: "arm", Code: control.CodeNotReady}, ExitUnexpected},
		{fmt.Errorf("wait: %w", context.DeadlineExceeded), ExitDeadline},
		{timedOut{time.Second}, ExitDeadline},
		{&fs.PathError{Op: "open", Path: "/x", Err: syscall.EACCES}, ExitNotAuthorised},
	} {
		if got := codeOf(tt.err); got != tt.want {
			t.Errorf("codeOf(%v) = %d, want %d", tt.err, got, tt.want)
		}
	}
}

// The documentation lists every code, and says the same as --help.
func TestExitCodesAreDocumented(t *testing.T) {
	text, err := os.ReadFile("../docs/exit-codes.md")
	if err != nil {
		t.Fatal(err)
	}
	rows := make(map[string]string)
	for _, m := range regexp.MustCompile(`(?m)^\| (\d+) \| ([^|]*) \|`).FindAllStringSubmatch(string(text), -1) {
		rows[m[1]] = strings.TrimSpace(m[2])
	}
	for _, c := range exitCodes() {
		key := strconv.Itoa(int(c))
		if rows[key] != c.meaning() || c.meaning() == "" {
			t.Errorf("code %d: documented %q, --help says %q", c, rows[key], c.meaning())
		}
		delete(rows, key)
	}
	for key := range rows {
		t.Errorf("code %s is documented and does not exist", key)
	}
}

// Each command has a row with the codes of its --help, no more and no less, but for 64 and 129, which go without saying.
func TestExitCodesOfCommandsAreDocumented(t *testing.T) {
	text, err := os.ReadFile("../docs/exit-codes.md")
	if err != nil {
		t.Fatal(err)
	}
	_, part, found := strings.Cut(string(text), "\n## Per command\n")
	if !found {
		t.Fatal("there is no such part")
	}
	f, _, _ := testFactory(t, false)
	root := newRootCmd(f)
	root.InitDefaultHelpCmd()
	codes := map[string][]string{}
	every(root, func(c *cobra.Command) {
		if !c.HasAvailableSubCommands() {
			codes[c.Name()] = slices.DeleteFunc(strings.Fields(c.Annotations[annotationExit]), func(w string) bool { return w == "64" })
		}
	})
	quoted, number := regexp.MustCompile("`([a-z]+)`"), regexp.MustCompile(`\b\d+\b`)
	for line := range strings.Lines(part) {
		cells := strings.Split(line, "|")
		if strings.HasPrefix(line, "#") {
			break
		}
		if len(cells) != 4 {
			continue
		}
		documented := number.FindAllString(cells[2], -1)
		if strings.Contains(cells[2], "of the upgrade ·") || strings.HasSuffix(strings.TrimSpace(cells[2]), "codes of `upgrade`") {
			for _, c := range upgradeCodes() {
				documented = append(documented, strconv.Itoa(int(c)))
			}
			if strings.Contains(cells[1], "wait") { // they need no systemd
				documented = slices.DeleteFunc(documented, func(w string) bool { return w == "69" })
			}
		}
		documented = slices.DeleteFunc(documented, func(w string) bool { return w == "64" || w == "129" })
		slices.Sort(documented)
		documented = slices.Compact(documented)
		for _, m := range quoted.FindAllStringSubmatch(cells[1], -1) {
			want, ok := codes[m[1]]
			if !ok {
				continue // what it is called by
			}
			delete(codes, m[1])
			slices.Sort(want)
			if !slices.Equal(documented, want) {
				t.Errorf("%s: documented %v, --help says %v", m[1], documented, want)
			}
		}
	}
	for name := range codes {
		t.Errorf("%s has no row", name)
	}
}

// every walks all commands a person can see.
func every(cmd *cobra.Command, visit func(*cobra.Command)) {
	visit(cmd)
	for _, c := range cmd.Commands() {
		if !c.Hidden {
			every(c, visit)
		}
	}
}

func TestHelpStyle(t *testing.T) {
	f, _, _ := testFactory(t, false)
	root := newRootCmd(f)
	root.InitDefaultHelpCmd()
	seen := 0
	every(root, func(c *cobra.Command) {
		seen++
		name := c.CommandPath()
		if c.Short == "" || strings.HasSuffix(c.Short, ".") || len(c.Short) > 66 || c.Short[0] < 'A' || c.Short[0] > 'Z' {
			t.Errorf("%s: Short %q: a short sentence without a full stop", name, c.Short)
		}
		if c.Example == "" {
			t.Errorf("%s has no example", name)
		}
		codes := strings.Fields(c.Annotations[annotationExit])
		if len(codes) == 0 || codes[0] != "0" {
			t.Errorf("%s: exit status %v", name, codes)
		}
		for _, w := range codes {
			if n, err := strconv.Atoi(w); err != nil || ExitCode(n).meaning() == "" {
				t.Errorf("%s: exit status %s means nothing", name, w)
			}
		}
		help := helpText(c, newStyle(os.Stdout, false, false))
		if !strings.Contains(help, "\nEXIT STATUS\n    0  done") {
			t.Errorf("%s: no exit status in the help", name)
		}
		for line := range strings.Lines(help) {
			if line = strings.TrimRight(line, "\n"); len(line) > 80 || strings.HasSuffix(line, " ") {
				t.Errorf("%s: a help line of %d columns: %q", name, len(line), line)
			}
		}
		golden(t, "help/"+strings.ReplaceAll(name, " ", "-"), help)
	})
	if seen < 9 {
		t.Errorf("only %d commands were looked at", seen)
	}
}

// Two trees in one process share nothing.
func TestTreesAreIndependent(t *testing.T) {
	f1, _, _ := testFactory(t, false)
	f2, out2, _ := testFactory(t, false)
	execute(t.Context(), f1, []string{"version", "-o", "json", "--no-color", "-q"})
	execute(t.Context(), f2, []string{"version"})
	if f2.globals.output != outputText || f2.globals.quiet || strings.HasPrefix(out2.String(), "{") {
		t.Errorf("flags of one tree reached the other: %+v", f2.globals)
	}
}

func TestErrorIsTold(t *testing.T) {
	f, out, errs := testFactory(t, false)
	f.tell(&Failure{Code: ExitRefused, Err: errors.Join(errors.New("one \x1b[31m"), errors.New("two")), Details: []string{"web: a line"}, Hint: "zdt status web"})
	if want := "zdt: one \\x1b[31m\n     two\n  web: a line\nhint: zdt status web\n"; errs.String() != want || out.Len() > 0 {
		t.Errorf("got %q and %q, want %q", errs, out, want)
	}
	f.tell(&Failure{Code: ExitNotRunning, Told: true})
	if strings.Count(errs.String(), "zdt: ") != 1 {
		t.Error("what was told already was told again")
	}
}

func TestElapsed(t *testing.T) {
	for d, want := range map[string]string{
		"0s": "0 ms", "-3s": "0 ms", "300us": "0.3 ms", "14ms": "14 ms", "999ms": "999 ms", "3.24s": "3.2 s", "42s": "42 s",
		"60s": "1 min", "61s": "1 min 1 s", "90m": "1 h 30 min", "3h0m5s": "3 h", "50h": "2 d 2 h", "24h5m": "1 d",
	} {
		if got := elapsed(mustDuration(t, d)); got != want {
			t.Errorf("elapsed(%s) = %q, want %q", d, got, want)
		}
	}
}
