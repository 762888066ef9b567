package hooks

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

const patience = 20 * time.Second

// doc is what package upgrade tells hooks.
const doc = `{"schema":"zdt.hook/1","point":"pre-commit","service":"web","unit":"web.service","txid":"t1","kind":"upgrade",
"from":{"id":"r1","path":"/p1"},"to":{"id":"r2"},"incumbent":7,"candidate":8,"who":{"uid":0},"why":"because"}`

func found(t *testing.T, root string) Set {
	t.Helper()
	set, err := Find(root, "web")
	if err != nil {
		t.Fatal(err)
	}
	return set
}

func TestRun(t *testing.T) {
	root := t.TempDir()
	out := filepath.Join(root, ".out")
	put(t, root, "pre-commit/1", "cat >"+out+"; env | grep ^ZDT_ | sort; echo err >&2", 0o755)
	put(t, root, "pre-commit/2", "echo first; echo not now; exit 3", 0o755)
	put(t, root, "pre-commit/3", "echo never", 0o755)
	put(t, root, "rollback/1", "kill -9 $$", 0o755)
	put(t, root, "rollback/2", "echo this runs", 0o755)
	put(t, root, "rollback/3", "exit 4", 0o755)
	set := found(t, root)

	var lines, started []string
	o := Options{
		Line:    func(h Hook, text string) { lines = append(lines, h.Name()+" "+text) },
		Started: func(h Hook) { started = append(started, h.Name()) },
	}
	results, err := Run(t.Context(), set[PreCommit], json.RawMessage(doc), o)
	if want := root + `/pre-commit/2: it exited with 3: "not now"`; err == nil || err.Error() != want {
		t.Errorf("%v, want %s", err, want)
	}
	if len(results) != 2 || !results[0].OK || results[0].ExitCode != 0 || results[1].OK || results[1].ExitCode != 3 || !slices.Equal(results[1].Tail, []string{"first", "not now"}) {
		t.Errorf("%+v", results)
	}
	if !slices.Equal(started, []string{"1", "2"}) {
		t.Errorf("started %q", started)
	}
	want := []string{
		"1 ZDT_CANDIDATE_PID=8", "1 ZDT_FROM=r1", "1 ZDT_HOOK_POINT=pre-commit", "1 ZDT_INCUMBENT_PID=7", "1 ZDT_KIND=upgrade", "1 ZDT_SERVICE=web",
		"1 ZDT_TO=r2", "1 ZDT_TXID=t1", "1 ZDT_UNIT=web.service", "1 ZDT_WHY=because", "1 err", "2 first", "2 not now",
	}
	if !slices.Equal(lines, want) {
		t.Errorf("%q, want %q", lines, want)
	}
	var compact bytes.Buffer
	json.Compact(&compact, []byte(doc))
	if got, err := os.ReadFile(out); err != nil || string(got) != compact.String()+"\n" {
		t.Errorf("%s, %v", got, err)
	}

	// Where it is too late all run, and all that failed is told.
	results, err = Run(t.Context(), set[Rollback], json.RawMessage(doc), Options{})
	if want := root + "/rollback/1: it was killed by SIGKILL; " + root + "/rollback/3: it exited with 4"; err == nil || err.Error() != want || len(results) != 3 || !results[1].OK {
		t.Errorf("%v, %+v", err, results)
	}
	if results, err := Run(t.Context(), set[PostCommit], make(chan int), Options{}); err != nil || results != nil {
		t.Errorf("none: %v, %v", results, err)
	}
}

