package cmd

import (
	"bufio"
	"context"
	"encoding/json"
	"os"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/zdt-dev/zdt/upgrade"
)

// Whoever runs zdt gets every update and then the report over the descriptor; stdout is what it always is.
func TestEventsFD(t *testing.T) {
	f, out, _ := testFactory(t, false)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	fd, err := unix.Dup(int(w.Fd())) // the flag owns what it is given
	w.Close()
	if err == nil {
		err = (eventsFlag{f}).Set(strconv.Itoa(fd))
	}
	if err != nil {
		t.Fatal(err)
	}
	o := upgradeOptions{Service: "web", run: func(_ context.Context, _ upgradeOptions, observe func(upgrade.Update)) (upgrade.Report, error) {
		observe(upgrade.Update{Phase: upgrade.Stage, State: upgrade.Done})
		return upgrade.Report{Schema: "zdt.upgrade/1", Outcome: upgrade.Unchanged, Service: "web"}, nil
	}}
	if err := runUpgrade(t.Context(), f, o); err != nil {
		t.Fatal(err)
	}
	f.events.(*os.File).Close()
	var schemas []string
	for lines := bufio.NewScanner(r); lines.Scan(); {
		var doc struct {
			Schema string `json:"schema"`
		}
		if err := json.Unmarshal(lines.Bytes(), &doc); err != nil {
			t.Fatalf("%v: %s", err, lines.Text())
		}
		schemas = append(schemas, doc.Schema)
	}
	if len(schemas) != 2 || schemas[0] != "zdt.update/1" || schemas[1] != "zdt.upgrade/1" {
		t.Errorf("documents %v", schemas)
	}
	if got := out.String(); got == "" || got[0] == '{' {
		t.Errorf("stdout %q", got)
	}
}

func TestEventsFDRefused(t *testing.T) {
	f, _, _ := testFactory(t, false)
	null, err := os.Open("/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	for _, s := range []string{"x", "-1", "0", "987654", strconv.Itoa(int(null.Fd()))} {
		if err := (eventsFlag{f}).Set(s); err == nil {
			t.Errorf("%s was taken", s)
		}
	}
}
