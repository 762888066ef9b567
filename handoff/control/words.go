package control

import (
	"fmt"
	"strings"
)

// This file says counts in words: the same ones in the journal, in systemctl
// status and in what zdt prints.

// Progress says what is open now, tasks that run included, and what became of
// the rest so far: "12 idle, 3 active, 300 moved". What is zero is left out.
func (c Counts) Progress() string {
	var words []string
	for _, p := range []part{
		{c.Idle, "idle"}, {c.Active, "active"}, {c.Streams, plural(c.Streams, "stream")}, {c.Tasks, plural(c.Tasks, "task")},
		{c.Moved, "moved"}, {c.Drained, "drained"}, {c.Closed, "closed politely"}, {c.Cut, "cut"},
	} {
		if p.n > 0 {
			words = append(words, p.String())
		}
	}
	if len(words) == 0 {
		return "no open connections"
	}
	return strings.Join(words, ", ")
}

// Summary says what became of the connections of a generation that is done:
// "312 connections moved, 4 drained, 2 closed politely, 0 cut". What is zero is
// left out, but for what was cut.
func (c Counts) Summary() string {
	var words []string
	for _, p := range []part{{c.Moved, "moved"}, {c.Drained, "drained"}, {c.Closed, "closed politely"}, {c.Cut, "cut"}} {
		switch {
		case p.n == 0 && p.word != "cut":
			continue
		case len(words) == 0: // the first number says what is counted
			p.word = plural(p.n, "connection") + " " + p.word
		}
		words = append(words, p.String())
	}
	if c.TasksLeft > 0 {
		words = append(words, part{c.TasksLeft, plural(c.TasksLeft, "task") + " left behind"}.String())
	}
	return strings.Join(words, ", ")
}

// Process names a process for people: "pid 812". 0 is the number of one that a
// runtime cannot see.
func Process(pid int) string {
	if pid == 0 {
		return "a process in another namespace"
	}
	return fmt.Sprintf("pid %d", pid)
}

type part struct {
	n    int
	word string
}

func (p part) String() string { return fmt.Sprintf("%d %s", p.n, p.word) }

func plural(n int, word string) string {
	if n == 1 {
		return word
	}
	return word + "s"
}
