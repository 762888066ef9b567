package guest_test

import (
	"errors"
	"io/fs"
	"os"
	"slices"
	"testing"

	"github.com/zdt-dev/zdt/internal/guest"
)

// The programs are there, none of them runs, and what installing them took is gone.
func TestPrograms(t *testing.T) {
	guest.Require(t)
	python := []string{"gunicorn", "--version"}
	for image, programs := range map[guest.Image][][]string{
		guest.BookwormPrograms: {python, {"nginx", "-t"}},
		guest.TrixiePrograms: {
			python, {"uvicorn", "--version"}, {"node", "--version"}, {"nginx", "-t"}, {"haproxy", "-v"},
			{"puma", "--version"}, {"java", "-version"}, {"java", "-cp", "/usr/share/java/eclipse-jdt-core-compiler-batch.jar", "org.eclipse.jdt.internal.compiler.batch.Main", "-version"}, {"start_server", "--version"}, {"socat", "-V"},
		},
		guest.TrixieServices: {{"sshd", "-V"}, {"redis-server", "--version"}},
	} {
		t.Run(image.String(), func(t *testing.T) {
			t.Parallel()
			g := guest.Boot(t, image)
			want := []string{"dbus.service", "systemd-journald.service", "systemd-logind.service"}
			if got := units(t, g, "--type=service", "--state=running"); !slices.Equal(got, want) {
				t.Errorf("running services are %q, want %q", got, want)
			}
			if got := units(t, g, "--type=timer"); got != nil {
				t.Errorf("active timers are %q, want none", got)
			}
			for _, p := range programs {
				g.MustRun(t, p...)
			}
			if _, err := os.Stat(g.Path("/usr/sbin/policy-rc.d")); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("services are still denied: %v", err)
			}
			if got := g.MustRun(t, "find", "/var/lib/apt/lists", "/var/cache/apt", "-name", "*_*"); got != "" {
				t.Errorf("left behind: %s", got)
			}
		})
	}
}
