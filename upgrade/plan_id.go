package upgrade

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/zdt-dev/zdt/release"
)

// World is what a plan depends on besides what a transaction looks at itself.
type World struct {
	// Invocation is systemd's ID of this run of the service.
	Invocation string
	// Files are the unit files, their drop-ins, the files of EnvironmentFile=, and the hooks, as they are on the disk.
	Files []WorldFile
	// Systemd is what systemd has read of them, and goes by.
	Systemd string
	// Policy is [X-Zdt].
	Policy string
	// StopTimeout is TimeoutStopSec= of the unit; 0: not known, or none.
	StopTimeout time.Duration
}

// WorldFile is a file with what tells its content from any other.
type WorldFile struct{ Path, Sum string }

// PlanID stands for everything that a plan depends on, in parts, so that it can be said which of them has changed:
//
//	p2.<all>.<a part for each of facts>.<path and content of each file>
type PlanID struct {
	all   string
	parts string
	files string
	paths []string // of files; empty when it was parsed
}

const (
	planVersion = "p2"
	allLen      = 10 // 60 bits: it decides
	partLen     = 3  // 18 bits: it explains
	pathLen     = 2
)

// facts are the parts of a plan, in their order, and what is said when one has changed.
var facts = [...]struct{ name, moved string }{
	{"current", "another release is the current one"},
	{"running", "another release serves"},
	{"target", "the program to upgrade to is another one"},
	{"invocation", "the service was started anew"},
	{"process", "another process serves"},
	{"systemd", "systemd has read the unit's files again, or has yet to"},
	{"policy", "the policy in [X-Zdt] of the unit changed"},
	{"options", "the flags are others"},
	{"rehearsal", "whether there is a rehearsal first is not as it was"},
	{"hold", "the service is held now, or is not any more"},
	{"txn", "another upgrade was begun or has ended"},
}

// implied are the facts that are not told when another one is: they follow from it.
var implied = map[string]string{"process": "invocation", "running": "current", "options": "policy"}

const reasonMoved = "moved" // the world is not the plan's any more

// makePlanID makes the ID of values, one for each of facts.
func makePlanID(values map[string]string, files []WorldFile) PlanID {
	var id PlanID
	var all strings.Builder
	for _, f := range facts {
		fmt.Fprintf(&all, "%s %d %s\n", f.name, len(values[f.name]), values[f.name])
		id.parts += short(f.name+"\x00"+values[f.name], partLen)
	}
	files = slices.SortedFunc(slices.Values(files), func(a, b WorldFile) int { return strings.Compare(a.Path, b.Path) })
	for _, f := range files {
		fmt.Fprintf(&all, "file %q %q\n", f.Path, f.Sum)
		id.files += short(f.Path, pathLen) + short(f.Path+"\x00"+f.Sum, partLen)
		id.paths = append(id.paths, f.Path)
	}
	id.all = short(all.String(), allLen)
	return id
}

func short(text string, n int) string {
	sum := sha256.Sum256([]byte(text))
	return base64.RawURLEncoding.EncodeToString(sum[:])[:n]
}

func (id PlanID) String() string {
	return strings.Join([]string{planVersion, id.all, id.parts, id.files}, ".")
}

// ParsePlanID reads what String wrote.
func ParsePlanID(s string) (PlanID, error) {
	words := strings.Split(s, ".")
	if len(words) != 4 || words[0] != planVersion || len(words[1]) != allLen || len(words[2]) != partLen*len(facts) || len(words[3])%(pathLen+partLen) != 0 {
		return PlanID{}, fmt.Errorf("%.80q is no plan-id", s)
	}
	return PlanID{all: words[1], parts: words[2], files: words[3]}, nil
}

// Moved says what is different in now, which has the paths of its files; nothing if all is as it was.
func (id PlanID) Moved(now PlanID) (moved []string) {
	if id.all == now.all {
		return nil
	}
	var names []string
	for i, f := range facts {
		if id.part(i) != now.part(i) {
			names = append(names, f.name)
		}
	}
	for _, f := range facts {
		if slices.Contains(names, f.name) && !slices.Contains(names, implied[f.name]) {
			moved = append(moved, f.moved)
		}
	}
	was := id.fileSums()
	for i, path := range now.paths {
		file := now.files[i*(pathLen+partLen):][:pathLen+partLen]
		sum, there := was[file[:pathLen]]
		delete(was, file[:pathLen])
		switch {
		case !there:
			moved = append(moved, path+" is new")
		case sum != file[pathLen:]:
			moved = append(moved, path+" changed")
		}
	}
	if len(was) > 0 {
		moved = append(moved, "a file that it depends on is gone")
	}
	if len(moved) == 0 {
		moved = []string{"something that it depends on changed"}
	}
	return moved
}

func (id PlanID) part(i int) string { return id.parts[i*partLen:][:partLen] }

func (id PlanID) fileSums() map[string]string {
	sums := map[string]string{}
	for i := 0; i < len(id.files); i += pathLen + partLen {
		sums[id.files[i:][:pathLen]] = id.files[i+pathLen:][:partLen]
	}
	return sums
}

// identify is the ID of what was found.
func (l *looked) identify() (PlanID, error) {
	r := l.r
	if r.Sight == nil || r.Sight.World == nil {
		return PlanID{}, errNoSight
	}
	ctx, cancel := context.WithTimeout(r.ctx, worldPatience)
	defer cancel()
	w, err := r.Sight.World(ctx)
	if err != nil {
		return PlanID{}, err
	}
	l.stopTimeout = w.StopTimeout
	o := r.Options
	values := map[string]string{
		"current":    r.current.ID,
		"running":    r.running,
		"target":     l.target,
		"invocation": w.Invocation,
		"process":    procWords(r.unit.MainPID) + procWords(r.report.Incumbent),
		"systemd":    w.Systemd,
		"policy":     w.Policy,
		"options":    fmt.Sprint(o.Kind, o.Release, o.Stage.SHA256, o.Stage.Exec, o.Stage.Signature, r.Sight.Gates, o.Strategy, o.Bake, o.ReadyTimeout, o.DrainTimeout, o.OnFailure, o.Freeze, o.Binary != ""),
		"rehearsal":  r.wantedRehearsal(),
		"txn":        l.txn.TxID + string(l.txn.Phase) + fmt.Sprint(l.txn.Frozen, l.txn.Undo),
	}
	if l.hold != nil {
		text, _ := json.Marshal(l.hold) // which is made of strings and numbers
		values["hold"] = string(text)
	}
	return makePlanID(values, w.Files), nil
}

// procWords names a process for as long as the host runs.
func procWords(pid int) string {
	if pid == 0 {
		return "none "
	}
	p, err := release.ProcOf(pid)
	if err != nil {
		return fmt.Sprintf("%d gone ", pid)
	}
	return fmt.Sprintf("%d %d ", p.PID, p.Start)
}

// treeTarget tells one state of a directory from another without reading its files: by their names, sizes and times.
func treeTarget(dir string) (string, error) {
	const most = 100_000
	h, n := sha256.New(), 0
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if n++; n > most {
			return errors.New("it has too many files")
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		fmt.Fprintf(h, "%q %s %d %d\n", path, info.Mode(), info.Size(), info.ModTime().UnixNano())
		return nil
	})
	if err != nil {
		return "", fmt.Errorf("look at %s: %w", dir, err)
	}
	return fmt.Sprintf("tree %x", h.Sum(nil)), nil
}
