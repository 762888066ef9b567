package release

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// upgradeOnce does what an upgrade does to the store, from an old release to the
// one in src.
func upgradeOnce(ctx context.Context, s *Store, src string) error {
	from, err := s.Current()
	if err != nil && !errors.Is(err, ErrNoCurrent) {
		return err
	}
	id, err := NewTxID()
	if err != nil {
		return err
	}
	txn := Txn{TxID: id, Kind: KindUpgrade, From: from.ID, Phase: PhaseStage}
	if err := s.WriteTxn(txn); err != nil {
		return err
	}
	to, err := s.Stage(ctx, src, StageOptions{})
	if err != nil {
		return err
	}
	txn.To, txn.Phase = to.ID, PhaseCommit
	if err := s.WriteTxn(txn); err != nil {
		return err
	}
	if err := s.Flip(to); err != nil {
		return err
	}
	if err := s.AppendHistory(Entry{TxID: id, Kind: KindUpgrade, From: from.ID, To: to.ID, Committed: true}); err != nil {
		return err
	}
	return s.ClearTxn()
}

// sourceKinds are the forms that a source can have.
func sourceKinds() []string { return []string{"file", "directory", "archive"} }

// sourceOf writes a source whose program has the content.
func sourceOf(t *testing.T, kind, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "source")
	switch kind {
	case "directory":
		do(t, os.CopyFS(path, os.DirFS(filepath.Dir(writeSource(t, "data")))))
		do(t, os.Mkdir(filepath.Join(path, "bin"), 0o755))
		writeFile(t, filepath.Join(path, "bin", testProgram), content, 0o755)
	case "archive": // in a directory that is stripped
		do(t, os.WriteFile(path, gz(t, makeTar(t, file("v/bin/web", content), data("v/data", "data"))), 0o644))
		do(t, os.WriteFile(path+".program", []byte(content), 0o644))
	default:
		writeFile(t, path, content, 0o644)
	}
	return path
}

// worthwhile tells whether a step differs by the kind of source.
func worthwhile(kind, label string) bool {
	return kind == "file" || strings.HasPrefix(label, "stage: ") && !strings.Contains(label, recordFile)
}

// programIn returns the program in a source.
func programIn(src string) []byte {
	for _, path := range []string{filepath.Join(src, "bin", testProgram), src + ".program", src} {
		if data, err := os.ReadFile(path); err == nil {
			return data
		}
	}
	return nil
}

// storeWithV1 returns a store whose current release has the content "v1", and
// the path of a source with other content.
func storeWithV1(t *testing.T, kind, content string) (*Store, Release, string) {
	t.Helper()
	s := newStore(t)
	if err := upgradeOnce(t.Context(), s, writeSource(t, "v1")); err != nil {
		t.Fatal(err)
	}
	v1, err := s.Current()
	if err != nil {
		t.Fatal(err)
	}
	return s, v1, sourceOf(t, kind, content)
}

// trace returns the labels of the steps of an upgrade, in their order.
func trace(t *testing.T, kind string) []string {
	t.Helper()
	s, _, src := storeWithV1(t, kind, "v2")
	var labels []string
	s.step = func(label string, f func() error) error {
		labels = append(labels, label)
		return f()
	}
	if err := upgradeOnce(t.Context(), s, src); err != nil {
		t.Fatal(err)
	}
	return labels
}

// Killing a process proves nothing about a power cut; the order of the steps does.
func TestStepsInOrder(t *testing.T) {
	t.Parallel()
	labels := trace(t, "file")
	tree := trace(t, "archive")
	for _, order := range [][]string{
		{"stage: copy", "stage: source unchanged", "stage: chmod", "stage: fsync file", "stage: close file", "stage: re-hash",
			"stage: release.json: write", "stage: release.json: fsync", "stage: release.json: rename", "stage: release.json: fsync directory",
			"stage: rename", "stage: fsync releases", "flip: symlink"},
		{"stage: hash archive", "stage: copy", "stage: source unchanged", "stage: strip directory", "stage: fsync tree", "stage: re-hash",
			"stage: release.manifest: fsync", "stage: release.manifest: rename", "stage: release.json: fsync", "stage: release.json: rename",
			"stage: release.json: fsync directory", "stage: rename", "stage: fsync releases", "flip: symlink"},
		{"txn: write", "txn: fsync", "txn: rename", "txn: fsync directory", "stage: open source"},
		{"flip: symlink", "flip: rename", "flip: fsync directory", "history: write", "history: fsync", "txn: remove"},
	} {
		at, labels := 0, labels
		if order[0] == "stage: hash archive" {
			labels = tree
		}
		for _, l := range order {
			i := slices.Index(labels[at:], l)
			if i < 0 {
				t.Errorf("no %q behind %q in\n%s", l, labels[:at], strings.Join(labels, "\n"))
				break
			}
			at += i + 1
		}
	}
}

