package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"
)

// The test binary plays the server processes.
func TestMain(m *testing.M) {
	if len(os.Args) == 3 && os.Args[1] == "-serve" {
		if err := serveRole(os.Args[2]); err != nil {
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

func TestQuantile(t *testing.T) {
	for _, test := range []struct {
		values []float64
		q      float64
		want   float64
	}{
		{nil, 0.5, 0},
		{[]float64{7}, 0.9, 7},
		{[]float64{3, 1, 2}, 0.5, 2},
		{[]float64{4, 1, 3, 2}, 0.5, 2.5},
		{[]float64{0, 10}, 0.9, 9},
		{[]float64{0, 10}, 1, 10},
	} {
		if got := quantile(test.values, test.q); got != test.want {
			t.Errorf("quantile(%v, %v) = %v, want %v", test.values, test.q, got, test.want)
		}
	}
}

// The measurements themselves, once, so that they do not rot; what they find is not judged here.
func TestMeasureStartups(t *testing.T) {
	hello := filepath.Join(t.TempDir(), "hello")
	if out, err := exec.Command("go", "build", "-buildvcs=false", "-o", hello, "../../examples/hello").CombinedOutput(); err != nil {
		t.Fatalf("build hello: %v\n%s", err, out)
	}
	r, err := measureStartups(t.Context(), hello, 1)
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range [][]time.Duration{r.plain.ready, r.plain.answer, r.handoff.ready, r.handoff.answer} {
		if len(d) != 1 || d[0] <= 0 || d[0] > 10*time.Second {
			t.Fatalf("measured %+v", r)
		}
	}
}

func TestMeasureThroughput(t *testing.T) {
	c, err := measureThroughput(t.Context(), 1, startRole(roleBare), startRole(roleLibrary))
	if err != nil {
		t.Fatal(err)
	}
	if len(c.rates) != 1 || c.rates[0] <= 0 || c.cpus[0] <= 0 {
		t.Errorf("measured %+v", c)
	}
}

func TestMeasureMoves(t *testing.T) {
	const conns = 300 // more than a batch
	s, err := measureSpeed(t.Context(), 1, conns)
	if err != nil {
		t.Fatal(err)
	}
	if len(s.ratios) != 2 || s.ratios[0] <= 0 || len(s.verified) != 1 || s.verified[0] <= 0 {
		t.Errorf("measured %+v", s)
	}
	pauses, err := measurePauses(t.Context(), 1, conns)
	if err != nil {
		t.Fatal(err)
	}
	if len(pauses) != conns || slices.Min(pauses) <= 0 {
		t.Errorf("measured %v", pauses)
	}
	w, err := measureWaits(t.Context(), 1, conns)
	if err != nil {
		t.Fatal(err)
	}
	if len(w.before) == 0 || slices.Min(w.before) <= 0 {
		t.Errorf("measured %+v", w)
	}
	m, err := measureMemory(t.Context(), conns)
	if err != nil {
		t.Fatal(err)
	}
	if m.bare <= 0 || m.library <= 0 || m.moved <= 0 || m.used <= 0 {
		t.Errorf("measured %+v", m)
	}
}

func TestHelperBesideAnother(t *testing.T) {
	zdt := filepath.Join(t.TempDir(), "zdt")
	if out, err := exec.Command("go", "build", "-buildvcs=false", "-o", zdt, "../..").CombinedOutput(); err != nil {
		t.Fatalf("build zdt: %v\n%s", err, out)
	}
	all := []supervisor{zdtRun(zdt)}
	if path, err := exec.LookPath("start_server"); err == nil {
		all = append(all, startServer(path))
	}
	app, err := netHTTP()
	if err != nil {
		t.Fatal(err)
	}
	r, err := superviseByTurns(t.Context(), all, app, 1)
	if err != nil {
		t.Fatal(err)
	}
	for i, s := range all {
		if len(r[i].took) != 2 || r[i].requests == 0 || r[i].refused != 0 || r[i].rss <= 0 || r[i].pss <= 0 {
			t.Errorf("%s: measured %+v", s.name, r[i])
		}
	}
	c, err := measureThroughput(t.Context(), 1, startAlone, startSupervised(zdt))
	if err != nil {
		t.Fatal(err)
	}
	if len(c.rates) != 1 || c.rates[0] <= 0 || c.cpus[0] <= 0 {
		t.Errorf("measured %+v", c)
	}
}
