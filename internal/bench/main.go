// Command bench measures what an upgrade costs, inside a guest with a systemd of its own, and says beside each number
// what it was promised to be. "make bench" builds and runs it; docs/performance.md keeps a run.
//
// What is compared is measured in turns, A B B A, so that a busy moment of the machine meets both sides. Numbers are
// medians.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/zdt-dev/zdt/internal/guest"
)

// dir is where the programs lie inside the guest.
const dir = "/srv/bench"

func main() { os.Exit(run(os.Args[1:])) }

func run(args []string) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	image := flags.String("image", string(guest.Trixie), "suite of the guest: bookworm or trixie")
	n := flags.Int("n", 40, "how often each thing is measured")
	inside := flags.Bool("inside", false, "measure; set by bench itself when it runs inside the guest")
	only := flags.String("only", "", "sections to measure, separated by commas: "+strings.Join(sectionNames(), ", "))
	serve := flags.String("serve", "", "be one of the processes that are measured; set by bench itself")
	if err := flags.Parse(args); err != nil {
		return 64
	}
	var err error
	switch {
	case *serve != "":
		err = serveRole(*serve)
	case *inside:
		err = measure(ctx, os.Stdout, *n, *only)
	default:
		err = runInGuest(ctx, os.Stdout, guest.Image(*image), *n, *only)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		return 1
	}
	return 0
}

// runInGuest builds the programs, boots a guest, and runs the measurements in it.
func runInGuest(ctx context.Context, out io.Writer, image guest.Image, n int, only string) error {
	if os.Geteuid() != 0 {
		return errors.New("booting a guest needs root")
	}
	built, err := os.MkdirTemp("", "zdt-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(built)
	if err := build(ctx, built); err != nil {
		return err
	}
	if image == guest.Trixie && wanted(only, "helper") {
		image = guest.TrixiePrograms // the same, and the programs that zdt run is measured with
	}
	g, err := guest.Start(ctx, guest.Config{Image: image, Store: guest.Store{Logf: func(format string, args ...any) {
		fmt.Fprintf(os.Stderr, format+"\n", args...)
	}}})
	if err != nil {
		return err
	}
	defer g.Close()
	for _, name := range []string{"bench", "hello"} {
		if err := g.Copy(filepath.Join(built, name), filepath.Join(dir, name), 0o755); err != nil {
			return err
		}
	}
	if err := g.Copy(filepath.Join(built, "zdt"), "/usr/local/bin/zdt", 0o755); err != nil {
		return err
	}
	r, err := g.Exec(ctx, guest.Command{Args: []string{filepath.Join(dir, "bench"), "-inside", "-n", strconv.Itoa(n), "-only", only}, Output: out})
	if err == nil && r.Code != 0 {
		err = fmt.Errorf("the measurements ended with exit status %d", r.Code)
	}
	if err != nil && ctx.Err() == nil {
		fmt.Fprint(os.Stderr, g.Journal(context.WithoutCancel(ctx), "-n", "40"))
	}
	return err
}

// build makes static programs: the guest's C library is not the host's.
func build(ctx context.Context, to string) error {
	for name, pkg := range map[string]string{"bench": "./internal/bench", "hello": "./examples/hello", "zdt": "."} {
		cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-buildvcs=false", "-ldflags", "-s -w", "-o", filepath.Join(to, name), pkg)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("build %s: %w\n%s", pkg, err, out)
		}
	}
	return nil
}

// sections are what is measured, in this order.
func sections() []section {
	return []section{{"startup", startups}, {"throughput", throughput}, {"moves", moves}, {"staging", staging}, {"upgrades", upgrades}, {"transaction", transaction}, {"helper", besideStarter}, {"programs", programs}}
}

type section struct {
	name    string
	measure func(ctx context.Context, t *table, n int) error
}

func sectionNames() (names []string) {
	for _, s := range sections() {
		names = append(names, s.name)
	}
	return names
}

func wanted(only, section string) bool {
	return only == "" || slices.Contains(strings.Split(only, ","), section)
}

// measure runs inside the guest.
func measure(ctx context.Context, out io.Writer, n int, only string) error {
	describeMachine(ctx, out)
	for _, s := range sections() {
		if !wanted(only, s.name) {
			continue
		}
		var t table
		if err := s.measure(ctx, &t, n); err != nil {
			return err
		}
		t.print(out)
	}
	describeLoad(out, "afterwards")
	return nil
}
