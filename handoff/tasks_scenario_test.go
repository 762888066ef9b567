package handoff

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/zdt-dev/zdt/handoff/control"
)

// panicFile is where a test writes when a task of the role "tasks" panics.
func panicFile() string { return filepath.Join(os.Getenv(envRole), "panic") }

// tasksMain is a service with a worker that comes back when its generation does.
func tasksMain() error {
	cfg, err := readConfig()
	if err != nil {
		return err
	}
	h, err := Open(cfg.options())
	if err != nil {
		return err
	}
	defer h.Close()
	var works atomic.Int32
	work := func(ctx context.Context) {
		n := works.Add(1)
		diary("work %d", n)
		switch readFile(panicFile()) {
		case "ready":
			for h.gate.Pass(nil) != nil {
			}
			panic("the first piece of work was one too many")
		case "drain":
			<-ctx.Done()
			panic(slowPanic{})
		}
		<-ctx.Done()
		diary("end of work %d", n)
	}
	h.Go(work)
	h.OnResume(work)
	ln, err := h.Listen("http", "tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	return h.Serve(&http.Server{Handler: serviceMux(h, new(atomic.Int64))}, ln)
}

// slowPanic takes its time before the runtime can print it, which is when the
// deferred functions have run and the process lives still.
type slowPanic struct{}

func (slowPanic) Error() string {
	time.Sleep(300 * time.Millisecond)
	return "the last piece of work was one too many"
}

func (s *stage) awaitDiary(pid int, line string) {
	s.t.Helper()
	eventually(s.t, fmt.Sprintf("the diary has %q of %d", line, pid), func() bool {
		return slices.Contains(strings.Split(s.readDiary(), "\n"), fmt.Sprintf("%d %s", pid, line))
	})
}

// A generation that takes the service back works again, and the work ends with
// the next handoff.
func TestTasksOfAGenerationThatComesBack(t *testing.T) {
	t.Parallel()
	s := stand(t, serviceConfig{DrainTimeout: patience})
	s.flip("tasks")
	s.signal(s.mustStatus().PID, syscall.SIGUSR2)
	st := s.awaitGeneration(2)
	s.awaitDiary(st.PID, "work 1")
	for n := 1; n <= 2; n++ { // it may happen to it again
		slow := make(chan string, 1)
		go func() { slow <- s.getQuietly("/slow?for=1s") }()
		s.await("busy", func(st control.Status) bool { return st.Connections.Active == 1 })
		_, third := s.handOver()
		s.awaitDiary(st.PID, fmt.Sprintf("end of work %d", n))
		s.signal(third.PID, syscall.SIGKILL)
		s.await("taken over", func(now control.Status) bool { return now.PID == st.PID && now.Phase == control.Idle })
		s.awaitDiary(st.PID, fmt.Sprintf("work %d", n+1))
		if got := <-slow; got != "2 done" {
			t.Errorf("slow request: %q", got)
		}
	}
	if got := s.mustStatus().Connections.Tasks; got != 1 {
		t.Errorf("%d tasks", got)
	}
	s.nextWorks()
	s.awaitDiary(st.PID, "end of work 3")
}

// A candidate whose task panics is one that crashes.
func TestTaskOfACandidatePanics(t *testing.T) {
	t.Parallel()
	s := stand(t, serviceConfig{})
	st := s.mustStatus()
	if err := os.WriteFile(filepath.Join(s.dir, "panic"), []byte("ready"), 0o644); err != nil {
		t.Fatal(err)
	}
	s.armAndSignal(st.PID, control.Arm{TxID: "t1", Exe: "tasks", Hold: true, HoldFor: patience})
	failed := s.awaitFailure("crashed")
	if failed.Last.Exit == nil || failed.Last.Exit.Status != "2" {
		t.Errorf("exit %+v, want that of a panic", failed.Last.Exit)
	}
	if text := readFile(s.stderr.Name()); !strings.Contains(text, "the first piece of work") || !strings.Contains(text, "tasksMain") {
		t.Error("the panic's message or its stack are not to be seen")
	}
	s.nextWorks()
}

// A panic in the last moment is not overtaken by the clean end of the process.
func TestTaskPanicsInTheDrain(t *testing.T) {
	t.Parallel()
	s := stand(t, serviceConfig{DrainTimeout: patience})
	if err := os.WriteFile(filepath.Join(s.dir, "panic"), []byte("drain"), 0o644); err != nil {
		t.Fatal(err)
	}
	s.flip("tasks")
	s.signal(s.mustStatus().PID, syscall.SIGUSR2)
	st := s.awaitGeneration(2)
	s.awaitDiary(st.PID, "work 1")
	s.signal(st.PID, syscall.SIGTERM)
	s.awaitExit(st.PID, "exited 2")
}
