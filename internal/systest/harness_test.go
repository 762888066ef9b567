// Package systest has the scenarios that prove zdt as a whole: its own binary, in a guest with a real systemd, upgrades a
// real service while real clients are connected. Each test is one sentence about that, on every systemd there is an
// image of:
//
//	func TestCrashingCandidate(t *testing.T) {
//		guest.Each(t, func(t *testing.T, g *guest.Guest) {
//			s := newService(t, g, options{})          // zdt init --start; release 1 serves
//			l := s.load(load.Config{})                // clients that never retry
//			r := s.upgrade(bad(2, crash))             // zdt upgrade, and its report
//			r.mustBe(upgrade.RolledBack, 11)
//			s.mustUpgrade(good(3))                    // the next upgrade works
//			mustLoseNothing(t, l.Stop())
//		})
//	}
//
// The rules: no sleeps, wait with service.await; nothing of the host is touched but the guest; tests run in parallel,
// so times are bounds and not expectations. go's test cache does not see what guests do: run with -count=1. With
// ZDT_GUEST_KEEP=1 a guest stays for a look around.
package systest

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/zdt-dev/zdt/handoff/control"
	"github.com/zdt-dev/zdt/internal/guest"
	"github.com/zdt-dev/zdt/internal/load"
	"github.com/zdt-dev/zdt/upgrade"
)

// patience bounds every wait for a condition. It is only ever used up by a test that fails.
const patience = 40 * time.Second

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "zdt-systest-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	built.dir, built.log = dir, make(map[string]error)
	moreParallel()
	code := m.Run()
	os.RemoveAll(dir)
	os.Exit(code)
}

// moreParallel runs twice as many guests side by side as there are processors, unless -parallel says otherwise:
// scenarios wait most of the time, for boots, bakes and drains.
func moreParallel() {
	flag.Parse()
	given := false
	flag.Visit(func(f *flag.Flag) { given = given || f.Name == "test.parallel" })
	if !given {
		flag.Set("test.parallel", strconv.Itoa(2*runtime.GOMAXPROCS(0)))
	}
}

// options say which service a scenario wants. The zero value is release 1 of hello as a dynamic user on TCP.
type options struct {
	program program  // default: good(1)
	init    []string // flags of zdt init in place of --dynamic-user
	args    []string // of the program
}

// service is a service in a guest: "hello", installed by zdt init, listening on addr.
type service struct {
	t    *testing.T
	g    *guest.Guest
	name string
	unit string
	addr string
}

// newService installs zdt and the service into the guest and starts it.
func newService(t *testing.T, g *guest.Guest, o options) *service {
	t.Helper()
	s := &service{t: t, g: g, name: "hello", unit: "hello.service", addr: "127.0.0.1:8080"}
	s.installZdt()
	if o.program == (program{}) {
		o.program = good(1)
	}
	if o.init == nil {
		o.init = []string{"--dynamic-user"}
	}
	args := append([]string{"zdt", "init", s.name, "--exec", s.put(o.program), "--listen", s.addr + "=http", "--start"}, o.init...)
	if o.args != nil {
		args = append(append(args, "--"), o.args...)
	}
	s.run(args...)
	return s
}

func (s *service) installZdt() {
	s.t.Helper()
	if err := s.g.Copy(zdt(s.t), "/usr/local/bin/zdt", 0o755); err != nil {
		s.t.Fatal(err)
	}
}

// put copies a program into the guest, where an operator would have uploaded it, and returns its path there. The base
// name is the same for all, as zdt init makes it the name of the program in ps.
func (s *service) put(p program) string {
	s.t.Helper()
	name := path.Join("/srv", p.String(), "hello")
	if err := s.g.Copy(p.file(s.t), name, 0o755); err != nil {
		s.t.Fatal(err)
	}
	return name
}

// run runs a command of the guest that must succeed, and returns its output.
func (s *service) run(args ...string) string {
	s.t.Helper()
	return s.g.MustRun(s.t, args...)
}

// result is a finished zdt upgrade.
type result struct {
	t *testing.T
	upgrade.Report
	exec guest.Result // as the operator's shell saw it
}

// upgrade runs zdt upgrade with the program and further flags, and returns its report, however it ended.
func (s *service) upgrade(p program, flags ...string) result {
	s.t.Helper()
	return s.upgradeFile(s.put(p), flags...)
}

// upgradeFile is upgrade with a file of the guest.
func (s *service) upgradeFile(file string, flags ...string) result {
	s.t.Helper()
	return s.startUpgrade(file, flags...).wait()
}

// running is a zdt upgrade that goes on; scenarios interfere meanwhile.
type running struct {
	t *testing.T
	*guest.Process
}

