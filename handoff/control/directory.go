package control

import (
	"path/filepath"
	"strings"
)

// Directory is the directory of a runtime's control socket: of those that $RUNTIME_DIRECTORY names, separated by colons, the one
// that zdt has written into the unit, RuntimeDirectory=zdt/NAME, and else the first; "" if it names none.
//
// A drop-in may have added some, and systemd (252 to 257) names them in the order of the alphabet, not of the unit.
func Directory(runtimeDirectory string) string {
	first, _, _ := strings.Cut(runtimeDirectory, ":")
	for dir := range strings.SplitSeq(runtimeDirectory, ":") {
		if filepath.Base(filepath.Dir(dir)) == "zdt" {
			return dir
		}
	}
	return first
}