var errInjected = errors.New("injected")

// Each step fails once: the caller hears of it, the service's state is the one
// before or the one after, and the next attempt works.
func TestEachStepFails(t *testing.T) {
	t.Parallel()
	for _, kind := range sourceKinds() {
		t.Run(kind, func(t *testing.T) { t.Parallel(); eachStepFails(t, kind) })
	}
}

func eachStepFails(t *testing.T, kind string) {
	labels := trace(t, kind)
	for i, label := range labels {
		if !worthwhile(kind, label) {
			continue
		}
		for _, late := range []bool{false, true} {
			// A step that acquires something cannot fail when it has it.
			if late && (strings.HasSuffix(label, ": lock") || strings.Contains(label, "open") ||
				strings.Contains(label, "create") || strings.Contains(label, "make") || strings.Contains(label, "symlink")) {
				continue
			}
			t.Run(fmt.Sprintf("%02d %s late=%t", i, label, late), func(t *testing.T) {
				s, v1, src := storeWithV1(t, kind, "v2")
				n := 0
				s.step = func(l string, f func() error) error {
					n++
					if n-1 != i {
						return f()
					}
					if l != label {
						t.Errorf("step %d is %q, want %q", i, l, label)
					}
					if late {
						if err := f(); err != nil {
							return err
						}
					}
					return errInjected
				}
				before, err := s.List()
				if err != nil {
					t.Fatal(err)
				}
				err = upgradeOnce(t.Context(), s, src)
				if !errors.Is(err, errInjected) {
					t.Errorf("error = %v", err)
				}
				s.step = func(_ string, f func() error) error { return f() }
				if strings.HasPrefix(label, "stage: ") {
					if after, err := s.List(); err != nil || len(after) != len(before) {
						t.Errorf("%d releases, were %d, error %v", len(after), len(before), err)
					}
				}
				checkTidy(t, s)
				checkRecoverable(t, s, v1, src)
			})
		}
	}
}

// checkRecoverable asserts what an upgrade that ended anywhere may leave.
func checkRecoverable(t *testing.T, s *Store, v1 Release, src string) {
	t.Helper()
	checkSound(t, s)
	txn, txnErr := s.ReadTxn()
	if txnErr != nil && !errors.Is(txnErr, ErrNoTxn) {
		t.Errorf("txn: %v", txnErr)
	}
	cur, err := s.Current()
	if err != nil {
		t.Fatalf("current: %v", err)
	}
	if cur.ID != v1.ID {
		// Flipped: then the decision is on record, open or finished.
		h, err := s.History()
		if err != nil {
			t.Fatal(err)
		}
		recorded := len(h.Entries) > 1 && h.Entries[len(h.Entries)-1].To == cur.ID
		decided := txnErr == nil && txn.To == cur.ID && !txn.Phase.Before(PhaseCommit)
		if !recorded && !decided {
			t.Errorf("current is %s, and no record says so (txn %+v, %v)", cur.ID, txn, txnErr)
		}
	}
	if h, err := s.History(); err != nil || len(h.Damage) > 0 {
		t.Errorf("history: %+v, %v", h.Damage, err)
	}
	if err := upgradeOnce(context.Background(), s, src); err != nil {
		t.Fatalf("the next upgrade: %v", err)
	}
	want := programIn(src)
	cur, err = s.Current()
	if err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(cur.Path); err != nil || !bytes.Equal(got, want) {
		t.Errorf("the next upgrade made %s current, error %v", cur.ID, err)
	}
	if _, err := s.ReadTxn(); !errors.Is(err, ErrNoTxn) {
		t.Errorf("txn after the next upgrade: %v", err)
	}
	checkTidy(t, s)
}