// startUpgrade starts zdt upgrade without a rehearsal, or scenarios with broken candidates would not come to what they are about;
// rehearse_test.go is about those.
func (s *service) startUpgrade(file string, flags ...string) *running {
	s.t.Helper()
	return s.begin(append([]string{"zdt", "upgrade", s.name, "--binary", file, "-o", "json", "--no-rehearse"}, flags...)...)
}

// begin starts a command that ends with the report of an upgrade.
func (s *service) begin(args ...string) *running {
	s.t.Helper()
	p, err := s.g.Spawn(s.t.Context(), guest.Command{Args: args})
	if err != nil {
		s.t.Fatal(err)
	}
	return &running{s.t, p}
}

// wait returns the report of an upgrade that came to an end by itself.
func (u *running) wait() result {
	u.t.Helper()
	r, err := u.Wait()
	if err != nil {
		u.t.Fatalf("%v\n%s", err, r)
	}
	res := result{t: u.t, exec: r}
	if err := json.Unmarshal([]byte(r.Stdout), &res.Report); err != nil {
		u.t.Fatalf("stdout is not one JSON document: %v\n%s", err, r)
	}
	if res.ExitCode != r.Code {
		u.t.Errorf("the document says exit_code %d, zdt ended with %d\n%s", res.ExitCode, r.Code, r)
	}
	return res
}

// mustBe ends the test unless the upgrade ended this way.
func (r result) mustBe(outcome upgrade.Outcome, code int) {
	r.t.Helper()
	if r.Outcome != outcome || r.exec.Code != code {
		r.t.Fatalf("outcome %s and exit code %d, want %s and %d\n%s", r.Outcome, r.exec.Code, outcome, code, r.exec)
	}
	if changed := outcome == upgrade.Upgraded; r.Changed != changed {
		r.t.Errorf("changed is %t in\n%s", r.Changed, r.exec)
	}
}

// mustUpgrade upgrades to a good program, with everything an upgrade that succeeds has to have.
func (s *service) mustUpgrade(p program, flags ...string) result {
	s.t.Helper()
	r := s.upgrade(p, flags...)
	r.mustBe(upgrade.Upgraded, 0)
	var phases []upgrade.Phase
	for _, p := range r.Timings {
		phases = append(phases, p.Phase)
	}
	if !slices.Equal(phases, upgrade.Phases()) {
		s.t.Errorf("phases %v, want %v", phases, upgrade.Phases())
	}
	if main := s.mainPID(); r.Candidate != main || r.Incumbent == main {
		s.t.Errorf("the report says incumbent %d, candidate %d; systemd says MainPID %d", r.Incumbent, r.Candidate, main)
	}
	if got := s.answers(); got != version(p.version) {
		s.t.Errorf("%s answers after the upgrade to %s", got, version(p.version))
	}
	return r
}

// status is what the scenarios need of zdt status -o json.
type status struct {
	State string `json:"state"`
	Unit  struct {
		Active  string `json:"active"`
		MainPID int    `json:"main_pid"`
	} `json:"unit"`
	Runtime        *control.Status `json:"runtime"`
	RuntimeProblem string          `json:"runtime_problem"`
	Current        *releaseStatus  `json:"current"`
	Running        *releaseStatus  `json:"running"`
	Txn            *struct {
		TxID    string `json:"txid"`
		Phase   string `json:"phase"`
		Running bool   `json:"running"`
	} `json:"txn"`
	Notes []struct {
		ID   string `json:"id"`
		Text string `json:"text"`
		Next string `json:"next"`
	} `json:"notes"`

	text string // the document
}

type releaseStatus struct {
	ID     string `json:"id"`
	SHA256 string `json:"sha256"`
}

// status runs zdt status, which must know the service.
func (s *service) status() status {
	s.t.Helper()
	r, err := s.g.Run(s.t.Context(), "zdt", "status", s.name, "-o", "json")
	if err != nil {
		s.t.Fatal(err)
	}
	var doc struct {
		Services []status `json:"services"`
	}
	if err := json.Unmarshal([]byte(r.Stdout), &doc); err != nil || len(doc.Services) != 1 {
		s.t.Fatalf("zdt status: %v\n%s", err, r)
	}
	st := doc.Services[0]
	st.text = r.Stdout
	return st
}

// await waits until cond holds; what says in the test's log what was waited for.
func (s *service) await(what string, cond func() bool) {
	s.t.Helper()
	limit := time.NewTimer(patience)
	defer limit.Stop()
	retry := time.NewTicker(10 * time.Millisecond)
	defer retry.Stop()
	for !cond() {
		select {
		case <-retry.C:
		case <-limit.C:
			r, _ := s.g.Run(context.WithoutCancel(s.t.Context()), "zdt", "status", s.name)
			s.t.Fatalf("not within %s: %s\n%s", patience, what, r)
		}
	}
}

