package unitgen

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
)

// ChangeKind says what happens to a file.
type ChangeKind string

const (
	Create ChangeKind = "create"
	Modify ChangeKind = "modify"
	Remove ChangeKind = "remove"
)

// A Change is what it takes to get from one version of a file to another.
type Change struct {
	Kind ChangeKind
	Path string
	// Before is where the present file comes from; HandMade for Create.
	Before Origin
	// Text is a unified diff of the contents; without lines when only the mode differs.
	Text string
}

// Diff returns what turns the files old into the files new, matched by path:
// first those in new, in its order, then what new no longer has. Equal
// files are left out.
func Diff(old, new []File) []Change {
	find := func(files []File, path string) int {
		return slices.IndexFunc(files, func(f File) bool { return f.Path == path })
	}
	var changes []Change
	for _, n := range new {
		i := find(old, n.Path)
		switch {
		case i < 0:
			changes = append(changes, Change{Kind: Create, Path: n.Path, Text: unified("/dev/null", n.Path, nil, n.Data)})
		case !bytes.Equal(old[i].Data, n.Data) || old[i].Mode != n.Mode:
			o := old[i]
			text := unified(n.Path, n.Path, o.Data, n.Data)
			if o.Mode != n.Mode {
				text = fmt.Sprintf("old mode %04o\nnew mode %04o\n", o.Mode, n.Mode) + text
			}
			changes = append(changes, Change{Kind: Modify, Path: n.Path, Before: Inspect(o.Data).Origin, Text: text})
		}
	}
	for _, o := range old {
		if find(new, o.Path) < 0 {
			changes = append(changes, Change{Kind: Remove, Path: o.Path, Before: Inspect(o.Data).Origin, Text: unified(o.Path, "/dev/null", o.Data, nil)})
		}
	}
	return changes
}

// diffContext is how many equal lines surround a change, as in diff -u.
const diffContext = 3

// maxCells bounds the table of the comparison. Beyond it (a hand-made file of
// tens of thousands of lines) everything between first and last difference is replaced.
const maxCells = 4 << 20

// edit is one line of a diff: ' ' in both, '-' in the old, '+' in the new.
type edit struct {
	op   byte
	line string
}

func unified(oldName, newName string, old, new []byte) string {
	edits := compareLines(splitLines(old), splitLines(new))
	var b strings.Builder
	fmt.Fprintf(&b, "--- %s\n+++ %s\n", oldName, newName)
	oldLine, newLine := 1, 1 // of edits[i]
	for i := 0; i < len(edits); {
		if edits[i].op == ' ' {
			oldLine, newLine, i = oldLine+1, newLine+1, i+1
			continue
		}
		// A hunk: from diffContext lines before to where the next change is far away.
		first := max(0, i-diffContext)
		last, quiet := i, 0
		for j := i; j < len(edits) && quiet <= 2*diffContext; j++ {
			if edits[j].op == ' ' {
				quiet++
			} else {
				last, quiet = j, 0
			}
		}
		end := min(len(edits), last+1+diffContext)
		hunk := edits[first:end]
		oldStart, newStart := oldLine-(i-first), newLine-(i-first)
		var oldCount, newCount int
		for _, e := range hunk {
			if e.op != '+' {
				oldCount++
			}
			if e.op != '-' {
				newCount++
			}
		}
		// diff -u counts an empty side from the line before it.
		fmt.Fprintf(&b, "@@ -%s +%s @@\n", span(oldStart, oldCount), span(newStart, newCount))
		for _, e := range hunk {
			b.WriteByte(e.op)
			b.WriteString(e.line)
			if !strings.HasSuffix(e.line, "\n") {
				b.WriteString("\n\\ No newline at end of file\n")
			}
		}
		oldLine, newLine, i = oldStart+oldCount, newStart+newCount, end
	}
	return b.String()
}

func span(start, count int) string {
	switch count {
	case 0:
		return fmt.Sprintf("%d,0", start-1)
	case 1:
		return fmt.Sprint(start)
	}
	return fmt.Sprintf("%d,%d", start, count)
}

// splitLines cuts data after each newline; the last line may have none.
func splitLines(data []byte) []string {
	if len(data) == 0 {
		return nil
	}
	lines := strings.SplitAfter(string(data), "\n")
	if lines[len(lines)-1] == "" {
		lines = lines[:len(lines)-1]
	}
	return lines
}

// compareLines finds a longest common subsequence of a and b by the textbook
// table; unit files are short.
func compareLines(a, b []string) []edit {
	var head, tail []edit
	for len(a) > 0 && len(b) > 0 && a[0] == b[0] {
		head = append(head, edit{' ', a[0]})
		a, b = a[1:], b[1:]
	}
	for len(a) > 0 && len(b) > 0 && a[len(a)-1] == b[len(b)-1] {
		tail = append(tail, edit{' ', a[len(a)-1]})
		a, b = a[:len(a)-1], b[:len(b)-1]
	}
	slices.Reverse(tail)
	w := len(b) + 1
	var common []int32 // common[i*w+j]: of a[i:] and b[j:]
	if (len(a)+1)*w <= maxCells {
		common = make([]int32, (len(a)+1)*w)
		for i := len(a) - 1; i >= 0; i-- {
			for j := len(b) - 1; j >= 0; j-- {
				if a[i] == b[j] {
					common[i*w+j] = common[(i+1)*w+j+1] + 1
				} else {
					common[i*w+j] = max(common[(i+1)*w+j], common[i*w+j+1])
				}
			}
		}
	}
	i, j := 0, 0
	for i < len(a) || j < len(b) {
		switch {
		case common != nil && i < len(a) && j < len(b) && a[i] == b[j]:
			head = append(head, edit{' ', a[i]})
			i, j = i+1, j+1
		case i < len(a) && (j == len(b) || common == nil || common[(i+1)*w+j] >= common[i*w+j+1]):
			head = append(head, edit{'-', a[i]})
			i++
		default:
			head = append(head, edit{'+', b[j]})
			j++
		}
	}
	return append(head, tail...)
}
