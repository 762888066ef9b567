package journal

import (
	"bytes"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"
)

// Where another process tells the events only the program's own logger gets them.
func TestMute(t *testing.T) {
	path := filepath.Join(t.TempDir(), "socket")
	conn := sink(t, path)
	var words bytes.Buffer
	for _, logger := range []*slog.Logger{nil, slog.New(slog.NewTextHandler(&words, nil))} {
		l := NewLog("web", NewWriter(path), logger)
		l.Mute()
		l.Write(Event{Kind: Drain, Generation: 2})
		l.Close()
	}
	l := NewLog("web", NewWriter(path), nil)
	l.Write(Event{Kind: Exit, Generation: 2})
	l.Close()
	if got := receive(t, conn).Get(FieldEvent); got != string(Exit) {
		t.Errorf("the journal got %s first", got)
	}
	if n := strings.Count(words.String(), "event=drain"); n != 1 {
		t.Errorf("the logger got %q", words.String())
	}
}
