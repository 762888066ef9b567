//go:build !unix

package handoff

import (
	"os"
	"strconv"

	"github.com/zdt-dev/zdt/handoff/control"
)

func exitOf(state *os.ProcessState, err error) control.Exit {
	if err != nil {
		return control.Exit{Code: "unknown", Status: err.Error()}
	}
	return control.Exit{Code: "exited", Status: strconv.Itoa(state.ExitCode())}
}