func TestRunEnds(t *testing.T) {
	root := t.TempDir()
	pidFile := filepath.Join(root, ".pid")
	put(t, root, "pre-commit/1", "sleep 300 & echo $! >"+pidFile+"; echo waiting; wait", 0o755)
	put(t, root, "pre-commit/2", "", 0o755)
	set := found(t, root)
	began := time.Now()
	results, err := Run(t.Context(), set[PreCommit], struct{}{}, Options{Timeout: 300 * time.Millisecond})
	if err == nil || !strings.Contains(err.Error(), `it took longer than 300ms (HookTimeout=) and was killed: "waiting"`) || len(results) != 1 || results[0].ExitCode != -1 || time.Since(began) > patience/2 {
		t.Errorf("%v, %+v", err, results)
	}
	pid, err := os.ReadFile(pidFile)
	if err != nil {
		t.Fatal(err)
	}
	stat := "/proc/" + strings.TrimSpace(string(pid)) + "/stat"
	for deadline := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		text, err := os.ReadFile(stat)
		if err != nil || strings.Contains(string(text), ") Z ") {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("what the hook started runs on")
		}
	}

	// The end of the upgrade is the end of the hook, and says so; none is started after it.
	ctx, cancel := context.WithCancelCause(t.Context())
	stopped := errors.New("interrupted")
	o := Options{Line: func(Hook, string) { cancel(stopped) }}
	if results, err := Run(ctx, set[PreCommit], struct{}{}, o); err == nil || !strings.Contains(err.Error(), "/1: interrupted") || len(results) != 1 {
		t.Errorf("%v, %+v", err, results)
	}
	if results, err := Run(ctx, set[PreCommit], struct{}{}, o); !errors.Is(err, stopped) || len(results) != 0 {
		t.Errorf("%v, %+v", err, results)
	}
}

// It may have been exchanged since it was found.
func TestRunChecksAgain(t *testing.T) {
	root := t.TempDir()
	path := put(t, root, "rollback/1", "", 0o755)
	set := found(t, root)
	if err := os.Chmod(path, 0o757); err != nil {
		t.Fatal(err)
	}
	if results, err := Run(t.Context(), set[Rollback], struct{}{}, Options{}); err == nil || !strings.Contains(err.Error(), "is writable for others") || len(results) != 1 {
		t.Errorf("%v, %+v", err, results)
	}
}

func TestBudget(t *testing.T) {
	set := Set{PreCommit: make([]Hook, 2), Rollback: make([]Hook, 1)}
	if got, want := (Options{}).Budget(set), 2*(DefaultTimeout+grace+slack); got != want {
		t.Errorf("%v, want %v", got, want)
	}
	if got := (Options{Timeout: time.Minute}).Budget(nil); got != 0 {
		t.Error(got)
	}
}

// What is in the environment has its place in the schema, and in the document for users.
func TestFacts(t *testing.T) {
	text, err := os.ReadFile("../../docs/schemas/zdt.hook.1.json")
	if err != nil {
		t.Fatal(err)
	}
	var schema struct {
		Properties map[string]any `json:"properties"`
	}
	if err := json.Unmarshal(text, &schema); err != nil {
		t.Fatal(err)
	}
	full, _ := json.Marshal(facts{})
	var names map[string]any
	if err := json.Unmarshal(full, &names); err != nil {
		t.Fatal(err)
	}
	for name := range names {
		if schema.Properties[name] == nil {
			t.Errorf("zdt.hook/1 has no %s", name)
		}
	}
	page, err := os.ReadFile("../../docs/hooks.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, kv := range environ(Rollback, []byte(`{"service":"a","unit":"b","txid":"c","kind":"d","from":{"id":"e"},"to":{"id":"f"},"incumbent":1,"candidate":2,"why":"g","reason":"h"}`)) {
		name, _, _ := strings.Cut(kv, "=")
		if !strings.Contains(string(page), "`"+name+"`") {
			t.Errorf("docs/hooks.md does not tell of %s", name)
		}
	}
	for _, p := range Points() {
		if !strings.Contains(string(page), "| `"+string(p)+"` |") {
			t.Errorf("docs/hooks.md does not tell of %s", p)
		}
	}
	if env := environ(PreUpgrade, []byte("{")); len(env) != 1 {
		t.Error(env)
	}
}

