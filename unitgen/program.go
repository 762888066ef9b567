package unitgen

import (
	"path"
	"slices"
	"strings"
)

// Program returns the file that an ExecStart= serves with, given the path it executes and
// its words. That is the path itself or, for "zdt run … -- COMMAND", the word of
// the command that leads through a store's "current": an interpreter may stand in front of
// it. Without such a word it is the command's first.
func Program(file string, argv []string) string {
	if len(argv) < 2 || argv[1] != "run" || !strings.HasPrefix(path.Base(file), "zdt") {
		return file
	}
	dash := slices.Index(argv, "--")
	if dash < 0 || dash == len(argv)-1 {
		return file
	}
	for _, word := range argv[dash+1:] {
		if path.IsAbs(word) && path.Base(path.Dir(word)) == "current" {
			return word
		}
	}
	return argv[dash+1]
}
