package cmd

import "testing"

func TestProgramName(t *testing.T) {
	for _, tt := range []struct{ service, file, want string }{
		{"web", "./web-1.4.3", "web"},
		{"web", "/tmp/web_linux_amd64", "web"},
		{"web", "web.new", "web"},
		{"web", "web", "web"},
		{"web", "webserver", "webserver"},
		{"web", "dist/server", "server"},
		{"my-app", "my-app-v2", "my-app"},
	} {
		if got := programName(tt.service, tt.file); got != tt.want {
			t.Errorf("programName(%q, %q) = %q, want %q", tt.service, tt.file, got, tt.want)
		}
	}
}
