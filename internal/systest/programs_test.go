package systest

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/zdt-dev/zdt/handoff/control"
	"github.com/zdt-dev/zdt/internal/guest"
	"github.com/zdt-dev/zdt/internal/load"
)

// foreign is a program that knows nothing of zdt, set up and upgraded as its recipe says.
type foreign struct {
	recipe string // docs/recipes/NAME.md, and its files below testdata/programs
	files  []string
	// A broken release has "with" in place of "replace" in its first file.
	replace, with string
	store         bool // the release is a file of zdt's store
	lossless      bool // no request fails when it stops
	hangs         bool // now and then it does not come to its end, and is killed
	backend       bool // a proxy: needs something behind it
	bookworm      bool // it is in that image, too

	build func(s *service, n int, broken bool) map[string][]byte // in place of files
}

func foreigners() []foreign {
	return []foreign{
		{recipe: "gunicorn", lossless: true, files: []string{"app.py"}, replace: "def app(", with: "def app((", bookworm: true},
		{recipe: "uvicorn", files: []string{"shop.py"}, replace: "import uvicorn\n", with: "import uvicorn_of_another_release\n", store: true},
		{recipe: "nodejs", lossless: true, files: []string{"shop.js"}, replace: "server.listen(", with: "process.exit(1);\nserver.listen(", store: true},
		{recipe: "puma", hangs: true, files: []string{"config.ru"}, replace: "run lambda", with: "run lambda {"},
		{recipe: "nginx", files: []string{"shop.conf"}, replace: "proxy_pass", with: "proxy_pas", backend: true, bookworm: true},
		{recipe: "haproxy", lossless: true, files: []string{"shop.cfg"}, replace: "default_backend app", with: "default_backend ap", backend: true},
		{recipe: "java", lossless: true, build: (*service).buildJava, store: true},
		{recipe: "inetd", files: []string{"echo.sh"}, replace: "exec socat", with: "exec sleep infinity", store: true},
		{recipe: "server-starter", lossless: true, files: []string{"shop.pl"}, replace: "qw(server_ports)", with: "qw(server_ports", store: true},
		{recipe: "einhorn", hangs: true, files: []string{"shop.rb"}, replace: "EINHORN_FDS", with: "EINHORN_SOCKETS", store: true},
		{recipe: "go", lossless: true, build: (*service).buildHello, store: true},
	}
}

// programLoad is what every program is under.
func programLoad() load.Config {
	return load.Config{KeepAlive: 8, Fresh: 2, Think: 4 * time.Millisecond, Failures: 1000}
}

// release is the program's files by name, as the operator has them.
func (p foreign) release(s *service, n int, broken bool) map[string][]byte {
	if p.build != nil {
		return p.build(s, n, broken)
	}
	files := map[string][]byte{}
	for i, name := range p.files {
		text := strings.ReplaceAll(p.source(s.t, name), "v0000", version(n))
		if broken && i == 0 {
			if !strings.Contains(text, p.replace) {
				s.t.Fatalf("%s of %s has no %q to break", name, p.recipe, p.replace)
			}
			text = strings.Replace(text, p.replace, p.with, 1)
		}
		files[name] = []byte(text)
	}
	return files
}

func (s *service) buildHello(n int, broken bool) map[string][]byte {
	p := good(n)
	if broken {
		p = bad(n, crash)
	}
	return map[string][]byte{"hello": readFile(s.t, p.file(s.t))}
}

// newForeign sets release 1 of the program up.
func newForeign(t *testing.T, g *guest.Guest, p foreign) (*service, recipe) {
	t.Helper()
	s := &service{t: t, g: g, name: "shop", unit: "shop.service", addr: "127.0.0.1:8080"}
	s.installZdt()
	if p.backend {
		s.startBackend()
	}
	r := readRecipe(t, p.recipe)
	for _, f := range r.files {
		s.writeUnit(f.Language, f.Text)
	}
	if r := s.do(s.upload(p, 1, false), r.setUp); r.Code != 0 {
		t.Fatalf("%s", r)
	}
	return s, r
}

// Every program of the recipes, set up and upgraded as they say, without a change to it: 20 handoffs under load, and one
// to a release that does not come up, which changes nothing. Nobody is refused, and no more requests fail than when the
// program is stopped without zdt. Clients do not retry.
func TestPrograms(t *testing.T) {
	guest.Require(t)
	t.Parallel()
	for _, p := range foreigners() {
		images := []guest.Image{guest.TrixiePrograms}
		if p.bookworm {
			images = append(images, guest.BookwormPrograms)
		}
		for _, image := range images {
			t.Run(p.recipe+"/"+image.String(), func(t *testing.T) {
				t.Parallel()
				upgradeProgram(t, guest.Boot(t, image), p)
			})
		}
	}
}

