// Package docstest reads the commands and programs that the project's documents show, for the tests beside it, which
// run them: what a document promises has to come true.
//
// What it knows of a document is its fenced blocks:
//
//   - console: lines that begin with "# " or "$ " are commands, run one after the other in one place; the lines below a
//     command are what it prints. Numbers, times and checksums may differ. A line "…" stands for any lines, and a
//     command without lines below may print anything.
//   - sh: commands for the reader, which are only looked at.
//   - go: a program.
package docstest

import (
	"fmt"
	"regexp"
	"strings"
)

// Block is a fenced block.
type Block struct {
	Line     int // of its first line of text, from 1
	Language string
	Text     string
}

// Blocks returns a document's fenced blocks, in order.
func Blocks(markdown string) ([]Block, error) {
	var blocks []Block
	var open *Block
	n := 0
	for line := range strings.Lines(markdown) {
		n++
		fence, isFence := strings.CutPrefix(strings.TrimRight(line, "\n"), "```")
		switch {
		case open == nil && isFence:
			open = &Block{Line: n + 1, Language: fence}
		case open != nil && isFence && fence == "":
			blocks = append(blocks, *open)
			open = nil
		case open != nil:
			open.Text += line
		}
	}
	if open != nil {
		return nil, fmt.Errorf("line %d: the block does not end", open.Line-1)
	}
	return blocks, nil
}

// Command is a command of a console block.
type Command struct {
	Line   int
	Text   string
	Output []string // nil: anything
}

// Commands returns the commands of console blocks.
func Commands(blocks []Block) ([]Command, error) {
	var commands []Command
	for _, b := range blocks {
		if b.Language != "console" {
			continue
		}
		first := len(commands)
		n := b.Line - 1
		for line := range strings.Lines(b.Text) {
			n++
			line = strings.TrimRight(line, "\n")
			if text, ok := cutPrompt(line); ok {
				commands = append(commands, Command{Line: n, Text: text})
				continue
			}
			if len(commands) == first {
				return nil, fmt.Errorf("line %d: output without a command", n)
			}
			last := &commands[len(commands)-1]
			last.Output = append(last.Output, line)
		}
	}
	return commands, nil
}

func cutPrompt(line string) (command string, ok bool) {
	for _, prompt := range []string{"# ", "$ "} {
		if command, ok := strings.CutPrefix(line, prompt); ok {
			return command, true
		}
	}
	return "", false
}

// What may differ from one run to the next.
var variable = []struct {
	pattern *regexp.Regexp
	shown   string
}{
	{regexp.MustCompile(`\b\d{8}T\d{6}\d*Z(-[0-9a-f]+)?`), "ID"},
	{regexp.MustCompile(`\b[0-9a-f]{12}\b`), "ID"},
	{regexp.MustCompile(`\b\d+(\.\d+)? ?(ms|s|µs)\b`), "TIME"},
	{regexp.MustCompile(`\b(pid|generation) \d+( → \d+)?`), "$1 N"},
}

// normalise replaces what may differ.
func normalise(line string) string {
	for _, v := range variable {
		line = v.pattern.ReplaceAllString(line, v.shown)
	}
	return strings.TrimSpace(line)
}

// Match reports the first line of want that got does not have in its place, "" for none.
func Match(want, got []string) string {
	if want == nil {
		return ""
	}
	skip := false
	for _, w := range want {
		if strings.TrimSpace(w) == "…" {
			skip = true
			continue
		}
		for skip && len(got) > 0 && normalise(got[0]) != normalise(w) {
			got = got[1:]
		}
		if len(got) == 0 || normalise(got[0]) != normalise(w) {
			return w
		}
		got, skip = got[1:], false
	}
	if len(got) > 0 && !skip {
		return "(end of the output)"
	}
	return ""
}