// settled waits until exactly one generation lives, which is idle and systemd's main process, and returns the status.
func (s *service) settled() status {
	s.t.Helper()
	var st status
	s.await("one idle generation that is the main process", func() bool {
		st = s.status()
		r := st.Runtime
		return r != nil && r.Phase == control.Idle && r.Predecessor == nil && r.PID == st.Unit.MainPID &&
			st.State == "serving" && s.processes() == 1
	})
	return st
}

// mustRun checks that release n, and nothing else, is what runs and what a restart would start, with no open record.
func (s *service) mustRun(n int) {
	s.t.Helper()
	st := s.settled()
	if st.Current == nil || st.Running == nil || st.Current.ID != st.Running.ID || st.Txn != nil {
		s.t.Errorf("want one release and no open upgrade:\n%s", st.text)
	}
	if got := s.answers(); got != version(n) {
		s.t.Errorf("%s answers, want %s", got, version(n))
	}
}

// mainPID is the unit's main process, as the guest counts.
func (s *service) mainPID() int {
	s.t.Helper()
	var pid int
	if _, err := fmt.Sscan(s.show("MainPID"), &pid); err != nil {
		s.t.Fatal(err)
	}
	return pid
}

// show is a property of the unit.
func (s *service) show(property string) string {
	s.t.Helper()
	return s.run("systemctl", "show", "--value", "--property="+property, s.unit)
}

// processes counts the processes in the unit's control group.
func (s *service) processes() int {
	slice := ""
	if template, _, ok := strings.Cut(s.name, "@"); ok { // instances have a slice of their own (systemd.special(7))
		slice = "system-" + template + ".slice/"
	}
	data, err := os.ReadFile(s.g.Path("/sys/fs/cgroup/system.slice/" + slice + s.unit + "/cgroup.procs"))
	if err != nil && !os.IsNotExist(err) { // no group: no process
		s.t.Fatal(err)
	}
	return strings.Count(string(data), "\n")
}

// descriptors lists what the main process has open, without the numbers: sockets and pipes by kind.
func (s *service) descriptors() []string {
	s.t.Helper()
	dir := s.g.Path(fmt.Sprintf("/proc/%d/fd", s.mainPID()))
	entries, err := os.ReadDir(dir)
	if err != nil {
		s.t.Fatal(err)
	}
	var all []string
	for _, e := range entries {
		target, err := os.Readlink(filepath.Join(dir, e.Name()))
		if err != nil {
			continue // closed since
		}
		kind, _, _ := strings.Cut(target, ":[")
		all = append(all, kind)
	}
	slices.Sort(all)
	return all
}

// dial connects to the service.
func (s *service) dial(ctx context.Context) (net.Conn, error) {
	return s.g.Dial(ctx, "tcp", s.addr)
}

// load puts the service under load until the test ends, or Stop. Dial is filled in.
func (s *service) load(cfg load.Config) *load.Load {
	cfg.Dial = s.dial
	l := load.Start(cfg)
	s.t.Cleanup(func() { l.Stop() })
	return l
}

// lightLoad is enough to notice a gap, and leaves the machine to others.
func (s *service) lightLoad() *load.Load {
	return s.load(load.Config{KeepAlive: 6, Fresh: 2, Think: 5 * time.Millisecond})
}

// mustLoseNothing checks that no client noticed anything: nothing failed, and no connection ended, not even with an
// announcement. Clients that open a connection for each request may do so.
func mustLoseNothing(t *testing.T, r load.Report) {
	t.Helper()
	if r.Losses() > 0 || r.Reconnects > 0 || r.PoliteCloses > 0 || r.IdleCloses > 0 || r.Requests == 0 {
		t.Errorf("clients noticed: %s", r)
	}
}

// mustFailNothing is mustLoseNothing where connections cannot live on, as in a restart and over TLS: clients connect again.
func mustFailNothing(t *testing.T, r load.Report) {
	t.Helper()
	if r.Losses() > 0 || r.Requests == 0 {
		t.Errorf("clients noticed: %s", r)
	}
}

// ask sends one request on a connection of its own, and returns the version that answered.
func (s *service) ask(path string) (string, error) {
	conn, err := s.dial(s.t.Context())
	if err != nil {
		return "", err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(patience))
	if _, err := fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: hello\r\nConnection: close\r\n\r\n", path); err != nil {
		return "", err
	}
	answer, err := io.ReadAll(conn)
	if err != nil {
		return "", err
	}
	head, _, ok := strings.Cut(string(answer), "\r\n\r\n")
	if !ok || !strings.HasPrefix(head, "HTTP/1.1 200 ") {
		return "", fmt.Errorf("answer %q", answer)
	}
	_, rest, _ := strings.Cut(head, "X-Version: ")
	v, _, _ := strings.Cut(rest, "\r\n")
	return v, nil
}

// answers is the version that answers a new connection.
func (s *service) answers() string {
	s.t.Helper()
	v, err := s.ask("/")
	if err != nil {
		s.t.Errorf("ask the service: %v", err)
	}
	return v
}