// unrehearsed are commands without rehearsals, which would take longer than the handoffs that this is about, and would have the release
// that does not come up refused before there is one.
func unrehearsed(commands []string) (out []string) {
	for _, c := range commands {
		out = append(out, strings.ReplaceAll(c, "zdt upgrade ", "zdt upgrade --no-rehearse "))
	}
	return out
}

func upgradeProgram(t *testing.T, g *guest.Guest, p foreign) {
	const handoffs = 20
	s, recipe := newForeign(t, g, p)
	s.mustFindNothing()
	helper := s.mainPID()
	l := s.load(programLoad())
	s.flows(l)
	var took []time.Duration
	var failed []int // requests, in each handoff
	n, lost := 1, 0
	handOver := func(dir string, commands []string) {
		before := s.serving()
		began := time.Now()
		if r := s.do(dir, commands); r.Code != 0 {
			t.Fatalf("%s", r)
		}
		took = append(took, time.Since(began))
		s.await("the old processes are gone", func() bool {
			r := s.serving()
			return r.Predecessor == nil && r.Phase == control.Idle && r.App != before.App && r.Generation == before.Generation+1
		})
		s.until(l, "answers of "+version(n), func(r load.Report) bool { return r.Versions[version(n)] > 0 })
		s.flows(l)
		now := l.Report().Failed
		failed, lost = append(failed, now-lost), now
	}
	for i := range handoffs {
		if p.store && i%2 == 1 { // the same release once more
			handOver("/", []string{"systemctl reload " + s.unit})
			continue
		}
		n++
		handOver(s.upload(p, n, false), unrehearsed(recipe.upgrade))
	}

	before := s.serving()
	if r := s.do(s.upload(p, n+1, true), unrehearsed(recipe.upgrade)); r.Code == 0 {
		t.Errorf("a release that does not come up: %s", r)
	} else if p.store && r.Code != 11 {
		t.Errorf("want exit code 11, rolled back:\n%s", r)
	}
	if after := s.serving(); after.App != before.App || after.Generation != before.Generation {
		t.Errorf("after the failure pid %d serves as generation %d, before it pid %d as %d", after.App, after.Generation, before.App, before.Generation)
	}
	s.flows(l)
	if now := l.Report().Failed; now != lost {
		t.Errorf("%d requests failed while a release did not come up", now-lost)
	}
	n += 2
	handOver(s.upload(p, n, false), recipe.upgrade) // with a rehearsal
	report := l.Stop()

	if main := s.mainPID(); main != helper {
		t.Errorf("the main process was %d and is %d", helper, main)
	}
	if report.Versions[version(n-1)] > 0 {
		t.Error("the release that does not come up has answered")
	}
	alone, stops := s.stops(p, len(failed))
	more, chance := excess(failed, stops)
	slices.Sort(took)
	t.Logf("%s: %d handoffs, %s to %s, median %s: %d failed (%s); %d stops alone: %d failed (%s); %+.2f a handoff, of which %.2f may be chance\n%v\n%v", p.recipe,
		len(took), took[0], took[len(took)-1], took[len(took)/2], report.Failed, failures(report), len(stops), alone.Failed, failures(alone), more, chance, failed, stops)
	if report.Refused > 0 {
		t.Errorf("refused: %s", report)
	}
	switch {
	case p.lossless && report.Failed > 0:
		t.Errorf("%d requests failed in %d handoffs of a program that loses none\n%s", report.Failed, len(failed), report)
	case more > chance:
		t.Errorf("%.2f requests more failed in a handoff than in a stop alone, and no more than %.2f of that can be chance\nhandoffs: %v\nstops: %v\n%s", more, chance, failed, stops, report)
	}
}

// serving is the helper's status.
func (s *service) serving() control.Status {
	s.t.Helper()
	conn, err := s.g.Dial(s.t.Context(), "unix", "/run/zdt/"+s.name+"/control.sock")
	if err != nil {
		s.t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(patience))
	var resp control.Response
	if err := json.NewEncoder(conn).Encode(control.Request{Op: control.OpStatus}); err != nil {
		s.t.Fatal(err)
	}
	if err := json.NewDecoder(conn).Decode(&resp); err != nil || resp.Status == nil {
		s.t.Fatalf("status of the helper: %+v, %v", resp, err)
	}
	return *resp.Status
}

func (s *service) until(l *load.Load, what string, cond func(load.Report) bool) {
	s.t.Helper()
	s.await(what, func() bool { return cond(l.Report()) })
}

// startBackend starts a server at /run/backend.sock, for proxies.
func (s *service) startBackend() {
	s.t.Helper()
	if err := s.g.Copy(good(9999).file(s.t), "/usr/local/bin/backend", 0o755); err != nil {
		s.t.Fatal(err)
	}
	s.writeUnit("/etc/systemd/system/backend.service", `[Service]
Type=notify
UMask=0
ExecStart=/usr/local/bin/backend -listen /run/backend.sock
`)
	s.run("systemctl", "daemon-reload")
	s.run("systemctl", "start", "backend.service")
}
