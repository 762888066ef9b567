package upgrade

import (
	"os"
	"strings"
	"testing"
)

// Somebody has copied a new version over the running program. What runs is made a release first, so that there is something to
// go back to.
func TestOverwrittenInPlace(t *testing.T) {
	w := newWorld(t)
	w.committed("v2")
	current, err := w.store.Current()
	if err != nil {
		t.Fatal(err)
	}
	// As scp and Ansible do: another file takes the name.
	other, err := os.ReadFile(program(t, "good", "v3"))
	if err == nil {
		err = os.Chmod(w.dir+"/store/releases/"+current.ID, 0o755)
	}
	if err == nil {
		err = os.WriteFile(current.Path+".new", other, 0o555)
	}
	if err == nil {
		err = os.Rename(current.Path+".new", current.Path)
	}
	if err != nil {
		t.Fatal(err)
	}
	rep := w.upgrade(program(t, "good", "v4"))
	w.want(rep, Upgraded, "", "")
	w.wantServing("v4")
	wantText(t, "warnings", strings.Join(rep.Warnings, "\n"), "it is one now, "+rep.From.ID)
	if rep.From.ID == current.ID {
		t.Errorf("from is %s, whose file is another by now", rep.From.ID)
	}
	back := w.rollback("")
	w.want(back, Upgraded, "", "")
	w.wantServing("v2")
	w.want(w.rollback(w.v1.ID), Upgraded, "", "")
	w.wantServing("v1")
}
