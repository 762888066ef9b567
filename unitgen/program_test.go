package unitgen

import (
	"strings"
	"testing"
)

func TestProgram(t *testing.T) {
	for _, c := range []struct{ command, want string }{
		{"/var/lib/zdt/web/current/web -x", "/var/lib/zdt/web/current/web"},
		{"/var/lib/zdt/web/current/web run -- a", "/var/lib/zdt/web/current/web"},
		{"/usr/bin/caddy run -- /a", "/usr/bin/caddy"},
		{"/usr/bin/zdt run -- /var/lib/zdt/web/current/web -- b", "/var/lib/zdt/web/current/web"},
		{"/usr/bin/zdt run --ready tcp -- /usr/bin/python3 /var/lib/zdt/web/current/web.py", "/var/lib/zdt/web/current/web.py"},
		{"/usr/bin/zdt run -- /usr/sbin/nginx -g x", "/usr/sbin/nginx"},
		{"/usr/bin/zdt run --", "/usr/bin/zdt"},
		{"/usr/bin/zdt run web", "/usr/bin/zdt"},
		{"/usr/bin/zdt handoff -- web", "/usr/bin/zdt"},
	} {
		argv := strings.Fields(c.command)
		if got := Program(argv[0], argv); got != c.want {
			t.Errorf("%s: %s, want %s", c.command, got, c.want)
		}
	}
	if got := Program("", nil); got != "" {
		t.Errorf("nothing: %q", got)
	}
	// What the generator writes is found again.
	s := validSpec()
	s.Runtime, s.Args = RuntimeHelper, []string{"--", "/srv/current/x"}
	argv := append([]string{s.Zdt, "run", "--"}, append([]string{s.withDefaults().execPath()}, s.Args...)...)
	if got := Program(argv[0], argv); got != s.withDefaults().execPath() {
		t.Errorf("%q: %s", argv, got)
	}
}