// The examples of docs/hooks.md do what is said there.
func TestExamples(t *testing.T) {
	page, err := os.ReadFile("../../docs/hooks.md")
	if err != nil {
		t.Fatal(err)
	}
	host := t.TempDir()
	root := filepath.Join(host, "etc/zdt/hooks.d")
	examples := regexp.MustCompile("(?s)```sh\n#!/bin/sh\n# /etc/zdt/hooks.d/(\\S+)\n(.*?)```").FindAllStringSubmatch(string(page), -1)
	if len(examples) != 2 {
		t.Fatalf("%d examples", len(examples))
	}
	for _, e := range examples {
		text := strings.NewReplacer("/run/", host+"/run/", "/var/log/", host+"/var/log/").Replace(e[2])
		put(t, root, e[1], text, 0o755)
	}
	for _, dir := range []string{"run", "var/log"} {
		if err := os.MkdirAll(filepath.Join(host, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	set := found(t, root)
	if _, err := Run(t.Context(), set[PreUpgrade], json.RawMessage(doc), Options{}); err != nil {
		t.Error(err)
	}
	put(t, host, "run/web-migration", "", 0o644)
	if _, err := Run(t.Context(), set[PreUpgrade], json.RawMessage(doc), Options{}); err == nil || !strings.Contains(err.Error(), `it exited with 1: "a migration is running since `) {
		t.Error(err)
	}
	for range 2 {
		if _, err := Run(t.Context(), set[PostCommit], json.RawMessage(doc), Options{}); err != nil {
			t.Error(err)
		}
	}
	log, err := os.ReadFile(filepath.Join(host, "var/log/zdt-upgrades.ndjson"))
	if lines := strings.Split(strings.TrimSpace(string(log)), "\n"); err != nil || len(lines) != 2 || !json.Valid([]byte(lines[1])) {
		t.Errorf("%q, %v", log, err)
	}
}

func TestLog(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "journal")
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	log := OpenLog(socket, "web", "t1")
	h := Hook{PreCommit, "/etc/zdt/hooks.d/pre-commit/50-lb"}
	log.Line(h, "")
	log.Line(h, "out of the pool\nMESSAGE=forged")
	buf := make([]byte, 10000)
	n, err := l.Read(buf)
	want := "MESSAGE=out of the pool\\x0aMESSAGE=forged\nPRIORITY=6\nSYSLOG_IDENTIFIER=zdt-hook/50-lb\nZDT_SERVICE=web\nZDT_TXID=t1\nZDT_HOOK_POINT=pre-commit\nZDT_HOOK=/etc/zdt/hooks.d/pre-commit/50-lb\n"
	if err != nil || string(buf[:n]) != want {
		t.Errorf("%q, %v; want %q", buf[:n], err, want)
	}
	// A talkative one ends with a word about it.
	var last string
	read := make(chan struct{})
	go func() {
		defer close(read)
		for !strings.Contains(last, "is not in the journal") {
			n, err := l.Read(buf)
			if err != nil {
				return
			}
			last = string(buf[:n])
		}
	}()
	for i := range 2 * linesLimit {
		log.Line(h, fmt.Sprint("line ", i))
	}
	select {
	case <-read:
	case <-time.After(patience):
		t.Error("no last word")
	}
	if lost := log.Close(); lost != 0 {
		t.Errorf("%d lost", lost)
	}

	// Nobody takes it: that costs little, and is counted.
	log = OpenLog(socket, "web", "t2")
	began := time.Now()
	for i := range linesLimit {
		log.Line(h, fmt.Sprint("line ", i))
	}
	if lost := log.Close(); lost == 0 || time.Since(began) > patience {
		t.Errorf("%d lost after %v", lost, time.Since(began))
	}
	for _, log := range []*Log{nil, {}, OpenLog("/no/such/socket", "web", "t3")} {
		log.Line(h, "x")
		if lost := log.Close(); lost != 0 {
			t.Error(lost)
		}
	}
}
