// Command image builds the root file systems that the system tests and the demo boot, so that the minute they cost is
// paid where it can be seen. Without arguments it builds all of them, else those named: trixie, programs-trixie.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"sync"
	"syscall"

	"github.com/zdt-dev/zdt/internal/guest"
)

func main() { os.Exit(run(os.Args[1:])) }

func run(suites []string) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	images := guest.All()
	if len(suites) > 0 {
		images = nil
		for _, s := range suites {
			images = append(images, guest.Image(s))
		}
	}
	if os.Geteuid() != 0 {
		fmt.Fprintln(os.Stderr, "image: building root file systems needs root")
		return 1
	}
	store := guest.Store{Dir: guest.DefaultDir(), Logf: func(format string, args ...any) {
		fmt.Fprintf(os.Stderr, format+"\n", args...)
	}}
	errs := make([]error, len(images))
	var wg sync.WaitGroup
	for i, image := range images {
		wg.Go(func() {
			var root string
			if root, errs[i] = store.Ensure(ctx, image); errs[i] == nil {
				fmt.Println(image, root)
			}
		})
	}
	wg.Wait()
	code := 0
	for _, err := range errs {
		if err != nil {
			fmt.Fprintln(os.Stderr, "image:", err)
			code = 1
		}
	}
	return code
}
