package cmd_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/zdt-dev/zdt/cmd"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){
		"zdt": func() { os.Exit(cmd.Main(os.Args[1:])) },
	})
}

// TestScript runs what stands in testdata/script: zdt as a person would type
// it, on a machine where no systemd can be reached.
func TestScript(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script",
		Setup: func(e *testscript.Env) error {
			for _, kv := range [][2]string{
				{"DBUS_SYSTEM_BUS_ADDRESS", "unix:path=" + filepath.Join(e.WorkDir, "no-bus")},
				{"XDG_RUNTIME_DIR", filepath.Join(e.WorkDir, "run")},
				{"HOME", filepath.Join(e.WorkDir, "home")},
				{"LC_ALL", "C.UTF-8"}, {"TERM", "xterm-256color"}, {"NO_COLOR", ""},
			} {
				e.Setenv(kv[0], kv[1])
			}
			// A program to deploy: the test itself is a good one.
			self, err := os.Executable()
			if err != nil {
				return err
			}
			return os.Symlink(self, filepath.Join(e.WorkDir, "web"))
		},
		UpdateScripts: os.Getenv("ZDT_UPDATE_SCRIPTS") != "",
	})
}
