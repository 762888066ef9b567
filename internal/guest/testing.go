package guest

import (
	"context"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"
)

// The longest journal a failed test prints, in lines.
const reportLines = 200

// Require skips the test, or ends it as failed with ZDT_SYSTEST=require, where guests cannot boot. Tests that call Boot
// or Each need not call it.
func Require(t testing.TB) {
	t.Helper()
	mode := os.Getenv("ZDT_SYSTEST")
	switch {
	case mode == "off":
		t.Skip("system test: turned off by ZDT_SYSTEST=off")
	case os.Geteuid() == 0:
	case mode == "require":
		t.Fatal("system test: ZDT_SYSTEST=require is set, but booting systemd needs root")
	default:
		t.Skip("system test: booting systemd needs root")
	}
}

// Each runs a scenario once per image as parallel subtests "systemd-252", "systemd-257", each in a guest of its own.
func Each(t *testing.T, scenario func(t *testing.T, g *Guest)) {
	t.Helper()
	Require(t)
	for _, image := range Images() {
		t.Run(image.String(), func(t *testing.T) {
			t.Parallel()
			scenario(t, Boot(t, image))
		})
	}
}

// Boot starts a guest that ends with the test. When the test fails, the guest's failed units and the end of its journal
// become part of the test's log. With ZDT_GUEST_KEEP=1 the guest stays, and the log has the command to enter it.
func Boot(t testing.TB, image Image) *Guest {
	t.Helper()
	Require(t)
	g, err := Start(t.Context(), Config{
		Image: image,
		Store: Store{Dir: DefaultDir(), Logf: stderrf},
		Keep:  os.Getenv("ZDT_GUEST_KEEP") == "1",
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(g.report())
		}
		if g.keep {
			stderrf("guest of %s is kept: %s   (ends with: kill -KILL %d)", t.Name(), g.NSEnter(), g.pid)
		}
		if err := g.Close(); err != nil {
			t.Error(err)
		}
	})
	return g
}

// stderrf speaks while the test runs; t.Log would be shown at its end only, a minute too late.
func stderrf(format string, args ...any) { fmt.Fprintf(os.Stderr, format+"\n", args...) }

// report collects what one wants to see of a guest in which a test failed.
func (g *Guest) report() string {
	// The test's own context has ended when it cleans up.
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	var b strings.Builder
	fmt.Fprintf(&b, "guest %s, pid %d", g.image, g.pid)
	select {
	case <-g.ended:
		b.WriteString(": PID 1 has ended; its journal went with it\n")
		return b.String()
	default:
	}
	status, err := g.Run(ctx, "systemctl", "status", "--state=failed", "--no-pager", "--full", "--lines=0")
	if err != nil {
		fmt.Fprintf(&b, "\nfailed units: %v", err)
	} else {
		fmt.Fprintf(&b, "\nfailed units:\n%s%s", orNone(status.Stdout), status.Stderr)
	}
	fmt.Fprintf(&b, "\njournal:\n%s\n", lastLines(g.Journal(ctx), reportLines))
	return b.String()
}

func orNone(s string) string {
	if strings.TrimSpace(s) == "" {
		return "none\n"
	}
	return s
}
