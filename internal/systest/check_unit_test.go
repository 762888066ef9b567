package systest

import (
	"fmt"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/zdt-dev/zdt/handoff/control"
	"github.com/zdt-dev/zdt/handoffcheck"
	"github.com/zdt-dev/zdt/internal/guest"
	"github.com/zdt-dev/zdt/upgrade"
)

// unitDefect is a unit that a check of the family "unit" finds something in, and what comes of it.
type unitDefect struct {
	id      string
	runtime string                         // default: library
	init    func(s *service) []string      // flags of zdt init for its sockets; default: one
	program program                        // default: good(1)
	file    func(s *service, n int) string // a release that is none of hello's
	// extra are lines for the service, beside the defect and the fix: what makes the consequence show soon.
	extra string
	// defect is the drop-in that spoils the unit of the service, or with socket its socket unit.
	defect string
	socket bool
	// spoil and mend are for what is not done by a drop-in.
	spoil, mend func(s *service)
	live        bool   // spoilt while it runs, and not started again
	also        string // another one that comes with it
	mute        bool   // nobody can ask the program
	alone       bool   // others would disturb it
	// comes brings about what the check foresees, and says what came: "" for nothing.
	comes func(s *service) string
}

// unitDefects are the checks of the family.
func unitDefects() []unitDefect {
	var finish func() (string, error) // the request that ZDT083 is about
	return []unitDefect{
		// systemd does not hear of the new main process, and ends the service with the old one.
		{id: "ZDT001", defect: "[Service]\nType=simple\nNotifyAccess=none\n", comes: (*service).badReload},
		// SIGHUP ends a Go program.
		{id: "ZDT003", defect: "[Service]\nType=notify-reload\n", comes: (*service).badReload},
		// SIGTERM reaches the program beside what zdt sends it, and means "at once" to it.
		{id: "ZDT004", runtime: "helper", init: quitter, file: (*service).putQuitter, defect: "[Service]\nKillMode=control-group\n", comes: func(s *service) string {
			return s.badStop(func() { s.passes(time.Second, func() bool { return s.processes() < 2 }) })
		}},
		{id: "ZDT004", runtime: "helper", defect: "[Service]\nKillMode=process\n", comes: func(s *service) string {
			old := s.mainPID()
			s.kill(old)
			s.await("another main process", func() bool { pid := s.mainPID(); return pid != 0 && pid != old })
			s.calm()
			if n := s.processes(); n != 2 {
				return fmt.Sprintf("%d processes after the start", n)
			}
			return ""
		}},
		// Twice: for ExecStop=, and for what is left then.
		{id: "ZDT005", defect: "[Service]\nTimeoutStopSec=1s\n", comes: func(s *service) string {
			return s.badStop(func() { s.passes(3*time.Second, func() bool { return s.processes() == 0 }) })
		}},
		{id: "ZDT006", program: bad(1, wait), alone: true, defect: "[Service]\nTimeoutStartSec=1s\n", comes: (*service).badSlowReload},
		{id: "ZDT007", defect: "[Service]\nRestart=no\n", comes: (*service).badCrash},
		{id: "ZDT008", alone: true, extra: crashLoop, defect: "[Unit]\nStartLimitIntervalSec=30s\n", comes: (*service).badCrashLoop},
		{id: "ZDT009", defect: "[Service]\nRemainAfterExit=yes\n", comes: (*service).badEnd},
		{id: "ZDT010", defect: "[Service]\nExitType=cgroup\n", comes: func(s *service) string {
			s.joins("exec sleep 60") // any other process of the unit
			return s.badCrash()
		}},
		// systemd reads the file again after a reload, and takes what it names for the main process.
		{id: "ZDT011", runtime: "helper", file: (*service).putScribe, defect: "[Service]\nPIDFile=/run/zdt/%p/app.pid\n", comes: func(s *service) string {
			s.run("systemctl", "reload", s.unit)
			if main, runtime := s.mainPID(), s.runtime().PID; main != runtime {
				return fmt.Sprintf("the main process is %d, and zdt run is %d: %s", main, runtime, s.upgradeFile(s.putScribe(2)).Cause)
			}
			return ""
		}},
		{id: "ZDT012", defect: "[Service]\nExecReload=\nExecReload=/bin/true\n", comes: (*service).badReload},
		// Another unit's daemon-reload would make systemd look again whose child it is.
		{id: "ZDT013", alone: true, defect: "[Service]\nExecStop=\n", comes: func(s *service) string {
			s.run("systemctl", "reload", s.unit)
			s.settled()
			return s.badStop(func() { s.passes(time.Second, func() bool { return s.processes() == 0 }) })
		}},
		// As the unit of a package.
		{id: "ZDT014", live: true, spoil: func(s *service) {
			s.run("mv", "/etc/systemd/system/"+s.unit, "/usr/lib/systemd/system/")
			s.run("systemctl", "mask", s.unit)
		}, comes: func(s *service) string {
			if r, err := s.g.Run(s.t.Context(), "systemctl", "restart", s.unit); err != nil || r.Code != 0 {
				return fmt.Sprintf("%v %s", err, r)
			}
			return ""
		}},
		{id: "ZDT015", live: true, alone: true, spoil: func(s *service) {
			s.unitDropIn(s.unit, "new", "[Service]\nEnvironment=MODE=new\n")
		}, mend: func(s *service) {
			s.run("systemctl", "daemon-reload")
			// Of this systemd calls every unit changed.
			s.writeUnit("/etc/systemd/system/other.service", "[Service]\nExecStart=/bin/true\n[Install]\nWantedBy=multi-user.target\n")
			s.run("busctl", "call", "org.freedesktop.systemd1", "/org/freedesktop/systemd1", "org.freedesktop.systemd1.Manager", "EnableUnitFiles", "asbb", "1", "other.service", "no", "no")
			if changed := s.show("NeedDaemonReload"); changed != "yes" {
				s.t.Errorf("NeedDaemonReload=%s", changed)
			}
		}, comes: func(s *service) string {
			s.run("systemctl", "restart", s.unit)
			env, err := os.ReadFile(s.g.Path(fmt.Sprintf("/proc/%d/environ", s.mainPID())))
			if err != nil || !strings.Contains(string(env), "MODE=new\x00") {
				return fmt.Sprintf("the new process is without the new setting (%v)", err)
			}
			return ""
		}},
		{id: "ZDT016", spoil: func(s *service) {
			s.writeUnit("/etc/systemd/system/"+s.name+".socket", fmt.Sprintf("[Socket]\nListenStream=%s\nFileDescriptorName=http\nAccept=yes\nTriggerLimitIntervalSec=0\n", s.addr))
			s.writeUnit("/etc/systemd/system/"+s.name+"@.service", "[Service]\nStandardInput=socket\nExecStart=/usr/bin/echo not hello\n")
		}, comes: (*service).astray},
		{id: "ZDT017", socket: true, defect: "[Socket]\nFlushPending=yes\n", comes: (*service).badCrashOfBusy},
		{id: "ZDT018", alone: true, extra: crashLoop, socket: true, defect: "[Socket]\nTriggerLimitIntervalSec=10s\nTriggerLimitBurst=5\n", comes: (*service).badCrashLoop},
		// The program does not find one of its sockets, and cannot bind the address.
		{id: "ZDT019", also: "ZDT020", file: (*service).putLetters, live: true, init: func(s *service) []string {
			return []string{"--listen", s.addr + "=web", "--listen", "unix:/run/" + s.name + ".sock=local",
				"--listen", "udp:" + s.addr + "=udp", "--listen", "unixgram:@" + s.name + "=gram"}
		}, spoil: func(s *service) {
			s.unitDropIn(s.name+".local.socket", "a-defect", "[Socket]\nFileDescriptorName=web\n")
			s.run("systemctl", "daemon-reload")
		}, mend: func(s *service) {
			s.unitDropIn(s.name+".local.socket", "b-mended", "[Socket]\nFileDescriptorName=local\n")
			s.again()
		}, comes: func(s *service) string {
			if r, err := s.g.Run(s.t.Context(), "systemctl", "restart", s.unit); err != nil || r.Code != 0 {
				return fmt.Sprintf("%v %s", err, r)
			}
			return ""
		}},
		{id: "ZDT020", init: func(s *service) []string { return []string{"--", "-listen", s.addr} }, mend: func(s *service) {
			s.run("zdt", "init", s.name, "--exec", there(good(1)), "--service-user", guest.User, "--listen", s.addr+"=http")
		}, comes: (*service).badRestart},
		{id: "ZDT080", defect: "[Service]\nNotifyAccess=all\n", comes: func(s *service) string {
			const script = "#!/bin/sh\nprintf STOPPING=1 | socat - UNIX-SENDTO:$NOTIFY_SOCKET\nsleep 0.3\nexit 1\n" // it lives when systemd reads it
			p := s.startUpgrade(s.write("/srv/gives-up", script))
			s.await("it gives up", func() bool {
				select {
				case <-p.Done():
					return true
				default:
					return s.show("ActiveState") != "active"
				}
			})
			came := ""
			if state := s.show("ActiveState"); state != "active" {
				came = fmt.Sprintf("the unit is %s (%s)", state, s.show("SubState"))
				s.run("systemctl", "kill", "--signal=KILL", s.unit) // as systemd does after TimeoutStopSec=
			}
			p.wait()
			return came
		}},
		{id: "ZDT081", defect: "[Service]\nRestart=on-success\n", comes: (*service).badCrash},
		{id: "ZDT081", defect: "[Service]\nRestartPreventExitStatus=SIGKILL 77\n", comes: (*service).badCrash},
		{id: "ZDT081", defect: "[Service]\nRestart=on-failure\nSuccessExitStatus=SIGKILL\n", comes: (*service).badCrash},
		{id: "ZDT083", live: true, spoil: func(s *service) {
			finish = s.halfRequest()
			s.beginStop()
		}, comes: func(s *service) string {
			if r := s.upgradeFile(there(good(1)), "--accept-risk", "ZDT083"); r.exec.Code != 0 {
				return r.Cause
			}
			return ""
		}, mend: func(s *service) {
			finish()
			s.again()
		}},
		{id: "ZDT084", defect: "[Service]\nExecStartPost=/bin/sh -c 'echo $MAINPID >$RUNTIME_DIRECTORY/main.pid'\n", comes: func(s *service) string {
			s.run("systemctl", "reload", s.unit)
			said, err := os.ReadFile(s.g.Path("/run/zdt/" + s.name + "/main.pid"))
			if main := s.mainPID(); err == nil && strings.TrimSpace(string(said)) != pid(main) {
				return fmt.Sprintf("main process %d, in the file %s", main, said)
			}
			return ""
		}, mend: func(s *service) { s.unitDropIn(s.unit, "b-mended", "[Service]\nExecStartPost=\n") }},
	}
}

