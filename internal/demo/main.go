// Command demo shows what zdt does: on a real systemd, a service under load gets a new release, and then a broken one
// that is rolled back. "make demo" builds and runs it. It exits 0 only if all of it went as promised.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"golang.org/x/term"

	"github.com/zdt-dev/zdt/internal/guest"
	"github.com/zdt-dev/zdt/internal/pty"
)

func main() { os.Exit(run(os.Args[1:])) }

func run(args []string) int {
	flags := flag.NewFlagSet("demo", flag.ContinueOnError)
	image := flags.String("image", string(guest.Trixie), "suite of the guest: bookworm or trixie")
	picture := flags.String("svg", "", "also write a picture of the two upgrades to this `FILE`")
	soaking := flags.Int("soak", 0, "instead: this `NUMBER` of upgrades in a row")
	onTerminal := flags.String("pty", "", "run the command behind the flags on a terminal of `COLUMNSxROWS`; set by demo itself inside the guest")
	if err := flags.Parse(args); err != nil {
		return 64
	}
	if *onTerminal != "" {
		return runOnTerminal(*onTerminal, flags.Args())
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	d := demo{out: os.Stdout, image: guest.Image(*image), columns: 96, soaking: *soaking}
	if width, _, err := term.GetSize(int(os.Stdout.Fd())); err == nil {
		d.terminal, d.columns = true, width
	}
	if *picture != "" {
		d.terminal, d.columns = true, 96
	}
	d.color = d.terminal && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"
	err := d.run(ctx)
	if err == nil && *picture != "" {
		err = d.writePicture(*picture)
	}
	switch {
	case ctx.Err() != nil:
		fmt.Fprintln(os.Stderr, "\ndemo: interrupted; nothing is left behind")
		return 130
	case errors.Is(err, errRoot):
		fmt.Fprintln(os.Stderr, "demo:", err)
		return 77
	case err != nil:
		fmt.Fprintln(os.Stderr, "\ndemo:", err)
		return 1
	}
	return 0
}

// runOnTerminal is what demo does inside the guest.
func runOnTerminal(size string, args []string) int {
	var columns, rows uint16
	if _, err := fmt.Sscanf(size, "%dx%d", &columns, &rows); err != nil || len(args) == 0 {
		fmt.Fprintln(os.Stderr, "demo: -pty COLUMNSxROWS COMMAND")
		return 64
	}
	status, err := pty.Run(os.Stdout, columns, rows, args)
	if err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		return 1
	}
	return status
}
