package cmd

import (
	"maps"
	"os"
	"path/filepath"
	"testing"
)

// What counts of several files is what counts for journald.
func TestJournaldConf(t *testing.T) {
	etc, usr := t.TempDir(), t.TempDir()
	write := func(dir, name, text string) {
		t.Helper()
		path := filepath.Join(dir, "systemd", name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want := func(want map[string]string) {
		t.Helper()
		got, err := journaldConf(etc, usr)
		if err != nil || !maps.Equal(got, want) {
			t.Errorf("got %v, %v; want %v", got, err, want)
		}
	}
	want(map[string]string{})
	write(usr, "journald.conf", "[Journal]\n#Storage=none\nStorage = auto\n[Other]\nStorage=none\n")
	want(map[string]string{"Storage": "auto"})
	write(etc, "journald.conf", "[Journal]\nMaxLevelStore=err\n")
	want(map[string]string{"MaxLevelStore": "err"}) // it hides the other one
	write(usr, "journald.conf.d/b.conf", "[Journal]\nStorage=none\nMaxLevelStore=\n")
	want(map[string]string{"Storage": "none", "MaxLevelStore": ""})
	write(etc, "journald.conf.d/a.conf", "[Journal]\nStorage=volatile\n")
	want(map[string]string{"Storage": "none", "MaxLevelStore": ""}) // the last name wins, wherever it is
	if err := os.Symlink("/dev/null", filepath.Join(etc, "systemd/journald.conf.d/b.conf")); err != nil {
		t.Fatal(err)
	}
	want(map[string]string{"Storage": "volatile", "MaxLevelStore": "err"})
}