// quitter and putQuitter: a program that finishes its request and ends with SIGQUIT, and ends at once with SIGTERM, as nginx does.
func quitter(s *service) []string {
	return []string{"--listen", s.addr + "=http", "--ready", "alive:100ms", "--stop-signal", "QUIT"}
}

func (s *service) putQuitter(n int) string {
	return s.write(fmt.Sprintf("/srv/quitter/%d/quitter", n), `#!/usr/bin/perl
# release `+version(n)+`
open(my $listener, '+<&=', 3) or die $!;
my $over;
$SIG{QUIT} = sub { $over = 1 };
until ($over) {
	accept(my $client, $listener) or next;
	my ($request, $asked) = ("");
	until ($request =~ /\r\n\r\n.{10}/s) {
		if (!$asked && $request =~ /\r\n\r\n/) { syswrite($client, "HTTP/1.1 100 Continue\r\n\r\n"); $asked = 1 }
		my $n = sysread($client, $request, 1000, length $request);
		last if defined $n && $n == 0;
	}
	syswrite($client, "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nfirstother");
}
`)
}

// putScribe is a program that writes its number to a file.
func (s *service) putScribe(n int) string {
	return s.write(fmt.Sprintf("/srv/scribe/%d/scribe", n), "#!/bin/sh\necho $$ > $RUNTIME_DIRECTORY/app.pid\nexec "+there(good(n))+"\n")
}

