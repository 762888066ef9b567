package cmd

import (
	"strings"
	"testing"

	"github.com/zdt-dev/zdt/handoffcheck"
)

// Whoever may choose the program of a service must not get more by it than the service has.
func TestRootly(t *testing.T) {
	const store, program = "/var/lib/zdt/web", "/var/lib/zdt/web/current/web"
	exec := func(path string, flags ...string) [][]any { return [][]any{{path, []string{path}, flags, uint64(0)}} }
	for _, tt := range []struct {
		what       string
		properties map[string]any
		why        string // "": it has no more
	}{
		{"a user", map[string]any{"User": "web", "ExecStartEx": exec(program)}, ""},
		{"a dynamic user", map[string]any{"DynamicUser": true, "ExecStartEx": exec(program)}, ""},
		{"root by default", nil, "as root"},
		{"root by name", map[string]any{"User": "root"}, "as root"},
		{"root, and a dynamic user", map[string]any{"User": "root", "DynamicUser": true}, "as root"},
		{"root by number", map[string]any{"User": "0"}, "as root"},
		{"the program drops its rights itself", map[string]any{"User": "web", "ExecStartEx": exec(program, "no-setuid")}, "ExecStart="},
		{"it starts with all rights", map[string]any{"User": "web", "ExecStartEx": exec(program, "ignore-failure", "privileged")}, "ExecStart="},
		{"it starts with ambient rights", map[string]any{"User": "web", "ExecStartEx": exec(program, "ambient")}, "ExecStart="},
		{"a helper with all rights", map[string]any{"User": "web", "ExecStartEx": [][]any{{"/usr/local/bin/zdt", []string{"zdt", "run", "--", program}, []string{"privileged"}}}}, "ExecStart="},
		{"a step of the release's with all rights", map[string]any{"User": "web", "ExecStartPreEx": exec(store+"/current/migrate", "privileged")}, "ExecStartPre="},
		{"an administrator's step with all rights", map[string]any{"User": "web", "ExecStartPreEx": exec("/usr/bin/mkdir", "privileged")}, ""},
		{"steps of the release's as root", map[string]any{"User": "web", "PermissionsStartOnly": true, "ExecReloadEx": exec(store + "/current/reload")}, "PermissionsStartOnly="},
		{"low ports", map[string]any{"User": "web", "AmbientCapabilities": uint64(1 << 10)}, ""},
		{"another user's rights", map[string]any{"User": "web", "AmbientCapabilities": uint64(1<<10 | 1<<7)}, "AmbientCapabilities="},
	} {
		why := rootly(handoffcheck.Unit{Name: "web.service", Properties: tt.properties}, store)
		if (why == "") != (tt.why == "") || !strings.Contains(why, tt.why) {
			t.Errorf("%s: %q, want %q", tt.what, why, tt.why)
		}
	}
}