// crashChild upgrades the store in args[0] to args[1], or prunes it for "-prune". With a third and fourth
// argument it kills itself before or after that step; without, it tells each
// step on stdout.
func crashChild(args []string) {
	s, err := Open(args[0], Options{Program: testProgram})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	at, late := -1, false
	if len(args) > 2 {
		at, _ = strconv.Atoi(args[2])
		late = args[3] == "late"
	}
	die := func() {
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {}
	}
	n := 0
	s.step = func(label string, f func() error) error {
		if at < 0 {
			fmt.Println(label)
		}
		here := n == at
		n++
		if here && !late {
			die()
		}
		err := f()
		if here && late {
			die()
		}
		return err
	}
	if args[1] == "-prune" {
		_, err = s.Prune(context.Background(), PruneOptions{})
	} else {
		err = upgradeOnce(context.Background(), s, args[1])
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	os.Exit(0)
}

func crashCommand(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), self, args...)
	cmd.Env = append(os.Environ(), roleEnv+"=crash")
	cmd.Stderr = os.Stderr
	return cmd
}

func killed(err error) bool {
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		return false
	}
	ws, ok := exit.Sys().(syscall.WaitStatus)
	return ok && ws.Signaled() && ws.Signal() == syscall.SIGKILL
}

// kill -9 in front of and behind every step.
func TestKilledAtEachStep(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("starts two processes for every step")
	}
	for _, kind := range sourceKinds() {
		t.Run(kind, func(t *testing.T) { t.Parallel(); killedAtEachStep(t, kind) })
	}
}

func killedAtEachStep(t *testing.T, kind string) {
	for i, label := range trace(t, kind) {
		if !worthwhile(kind, label) {
			continue
		}
		for _, when := range []string{"early", "late"} {
			t.Run(fmt.Sprintf("%02d %s %s", i, label, when), func(t *testing.T) {
				s, v1, src := storeWithV1(t, kind, "v2")
				err := crashCommand(t, s.dir, src, strconv.Itoa(i), when).Run()
				if !killed(err) {
					t.Fatalf("child: %v, want killed", err)
				}
				checkRecoverable(t, s, v1, src)
			})
		}
	}
}

// kill -9 at any instruction: while the child does what follows the k-th step.
func TestKilledAnywhere(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("starts many processes")
	}
	steps := len(trace(t, "file"))
	for i := range 30 {
		t.Run(strconv.Itoa(i), func(t *testing.T) {
			s, v1, src := storeWithV1(t, sourceKinds()[i%3], bigContent('b', 8<<20))
			cmd := crashCommand(t, s.dir, src)
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			lines := bufio.NewScanner(out)
			for range rand.IntN(steps) {
				lines.Scan()
			}
			// Not waiting for a condition: the point is to hit any moment.
			for range rand.IntN(2000) {
				_ = time.Now()
			}
			_ = cmd.Process.Kill()
			_ = cmd.Wait() // the child may have been faster
			checkRecoverable(t, s, v1, src)
		})
	}
}

func TestEmptyStore(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if _, err := Open(filepath.Join(dir, "none"), Options{}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("open: %v", err)
	}
	s, err := Open(dir, Options{}) // a directory without releases is an empty store
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if list, err := s.List(); err != nil || len(list) != 0 {
		t.Errorf("list: %v, %v", list, err)
	}
	if _, err := s.Current(); !errors.Is(err, ErrNoCurrent) {
		t.Errorf("current: %v", err)
	}
	if _, err := s.Get("20261122T124005Z-0123456789ab"); !errors.Is(err, ErrNoRelease) {
		t.Errorf("get: %v", err)
	}
	if _, err := s.Stage(t.Context(), writeSource(t, "x"), StageOptions{}); err == nil {
		t.Error("staged without the program's name")
	}
	for _, name := range []string{"release.json", "a/b", "..", "."} {
		if _, err := Open(dir, Options{Program: name}); err == nil {
			t.Errorf("program %q accepted", name)
		}
	}
}