// crashLoop are starts that fail, one after the other, while a file is there.
const crashLoop = "[Service]\nExecStartPre=/usr/bin/test ! -e /srv/%p.fails\nRestartSec=10ms\nRestartSteps=0\n"

// Each setting that a check finds fault with does what the check says, to a service that runs with it; and with the fix that is
// printed it does not, nothing is found any more, and an upgrade works.
func TestUnitChecks(t *testing.T) {
	t.Parallel()
	g := guest.Boot(t, guest.Trixie)
	first := &service{t: t, g: g}
	first.installZdt()
	first.letGo()
	for _, p := range []program{good(1), good(2), bad(1, wait)} {
		first.put(p)
	}
	for i, d := range unitDefects() {
		t.Run(d.id+" "+d.runtime, func(t *testing.T) {
			if !d.alone {
				t.Parallel()
			}
			name := fmt.Sprintf("u%d", i)
			s := &service{t: t, g: g, name: name, unit: name + ".service", addr: fmt.Sprintf("127.0.0.1:%d", 9000+i)}
			s.shows(d)
		})
	}
}

func (s *service) shows(d unitDefect) {
	if d.program == (program{}) {
		d.program = good(1)
	}
	if d.file == nil {
		d.file = func(s *service, n int) string {
			if n == 1 {
				return there(d.program)
			}
			return there(good(n))
		}
	}
	if d.init == nil {
		d.init = func(s *service) []string { return []string{"--listen", s.addr + "=http"} }
	}
	args := []string{"zdt", "init", s.name, "--exec", d.file(s, 1), "--service-user", guest.User, "--start"}
	if d.runtime != "" {
		args = append(args, "--runtime", d.runtime)
	}
	s.run(append(args, d.init(s)...)...)
	if d.extra != "" {
		s.unitDropIn(s.unit, "0-extra", d.extra)
	}
	unit := s.unit
	if d.socket {
		unit = s.name + ".socket"
	}
	if d.defect != "" {
		s.unitDropIn(unit, "a-defect", d.defect)
	}
	if d.spoil != nil {
		d.spoil(s)
	}
	if !d.live {
		s.again()
	}
	check, ok := handoffcheck.Find(d.id)
	code := 0
	if ok && check.Severity == handoffcheck.Blocker {
		code = 10
	}
	found := s.check(code)
	found = slices.DeleteFunc(found, func(f handoffcheck.Finding) bool { return f.ID == d.also })
	if len(found) != 1 || found[0].ID != d.id {
		s.t.Fatalf("found %+v, want %s alone", found, d.id)
	}
	if code != 0 {
		s.upgradeFile(d.file(s, 2)).mustBe(upgrade.Refused, 10)
	}
	came := d.comes(s)
	if came == "" {
		s.t.Errorf("nothing came of %s", found[0].Seen)
	}
	s.t.Logf("%s: %s", found[0].Seen, came)

	switch {
	case d.mend != nil:
		d.mend(s)
	case found[0].DropIn != "":
		s.unitDropIn(found[0].Unit, "b-mended", found[0].DropIn)
	default:
		s.run("sh", "-c", found[0].Fix)
	}
	if !d.live {
		s.again()
	}
	if left := s.check(0); len(left) > 0 {
		s.t.Errorf("the fix leaves %+v", left)
	}
	if came := d.comes(s); came != "" {
		s.t.Errorf("in spite of the fix: %s", came)
	}
	s.again()
	s.upgradeFile(d.file(s, 2)).mustBe(upgrade.Upgraded, 0)
	s.run("sh", "-c", "systemctl stop "+s.name+"*.socket "+s.unit+" && rm -r /var/lib/zdt/"+s.name) // for the guest's memory
}

