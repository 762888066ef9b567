package control

import "testing"

func TestWords(t *testing.T) {
	for _, tt := range []struct {
		counts            Counts
		progress, summary string
	}{
		{Counts{}, "no open connections", "0 connections cut"},
		{Counts{Idle: 12, Active: 3, Moved: 300}, "12 idle, 3 active, 300 moved", "300 connections moved, 0 cut"},
		{Counts{Streams: 1}, "1 stream", "0 connections cut"},
		{Counts{Streams: 2, Drained: 1, Closed: 5}, "2 streams, 1 drained, 5 closed politely", "1 connection drained, 5 closed politely, 0 cut"},
		{Counts{Moved: 312, Drained: 4, Closed: 2}, "312 moved, 4 drained, 2 closed politely", "312 connections moved, 4 drained, 2 closed politely, 0 cut"},
		{Counts{Moved: 1, Cut: 7}, "1 moved, 7 cut", "1 connection moved, 7 cut"},
		{Counts{Closed: 2}, "2 closed politely", "2 connections closed politely, 0 cut"},
		{Counts{Cut: 1}, "1 cut", "1 connection cut"},
		{Counts{Cut: 7, TasksLeft: 1}, "7 cut", "7 connections cut, 1 task left behind"},
		{Counts{Tasks: 3, Moved: 2}, "3 tasks, 2 moved", "2 connections moved, 0 cut"},
	} {
		if got := tt.counts.Progress(); got != tt.progress {
			t.Errorf("%+v: progress %q, want %q", tt.counts, got, tt.progress)
		}
		if got := tt.counts.Summary(); got != tt.summary {
			t.Errorf("%+v: summary %q, want %q", tt.counts, got, tt.summary)
		}
	}
}

func TestProcess(t *testing.T) {
	for pid, want := range map[int]string{812: "pid 812", 0: "a process in another namespace"} {
		if got := Process(pid); got != want {
			t.Errorf("Process(%d) = %q, want %q", pid, got, want)
		}
	}
}
