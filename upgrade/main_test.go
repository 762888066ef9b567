package upgrade

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/zdt-dev/zdt/handoff"
)

// envRole makes the test binary play a part: "service" or "zdt". What a
// service does says the end of its file (see program), so that a candidate
// differs from its incumbent in the release alone, as it does in life.
const envRole = "ZDT_UPGRADE_TEST"

func TestMain(m *testing.M) {
	var err error
	switch os.Getenv(envRole) {
	case "service":
		err = serviceMain()
	case "helper":
		err = helperMain()
	case "program":
		err = programMain()
	case "zdt":
		err = zdtMain()
	default:
		// Candidates become children of this process when their predecessor
		// has ended, as they become systemd's.
		if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
			fmt.Fprintln(os.Stderr, "become subreaper:", err)
			os.Exit(1)
		}
		os.Exit(m.Run())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// trailer is the last block of a program's file: how it behaves, and which
// version it is.
const trailerSize = 64

func trailer(role, version string) []byte {
	return fmt.Appendf(nil, "%-*s", trailerSize, "\nzdt-test "+role+" "+version)
}

func readTrailer(path string) (role, version string, err error) {
	f, err := os.Open(path)
	if err != nil {
		return "", "", err
	}
	defer f.Close()
	if _, err := f.Seek(-trailerSize, io.SeekEnd); err != nil {
		return "", "", err
	}
	data, err := io.ReadAll(f)
	if err != nil {
		return "", "", err
	}
	fields := strings.Fields(string(data))
	if len(fields) != 3 || fields[0] != "zdt-test" {
		return "", "", fmt.Errorf("%s has no trailer", path)
	}
	return fields[1], fields[2], nil
}

// serviceMain is a service with the handoff library, and what can become of one.
func serviceMain() error {
	role, version, err := readTrailer("/proc/self/exe")
	if err != nil {
		return err
	}
	switch role {
	case "crash":
		return fmt.Errorf("read configuration: %w", os.ErrNotExist)
	case "exit0":
		return nil
	case "hang":
		time.Sleep(time.Hour) // not select {}: without cgo the runtime sees a deadlock in that
	}
	h, err := handoff.Open(handoff.Options{})
	if err != nil {
		return err
	}
	ln, err := h.Listen("http", "tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	if role == "crash-after-ready" {
		if err := h.Ready(); err != nil {
			return err
		}
		return fmt.Errorf("the first request was one too many")
	}
	return h.Serve(&http.Server{Handler: handler(version)}, ln)
}

// handler answers for a version of the service.
func handler(version string) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /version", func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, version) })
	mux.HandleFunc("GET /block", func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(http.StatusOK)
		w.(http.Flusher).Flush()
		<-r.Context().Done() // until the client goes away
	})
	return mux
}

// until waits for cond. Tests wait for what they need, never for time.
func until(t *testing.T, what string, cond func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	for !cond() {
		if ctx.Err() != nil {
			t.Fatalf("waited in vain: %s", what)
		}
		pause(ctx, 2*time.Millisecond)
	}
}