// there is where put has put a program for all services.
func there(p program) string { return path.Join("/srv", p.String(), "hello") }

// putLetters is putParcel beside hello.
func (s *service) putLetters(n int) string {
	s.t.Helper()
	name := fmt.Sprintf("/srv/parcel/%d/parcel", n)
	if err := s.g.Copy(releaseOf(s.t, "parcel", "./testdata/parcel", n), name, 0o755); err != nil {
		s.t.Fatal(err)
	}
	return name
}

func (s *service) unitDropIn(unit, name, text string) {
	s.t.Helper()
	s.writeUnit(path.Join("/etc/systemd/system", unit+".d", name+".conf"), text)
}

// again starts the units as they are on disk.
func (s *service) again() {
	s.t.Helper()
	units := []string{s.unit}
	for _, name := range strings.Fields(s.show("TriggeredBy")) {
		units = append(units, name)
	}
	s.run("systemctl", "daemon-reload")
	s.run(append([]string{"systemctl", "stop"}, units...)...)
	s.g.Run(s.t.Context(), append([]string{"systemctl", "reset-failed"}, units...)...) // it may have nothing to do
	s.run(append([]string{"systemctl", "start"}, units...)...)
	s.calm()
}

// calm is settled, under zdt run as well.
func (s *service) calm() {
	s.t.Helper()
	s.await("one generation that serves", func() bool {
		st := s.status()
		return st.Runtime != nil && st.Runtime.Phase == control.Idle && st.Runtime.Predecessor == nil && st.State == "serving"
	})
}

