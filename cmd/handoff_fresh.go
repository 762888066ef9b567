package cmd

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/zdt-dev/zdt/dbusctl"
	"github.com/zdt-dev/zdt/handoff/control"
)

// fresh adds to an arming what the unit says now, after a daemon-reload perhaps:
// the environment, which systemd has given to this very process, and the command, for which it
// is asked. Both are for a helper, which starts the next generation with them. What cannot be
// found out the helper has from its own start.
func (f *factory) fresh(ctx context.Context, t handoffTarget, arm control.Arm) control.Arm {
	if !f.bySystemd() {
		return arm // as in a container: this environment is whose shell it is
	}
	arm.Environ = serviceEnviron(os.Environ())
	arm.Command = f.unitCommand(ctx, t, arm)
	if size(arm.Environ)+size(arm.Command) > mostFresh {
		arm.Environ, arm.Command = nil, nil
		f.say("%s the environment is too large to be passed on: the new process gets that of the running one", f.errStyle().warn.Render("note:"))
	}
	return arm
}

// bySystemd reports whether systemd executed this very process. Versions before 248
// do not name the process, only the unit.
func (f *factory) bySystemd() bool {
	if pid := f.getenv("SYSTEMD_EXEC_PID"); pid != "" {
		return pid == strconv.Itoa(os.Getpid())
	}
	return f.getenv("INVOCATION_ID") != ""
}

// unitCommand is the unit's present ExecStart= with variables replaced. A service's user may not
// reach systemd: the bus turns away users that it cannot look up, as dynamic ones without
// nss-systemd. Then what root has put into the arming counts. nil: it is not known.
func (f *factory) unitCommand(ctx context.Context, t handoffTarget, arm control.Arm) []string {
	command, err := f.askCommand(ctx, t)
	if err != nil && len(arm.Command) > 0 {
		command, err = arm.Command, nil
	}
	if err != nil {
		f.say("%s the new process gets the arguments of the running one: %v", f.errStyle().warn.Render("note:"), err)
		return nil
	}
	return append(command[:1:1], expandCommand(command[1:], arm.Environ)...)
}

func (f *factory) askCommand(ctx context.Context, t handoffTarget) ([]string, error) {
	ctx, cancel := context.WithTimeout(ctx, controlPatience)
	defer cancel()
	// Reading properties takes no privilege; the service's user may do it.
	bus, err := f.dialSystemd(ctx, t.user)
	if err != nil {
		return nil, err
	}
	defer bus.Close()
	u, err := bus.Unit(ctx, t.unit)
	switch {
	case err != nil:
		return nil, err
	case int(u.MainPID) != t.pid || len(u.ExecStart) == 0:
		return nil, fmt.Errorf("process %d, and not %d, is the main process of %s", u.MainPID, t.pid, t.unit)
	}
	return execStart(u), nil
}

// execStart is the unit's ExecStart= with variables as they are written.
func execStart(u dbusctl.Unit) []string {
	if len(u.ExecStart) == 0 {
		return nil
	}
	command := append([]string{u.ExecStartPath}, u.ExecStart[1:]...)
	if u.ExecStartLiteral { // a $ is a $ there
		for i := range command[1:] {
			command[i+1] = strings.ReplaceAll(command[i+1], "$", "$$")
		}
	}
	return command
}

// mostFresh keeps an arming within one line of the control socket, 1 MiB, in
// which a byte may become six.
const mostFresh = 128 << 10

func size(words []string) (n int) {
	for _, w := range words {
		n += len(w) + 3
	}
	return n
}

// serviceEnviron is the environment of a control process of the unit without what
// systemd sets for each process anew (systemd.exec(5)) and what only
// control processes get.
func serviceEnviron(environ []string) []string {
	return slices.DeleteFunc(slices.Clone(environ), func(kv string) bool {
		name, _, _ := strings.Cut(kv, "=")
		switch name {
		case "MAINPID", "MAINPIDFDID", "NOTIFY_SOCKET", "JOURNAL_STREAM", "SYSTEMD_EXEC_PID", "FDSTORE",
			"SERVICE_RESULT", "EXIT_CODE", "EXIT_STATUS":
			return true
		}
		return strings.HasPrefix(name, "LISTEN_") || strings.HasPrefix(name, "WATCHDOG_")
	})
}

// expandCommand replaces variables in the words of an Exec line as systemd does when it
// executes it ("Command lines" in systemd.service(5); replace_env_argv in its sources): $NAME as
// a word of its own becomes as many words as the value has, ${NAME} anywhere becomes the
// value, $$ becomes $. What is not set becomes nothing.
func expandCommand(words, environ []string) []string {
	getenv := func(name string) string {
		for _, kv := range slices.Backward(environ) {
			if v, ok := strings.CutPrefix(kv, name+"="); ok {
				return v
			}
		}
		return ""
	}
	out := make([]string, 0, len(words))
	for _, word := range words {
		if len(word) > 1 && word[0] == '$' && word[1] != '{' && word[1] != '$' {
			out = append(out, splitValue(getenv(word[1:]))...)
			continue
		}
		out = append(out, expandWord(word, getenv))
	}
	return out
}

func expandWord(word string, getenv func(string) string) string {
	var b strings.Builder
	for {
		i := strings.IndexByte(word, '$')
		if i < 0 || i == len(word)-1 {
			return b.String() + word
		}
		b.WriteString(word[:i])
		rest := word[i+1:]
		end := strings.IndexByte(rest, '}')
		switch {
		case rest[0] == '$':
			b.WriteByte('$')
			word = rest[1:]
		case rest[0] == '{' && end > 0:
			b.WriteString(getenv(rest[1:end]))
			word = rest[end+1:]
		default: // systemd knows no other form, and leaves it as it is
			b.WriteString(word[i : i+2])
			word = rest[1:]
		}
	}
}

// splitValue splits the value of $NAME at blanks. Quotes hold words together and a backslash
// takes the next character as it is; what is not closed ends with the value.
func splitValue(value string) (words []string) {
	var b strings.Builder
	var quote byte
	inWord, escaped := false, false
	for i := range len(value) {
		c := value[i]
		switch {
		case escaped:
			b.WriteByte(c)
			escaped = false
		case c == '\\':
			inWord, escaped = true, true
		case quote != 0 && c == quote:
			quote = 0
		case quote == 0 && (c == '"' || c == '\''):
			inWord, quote = true, c
		case quote == 0 && strings.IndexByte(" \t\n\r", c) >= 0:
			if inWord {
				words = append(words, b.String())
			}
			b.Reset()
			inWord = false
		default:
			b.WriteByte(c)
			inWord = true
		}
	}
	if inWord {
		words = append(words, b.String())
	}
	return words
}
