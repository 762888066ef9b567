package unitgen

import (
	"bytes"
	"strings"
)

// archive is a txtar file: a comment and files, each after a line "-- NAME --".
// The format is small enough to read here, and golang.org/x/tools stays out of go.mod.
type archive struct {
	comment string
	files   []archived
}

type archived struct {
	name string
	data string
}

func parseArchive(data []byte) archive {
	var a archive
	var text strings.Builder
	flush := func() {
		if len(a.files) == 0 {
			a.comment = text.String()
		} else {
			a.files[len(a.files)-1].data = text.String()
		}
		text.Reset()
	}
	for _, line := range splitLines(data) {
		name, ok := strings.CutPrefix(strings.TrimSuffix(line, "\n"), "-- ")
		if ok {
			name, ok = strings.CutSuffix(name, " --")
		}
		if !ok {
			text.WriteString(line)
			continue
		}
		flush()
		a.files = append(a.files, archived{name: name})
	}
	flush()
	return a
}

func (a archive) format() []byte {
	var b bytes.Buffer
	b.WriteString(a.comment)
	for _, f := range a.files {
		b.WriteString("-- " + f.name + " --\n" + f.data)
	}
	return b.Bytes()
}