// passes waits until cond holds, but not longer than d, and reports whether it does.
func (s *service) passes(d time.Duration, cond func() bool) (holds bool) {
	end := time.Now().Add(d)
	s.await("a while", func() bool { holds = cond(); return holds || time.Now().After(end) })
	return holds
}

// joins runs a script in the unit, as a process that the program has started.
func (s *service) joins(script string) {
	s.t.Helper()
	before := s.processes()
	s.spawn("sh", "-c", "echo $$ > /sys/fs/cgroup/system.slice/"+s.unit+"/cgroup.procs && "+script)
	s.await("another process", func() bool { return s.processes() > before })
}

// badReload is what a reload did instead of a handoff.
func (s *service) badReload() string {
	s.t.Helper()
	client := s.keptAlive(1)[0]
	s.run("systemctl", "reload", s.unit)
	st := s.settled()
	_, err := client.ask()
	if n := s.show("NRestarts"); n != "0" || st.Runtime.Generation != 2 || err != nil {
		return fmt.Sprintf("systemctl reload succeeded: generation %d, %s restarts, a client that was connected: %v", st.Runtime.Generation, n, err)
	}
	return ""
}

// badStop is how a request ends that the service works on when it is stopped. during is what the request takes.
func (s *service) badStop(during func()) string {
	s.t.Helper()
	finish := s.halfRequest()
	stop := s.beginStop()
	during()
	_, err := finish()
	stop.Wait()
	if err != nil || s.show("Result") != "success" {
		return fmt.Sprintf("a request that was under way at systemctl stop: %v; result of the unit: %s", err, s.show("Result"))
	}
	return ""
}

// badSlowReload is how a reload ends whose candidate takes longer than TimeoutStartSec=.
func (s *service) badSlowReload() string {
	s.t.Helper()
	s.keepWaiting()
	reload := s.spawn("systemctl", "reload", s.unit)
	s.await("a candidate", func() bool { r := s.runtime(); return r != nil && r.Phase == control.Forked })
	s.passes(1500*time.Millisecond, func() bool { return false })
	s.letGo()
	r, err := reload.Wait()
	s.settled()
	if err != nil || r.Code != 0 {
		return fmt.Sprintf("%v %s", err, r)
	}
	return ""
}

// badCrash is what is left of a service whose main process was killed.
func (s *service) badCrash() string { return s.badEndBy("KILL") }

// badEnd is badCrash of a main process that ends without an error.
func (s *service) badEnd() string { return s.badEndBy("TERM") }

func (s *service) badEndBy(signal string) (came string) {
	s.t.Helper()
	old := s.mainPID()
	s.run("kill", "-"+signal, pid(old))
	var since time.Time // that there is no process, and none on its way
	s.await("another main process, or none", func() bool {
		main, state := s.mainPID(), s.show("ActiveState")
		switch {
		case main != 0 && main != old:
			return true
		case main == old || strings.HasSuffix(state, "ing"):
			since = time.Time{}
		case since.IsZero():
			since = time.Now()
		case time.Since(since) > time.Second:
			came = fmt.Sprintf("no main process after SIG%s; the unit is %s (%s)", signal, state, s.show("SubState"))
		}
		return came != ""
	})
	return came
}

// badCrashLoop is what clients get that come while the service cannot be started, and wait until it can.
func (s *service) badCrashLoop() string {
	s.t.Helper()
	fails := "/srv/" + s.name + ".fails"
	s.run("touch", fails)
	defer s.run("rm", "-f", fails)
	s.kill(s.mainPID())
	s.await("the first start fails", func() bool { return s.show("ExecMainStatus") != "0" || s.show("NRestarts") != "0" })
	answer := make(chan error, 1)
	go func() { _, err := s.ask("/"); answer <- err }()
	s.await("many starts, or the end of the socket", func() bool {
		n, _ := strconv.Atoi(s.show("NRestarts"))
		return n >= 20 || s.run("systemctl", "show", "--value", "--property=ActiveState", s.name+".socket") == "failed"
	})
	state := s.run("systemctl", "show", "--property=ActiveState", "--property=Result", s.name+".socket")
	s.run("rm", "-f", fails)
	if err := <-answer; err != nil {
		return fmt.Sprintf("a client got %v; the socket: %s", err, state)
	}
	return ""
}

// badCrashOfBusy is what a client gets that has connected while the service does not accept, and crashes.
func (s *service) badCrashOfBusy() string {
	s.t.Helper()
	main := s.mainPID()
	s.run("kill", "-STOP", pid(main))
	s.await("it has stopped", func() bool {
		stat, _ := os.ReadFile(s.g.Path("/proc/" + pid(main) + "/stat"))
		return strings.Contains(string(stat), ") T ")
	})
	conn, err := s.dial(s.t.Context())
	if err != nil {
		s.t.Fatal(err)
	}
	defer conn.Close()
	s.kill(main)
	if err := exchange(conn, "POST / HTTP/1.1\r\nHost: hello\r\nContent-Length: 2\r\n\r\nab", "ab"); err != nil {
		return fmt.Sprintf("a client that waited: %v", err)
	}
	return ""
}

// astray is what a client gets that comes while the program does not look at its sockets.
// One that does look is faster than systemd nearly always: of 1,000 connections once none went astray.
func (s *service) astray() string {
	s.t.Helper()
	main := s.mainPID()
	s.run("kill", "-STOP", pid(main))
	conn, err := s.dial(s.t.Context())
	if err == nil {
		defer conn.Close()
		s.passes(time.Second, func() bool {
			return s.run("systemctl", "show", "--value", "--property=NAccepted", s.name+".socket") != "0"
		})
	}
	s.run("kill", "-CONT", pid(main))
	if err == nil {
		err = exchange(conn, "POST / HTTP/1.1\r\nHost: hello\r\nContent-Length: 2\r\n\r\nab", "ab")
	}
	if err != nil {
		return fmt.Sprintf("a client that came while the program was busy: %v", err)
	}
	return ""
}

// badRestart is what a client gets that has connected while the service restarted.
func (s *service) badRestart() string {
	s.t.Helper()
	finish := s.halfRequest()
	restart := s.spawn("systemctl", "restart", s.unit)
	s.await("the program stops accepting", func() bool { r := s.runtime(); return r != nil && r.Phase == control.Stopping })
	conn, err := s.dial(s.t.Context())
	finish()
	restart.Wait()
	if err != nil {
		return err.Error()
	}
	defer conn.Close()
	if err := exchange(conn, "POST / HTTP/1.1\r\nHost: hello\r\nContent-Length: 2\r\n\r\nab", "ab"); err != nil {
		return fmt.Sprintf("a client that waited: %v", err)
	}
	return ""
}
