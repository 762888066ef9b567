package handoffcheck

import (
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/zdt-dev/zdt/handoff/control"
)

const second = uint64(1_000_000) // in systemd's µs

// good are the facts of a service that zdt init has made: nothing is found in them.
func good() Facts {
	command := func(argv ...string) [][]any { return [][]any{{argv[0], argv, false}} }
	return Facts{
		Systemd: 257, Zdt: "/usr/bin/zdt", Releases: "/var/lib/zdt/web/releases", Drain: 30 * time.Second, Ready: time.Minute,
		Service: Unit{"web.service", map[string]any{
			"LoadState": "loaded", "Type": "notify", "NotifyAccess": "main", "KillMode": "control-group", "Restart": "always",
			"ExecReload": command("/usr/local/bin/zdt", "handoff"), "ExecStop": command("/usr/local/bin/zdt", "stop"),
			"StartLimitIntervalUSec": uint64(0), "StartLimitBurst": uint32(5), "NeedDaemonReload": false,
			"SystemCallFilter": []any{true, []string{"pidfd_open", "pidfd_send_signal", "read", "recvmsg", "sendmsg", "socketpair:1"}},
			"NoExecPaths":      []string{"/"}, "ExecPaths": []string{"-/var/lib/zdt"}, "PrivateUsers": false,
			"TimeoutStopUSec": 40 * second, "TimeoutStartUSec": 75 * second, "RemainAfterExit": false, "ExitType": "main", "PIDFile": "",
			"RuntimeDirectory": []string{"zdt/web"}, "RestartPreventExitStatus": []any{[]int32{78}, []int32{}}, "Job": []any{uint32(0), "/"},
		}},
		Sockets: []Unit{{"web.socket", map[string]any{
			"Listen": [][]any{{"Stream", "127.0.0.1:8080"}}, "Backlog": uint32(4096), "Accept": false, "FlushPending": false, "TriggerLimitIntervalUSec": uint64(0), "TriggerLimitBurst": uint32(20), "FileDescriptorName": "http",
		}}},
		Resources: Resources{Memory: 20 << 20, MemoryUsed: 25 << 20, MemoryMax: 60 << 20, MemoryHigh: 50 << 20, Tasks: 8, TasksMax: 16, Files: 12, FilesMax: 1024,
			UserTasks: 9, UserTasksMax: 40, Release: 9 << 20, ReleasesFree: 10 << 20},
		Runtime: control.Status{Version: 1, Sockets: []control.Socket{{Name: "http", Network: "tcp", Address: "127.0.0.1:8080", InUse: true}}},
		Live: Live{Listeners: []Listener{{Network: "tcp", Address: "127.0.0.1:8080", Held: true, Queue: 4096}}, LongestQueue: 4096,
			Starts: "/var/lib/zdt/web/current/web", Current: "/var/lib/zdt/web/current/web"},
	}
}

func TestChecks(t *testing.T) {
	service := func(name string, value any) func(*Facts) {
		return func(f *Facts) { f.Service.Properties[name] = value }
	}
	socket := func(name string, value any) func(*Facts) {
		return func(f *Facts) { f.Sockets[0].Properties[name] = value }
	}
	helper := func(f *Facts) {
		f.Helper = true
		f.Service.Properties["KillMode"], f.Service.Properties["ExecStop"] = "mixed", [][]any(nil)
	}
	gates := func(gates ...Gate) func(*Facts) { return func(f *Facts) { f.Gates = gates } }
	prints := func(out, err string) func(*Facts) {
		return func(f *Facts) {
			f.Service.Properties["StandardOutput"], f.Service.Properties["StandardError"] = out, err
		}
	}
	lines, errors := Gate{Text: "journal!:panic", Journal: true}, Gate{Text: "errors:0", Journal: true, Errors: true}
	for _, tt := range []struct {
		name  string
		spoil func(*Facts)
		want  string // IDs
	}{
		{"as it should be", func(*Facts) {}, ""},
		{"the helper as it should be", helper, ""},
		{"nothing is known", func(f *Facts) { *f = Facts{} }, ""},
		{"simple", service("Type", "simple"), "ZDT001"},
		{"reload by message", service("Type", "notify-reload"), "ZDT003"},
		{"mixed", service("KillMode", "mixed"), ""},
		{"the helper's process", func(f *Facts) { helper(f); f.Service.Properties["KillMode"] = "process" }, "ZDT004"},
		{"the helper's group", func(f *Facts) { helper(f); f.Service.Properties["KillMode"] = "control-group" }, "ZDT004"},
		{"a short stop", service("TimeoutStopUSec", 34*second), "ZDT005"},
		{"a stop that is just long enough", service("TimeoutStopUSec", 35*second), ""},
		{"a short stop, and told to drain less", func(f *Facts) {
			service("TimeoutStopUSec", 20*second)(f)
			service("ExecStart", [][]any{{"/usr/bin/zdt", []string{"/usr/bin/zdt", "run", "--drain-timeout", "10s", "--", "web", "--drain-timeout=1h"}}})(f)
		}, ""},
		{"a stop that is too short for a drain", func(f *Facts) {
			service("TimeoutStopUSec", 60*second)(f)
			service("Environment", []string{"ZDT_DRAIN_TIMEOUT=1m"})(f)
		}, "ZDT005"},
		{"an endless stop", service("TimeoutStopUSec", ^uint64(0)), ""},
		{"a short start", service("TimeoutStartUSec", 60*second), "ZDT006"},
		{"no restart", service("Restart", "no"), "ZDT007"},
		{"a start limit", service("StartLimitIntervalUSec", 10*second), "ZDT008"},
		{"a start limit without sockets", func(f *Facts) {
			service("StartLimitIntervalUSec", 10*second)(f)
			f.Sockets, f.Runtime = nil, control.Status{}
		}, ""},
		{"it remains", service("RemainAfterExit", true), "ZDT009"},
		{"the last process counts", service("ExitType", "cgroup"), "ZDT010"},
		{"a PID file", service("PIDFile", "/run/web.pid"), ""},
		{"a PID file of the helper", func(f *Facts) { helper(f); f.Service.Properties["PIDFile"] = "/run/web.pid" }, "ZDT011"},
		{"another reload", service("ExecReload", [][]any{{"/bin/kill", []string{"/bin/kill", "-HUP", "$MAINPID"}}}), "ZDT012"},
		{"no reload", service("ExecReload", [][]any{}), "ZDT012"},
		{"no stop", service("ExecStop", [][]any{}), "ZDT013"},
		{"masked", service("LoadState", "masked"), "ZDT014"},
		{"masked, and no more is known", func(f *Facts) {
			service("LoadState", "masked")(f)
			service("Restart", "no")(f)
		}, "ZDT014"},
		{"changed", service("NeedDaemonReload", true), "ZDT015"},
		{"the socket changed", socket("NeedDaemonReload", true), "ZDT015"},
		{"accepted by systemd", socket("Accept", true), "ZDT016"},
		{"flushed", socket("FlushPending", true), "ZDT017"},
		{"a trigger limit", socket("TriggerLimitIntervalUSec", 2*second), "ZDT018"},
		{"one name twice", func(f *Facts) { f.Sockets = append(f.Sockets, f.Sockets[0]) }, "ZDT019"},
		{"its own port", func(f *Facts) { socket("FileDescriptorName", "https")(f); f.Live = Live{} }, "ZDT020"},
		{"an allow-list without a call", service("SystemCallFilter", []any{true, []string{"recvmsg", "socketpair"}}), "ZDT021"},
		{"a deny-list with a call", service("SystemCallFilter", []any{false, []string{"reboot", "sendmsg"}}), "ZDT021"},
		{"a deny-list without one", service("SystemCallFilter", []any{false, []string{"reboot"}}), ""},
		{"no filter", service("SystemCallFilter", []any{false, []string{}}), ""},
		{"what only the helper needs", service("SystemCallFilter", []any{false, []string{"pidfd_open"}}), ""},
		{"what the helper needs", func(f *Facts) {
			helper(f)
			service("SystemCallFilter", []any{false, []string{"pidfd_open"}})(f)
		}, "ZDT021"},
		{"out of sight", func(f *Facts) { f.Hidden = true }, "ZDT022"},
		{"not executable", service("ExecPaths", []string{"/usr", "/var/lib/zdt/web/current"}), "ZDT023"},
		{"not executable, but all else", func(f *Facts) {
			service("NoExecPaths", []string{"/var/lib/zdt"})(f)
			service("ExecPaths", []string{"/", "-/var/lib/zdt/web/current"})(f)
		}, "ZDT023"},
		{"executable again", func(f *Facts) {
			service("NoExecPaths", []string{"/var", "/var/lib"})(f)
			service("ExecPaths", []string{"/", "+/var/lib/zdt/"})(f)
		}, ""},
		{"executable elsewhere", service("NoExecPaths", []string{"/home"}), ""},
		{"private users", service("PrivateUsers", true), ""},
		{"the helper's private users", func(f *Facts) { helper(f); f.Service.Properties["PrivateUsers"] = true }, "ZDT024"},
		{"out of sight until it starts again", func(f *Facts) {
			f.Hidden = true
			service("BindReadOnlyPaths", [][]any{{"/var/lib/zdt", "/var/lib/zdt", false, uint64(0)}})(f)
		}, "ZDT022"},
		{"users that were private", func(f *Facts) { helper(f); f.Process.Users = true }, "ZDT075"},
		{"users that are private", func(f *Facts) { f.Process.Users = true }, ""},
		{"not executable until it starts again", func(f *Facts) { f.Process.NoExec = true }, "ZDT075"},
		{"not executable after a start", func(f *Facts) {
			service("ExecPaths", []string{"/usr"})(f)
			service("NoExecPaths", []string{"/var"})(f)
			f.Process.Mounts = true
		}, ""},
		{"a filter that was mended", func(f *Facts) { f.Process.Filter = []string{"@system-service", "~@mount sendmsg:EPERM"} }, "ZDT075"},
		{"a filter that was mended before", func(f *Facts) { f.Process.Filter = []string{"~sendmsg", "@io-event"} }, ""},
		{"a short list that was mended", func(f *Facts) { f.Process.Filter = []string{"read write", "recvmsg socketpair"} }, "ZDT075"},
		{"a filter that forbids something else", func(f *Facts) { f.Process.Filter = []string{"~@mount pidfd_open", "~reboot"} }, ""},
		{"a filter that is as it was", func(f *Facts) {
			f.Process.Filter = []string{"~sendmsg"}
			service("SystemCallFilter", []any{false, []string{"sendmsg"}})(f)
		}, "ZDT021"},
		{"a hardened host", func(f *Facts) { f.HostNoExec, f.Process.NoExec = "/var", true }, "ZDT048"},
		{"memory for one", func(f *Facts) { f.Resources.MemoryMax, f.Resources.MemoryHigh = 44<<20, 0 }, "ZDT025"},
		{"no memory at all", func(f *Facts) { f.Resources.MemoryMax = 25 << 20 }, "ZDT025"},
		{"just enough memory", func(f *Facts) { f.Resources.MemoryMax = 45 << 20 }, ""},
		{"slow memory", func(f *Facts) { f.Resources.MemoryHigh = 30 << 20 }, "ZDT026"},
		{"tasks for one", func(f *Facts) { f.Resources.TasksMax = 15 }, "ZDT027"},
		{"all tasks there may be", func(f *Facts) { f.Resources.TasksMax = 8 }, "ZDT027"},
		{"few descriptors", func(f *Facts) { f.Resources.FilesMax = 27 }, "ZDT028"},
		{"just enough descriptors", func(f *Facts) { f.Resources.FilesMax = 28 }, ""},
		{"a busy user", func(f *Facts) { f.Resources.UserTasks = 33 }, "ZDT029"},
		{"a full disk", func(f *Facts) { f.Resources.ReleasesFree = 8 << 20 }, "ZDT030"},
		{"no release yet", func(f *Facts) { f.Resources.Release, f.Resources.ReleasesFree = 0, 0 }, ""},
		{"nobody answers", func(f *Facts) { f.Live.Silent, f.Runtime = "nobody listens", control.Status{} }, "ZDT033"},
		{"nobody could answer", func(f *Facts) {
			f.Live.Silent, f.Runtime = "nobody listens", control.Status{}
			service("RuntimeDirectory", []string{"web"})(f)
		}, "ZDT033"},
		{"somebody else answers", func(f *Facts) { f.Live.Silent, f.Live.Elsewhere = "pid 7 answers, the main process is pid 6", 7 }, "ZDT033"},
		{"not zdt's", func(f *Facts) {
			f.Unmanaged = true
			service("Type", "simple")(f)
			service("Restart", "no")(f)
			service("ExecReload", [][]any{})(f)
		}, "ZDT034"},
		{"not zdt's, and it could not be", func(f *Facts) {
			f.Unmanaged = true
			socket("Accept", true)(f)
		}, "ZDT016 ZDT034"},
		{"the socket unit was edited", func(f *Facts) {
			f.Live.Listeners[0].Held, f.Live.Listeners[0].Loose = false, true
			socket("Listen", [][]any{{"Stream", "127.0.0.1:8081"}})(f)
		}, "ZDT036"},
		{"edited there and back", func(f *Facts) { f.Live.Listeners[0].Held, f.Live.Listeners[0].Loose = false, true }, "ZDT036"},
		{"the socket unit was edited, for all that is known", func(f *Facts) {
			f.Live = Live{}
			socket("Listen", [][]any{{"Stream", "127.0.0.1:8081"}})(f)
		}, "ZDT036"},
		{"a socket unit with other kinds of sockets", func(f *Facts) {
			f.Live = Live{}
			socket("Listen", [][]any{{"Stream", "127.0.0.1:8081"}, {"FIFO", "/run/web.pipe"}})(f)
		}, ""},
		{"systemd has it, whatever the unit is called", func(f *Facts) { socket("Listen", [][]any{{"Stream", "localhost:80"}})(f) }, ""},
		{"in the store of descriptors", func(f *Facts) { f.Sockets = nil }, ""},
		{"a predecessor", func(f *Facts) { f.Runtime.Predecessor = &control.Peer{PID: 7, Generation: 1} }, "ZDT035"},
		{"a handoff", func(f *Facts) { f.Runtime.Handoff, f.Runtime.Phase = &control.Handoff{Candidate: 9}, control.Held }, "ZDT035"},
		{"a short queue", func(f *Facts) { f.Live.LongestQueue, f.Live.Listeners[0].Queue = 128, 128 }, "ZDT038"},
		{"a queue that was short", func(f *Facts) { f.Live.Listeners[0].Queue = 128 }, "ZDT038"},
		{"as long as may be", func(f *Facts) {
			f.Live.Listeners[0].Queue = 128
			socket("Backlog", uint32(1<<31-1))(f)
		}, ""},
		{"another program", func(f *Facts) { f.Live.Starts = "/usr/bin/web" }, "ZDT037"},
		{"a program in a release's directory", func(f *Facts) { f.Live.Starts = "/var/lib/zdt/web/current/bin/web" }, ""},
		{"as long as may be, since systemd 254", func(f *Facts) { socket("Backlog", uint32(1<<31-1))(f) }, ""},
		{"a program that listens once more", func(f *Facts) { helper(f); f.Live.Listeners[0].Queue = 511 }, ""},
		{"the helper's short queue", func(f *Facts) { helper(f); f.Live.LongestQueue, f.Live.Listeners[0].Queue = 128, 128 }, "ZDT038"},
		{"no release", func(f *Facts) { f.Live.Damage = "no such release" }, "ZDT040"},
		{"a blocking socket", func(f *Facts) { f.Live.Listeners[0].Blocking = true }, "ZDT039"},
		{"a blocking socket that is only passed on", func(f *Facts) { f.Live.Listeners[0].Blocking, f.Runtime.Sockets[0].InUse = true, false }, ""},
		{"the helper's sockets are blocking", func(f *Facts) { helper(f); f.Live.Listeners[0].Blocking = true }, ""},
		{"an old systemd", func(f *Facts) { f.Systemd = 246 }, "ZDT063"},
		{"no journald", func(f *Facts) { f.Journal.Absent = "connection refused" }, "ZDT055"},
		{"no journal", func(f *Facts) { f.Journal.Storage = "none" }, "ZDT055"},
		{"a journal in memory", func(f *Facts) { f.Journal.Storage, f.Journal.MaxLevelStore = "volatile", "6" }, ""},
		{"a journal of errors", func(f *Facts) { f.Journal.MaxLevelStore = "err" }, "ZDT055"},
		{"another journal", service("LogNamespace", "x"), "ZDT055"},
		{"warnings only", service("LogLevelMax", int32(4)), "ZDT055"},
		{"all but debug", service("LogLevelMax", int32(6)), ""},
		{"no LogLevelMax=", service("LogLevelMax", int32(-1)), ""},
		{"hardly a line", func(f *Facts) {
			service("LogRateLimitIntervalUSec", 30*second)(f)
			service("LogRateLimitBurst", uint32(2))(f)
		}, "ZDT055"},
		{"an ordinary rate limit", func(f *Facts) {
			service("LogRateLimitIntervalUSec", 30*second)(f)
			service("LogRateLimitBurst", uint32(200))(f)
		}, ""},
		{"no rate limit", func(f *Facts) {
			service("LogRateLimitIntervalUSec", uint64(0))(f)
			service("LogRateLimitBurst", uint32(2))(f)
		}, ""},
		{"printed elsewhere, nobody reads it", prints("null", "inherit"), ""},
		{"a gate reads it", gates(lines), ""},
		{"a gate, and no journald", func(f *Facts) { gates(lines, errors)(f); f.Journal.Absent = "connection refused" }, "ZDT056"},
		{"a gate, and another journal", func(f *Facts) { gates(errors)(f); service("LogNamespace", "x")(f) }, "ZDT056"},
		{"a gate, printed elsewhere", func(f *Facts) { gates(lines)(f); prints("file", "inherit")(f) }, "ZDT056"},
		{"a gate, half of it printed elsewhere", func(f *Facts) { gates(lines)(f); prints("null", "journal")(f) }, ""},
		{"a gate, printed who knows where", func(f *Facts) { gates(lines)(f); prints("inherit", "inherit")(f) }, ""},
		{"a gate of lines, and only warnings", func(f *Facts) { gates(lines)(f); service("LogLevelMax", int32(4))(f) }, "ZDT056"},
		{"a gate of errors, and only warnings", func(f *Facts) { gates(errors)(f); service("LogLevelMax", int32(4))(f) }, ""},
		{"a gate of errors, and only alerts", func(f *Facts) { gates(errors)(f); f.Journal.MaxLevelStore = "alert" }, "ZDT056"},
		{"another pid namespace", func(f *Facts) { f.Host.Unseen = 42 }, "ZDT057"},
		{"no right to look", func(f *Facts) { f.Host.Unreadable = "readlink /proc/42/exe: permission denied" }, "ZDT058"},
		{"another control group namespace", func(f *Facts) { f.Host.Group = "/../web.service" }, "ZDT059"},
		{"no pidfd", func(f *Facts) { f.Host.NoPidfd = "function not implemented" }, "ZDT060"},
		{"numbers of its own", service("PrivatePIDs", "yes"), "ZDT061"},
		{"no numbers of its own", service("PrivatePIDs", "no"), ""},
		{"a gate that is answered", gates(Gate{Text: "tcp:[::1]:8080", Network: "tcp", Address: "[::1]:8080"}), ""},
		{"a gate that nobody answers", gates(Gate{Text: "tcp:[::1]:80", Network: "tcp", Address: "[::1]:80", Unanswered: true}), "ZDT062"},
		{"a gate that is none", gates(Gate{Text: "nonsense", Problem: "what is nonsense?"}), "ZDT064"},
		{"long requests", func(f *Facts) { f.Balancer.LongestRequest = 31 * time.Second }, "ZDT070"},
		{"requests that are just short enough", func(f *Facts) { f.Balancer.LongestRequest = 30 * time.Second }, ""},
		{"long requests, and a runtime that knows", func(f *Facts) {
			f.Balancer.LongestRequest = 31 * time.Second
			service("Environment", []string{"ZDT_DRAIN_TIMEOUT=32s"})(f)
		}, ""},
		{"a load balancer that waits", func(f *Facts) { f.Balancer = Balancer{IdleTimeout: time.Minute, ClosedIdle: 3} }, "ZDT071"},
		{"a load balancer that waits, of what can move", func(f *Facts) { f.Balancer.IdleTimeout = time.Minute }, ""},
		{"a load balancer that waits less than the old program", func(f *Facts) {
			f.Balancer = Balancer{IdleTimeout: time.Minute, ClosedIdle: 3}
			service("Environment", []string{"A=b", "ZDT_IDLE_GRACE=61s"})(f)
		}, ""},
		{"a load balancer that waits for a foreign program", func(f *Facts) {
			helper(f)
			f.Balancer = Balancer{IdleTimeout: time.Minute, ClosedIdle: 3}
		}, ""},
		{"the worst first", func(f *Facts) {
			service("Restart", "no")(f)
			service("ExecStartPost", [][]any{{"/usr/bin/choom", []string{"/usr/bin/choom", "-p", "$MAINPID"}}})(f)
			service("Type", "simple")(f)
		}, "ZDT001 ZDT007 ZDT084"},
		{"all may speak", service("NotifyAccess", "all"), "ZDT080"},
		{"all may speak during a drain", func(f *Facts) {
			service("NotifyAccess", "all")(f)
			f.Runtime.Predecessor = &control.Peer{Generation: 1}
		}, "ZDT035"},
		{"started again after success", service("Restart", "on-success"), "ZDT081"},
		{"started again after failures", service("Restart", "on-failure"), ""},
		{"but not after a panic", service("RestartPreventExitStatus", []any{[]int32{2, 78}, []int32{}}), "ZDT081"},
		{"nor when it was killed", service("RestartPreventExitStatus", []any{[]int32{}, []int32{9}}), "ZDT081"},
		{"a status of one's own", service("RestartPreventExitStatus", []any{[]int32{78}, []int32{15}}), ""},
		{"a panic is a success", func(f *Facts) {
			service("Restart", "on-failure")(f)
			service("SuccessExitStatus", []any{[]int32{2}, []int32{}})(f)
		}, "ZDT081"},
		{"and starts it again", service("SuccessExitStatus", []any{[]int32{2}, []int32{}}), ""},
		{"a job", service("Job", []any{uint32(7), "/org/freedesktop/systemd1/job/7"}), "ZDT083"},
		{"a reload", func(f *Facts) {
			service("Job", []any{uint32(7), "/org/freedesktop/systemd1/job/7"})(f)
			service("ActiveState", "reloading")(f)
		}, ""},
		{"a stranger's number", service("ExecStartPost", [][]any{{"/bin/true", []string{"/bin/true"}}}), ""},
		{"the helper's number", func(f *Facts) {
			helper(f)
			service("ExecStartPost", [][]any{{"/usr/bin/choom", []string{"/usr/bin/choom", "-p", "$MAINPID"}}})(f)
		}, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := good()
			tt.spoil(&f)
			var got []string
			for _, found := range Look(f) {
				got = append(got, found.ID)
				if found.Seen == "" || found.Why == "" || found.Fix == "" {
					t.Errorf("finding without words: %+v", found)
				}
				if (found.DropIn == "") != (found.Unit == "") {
					t.Errorf("a drop-in of no unit: %+v", found)
				}
			}
			if ids := strings.Join(got, " "); ids != tt.want {
				t.Errorf("got %q, want %q", ids, tt.want)
			}
		})
	}
}

// Every check that looks is one that the table above has seen.
func TestChecksAreTested(t *testing.T) {
	var looked []string
	for _, c := range Catalog() {
		if c.look != nil {
			looked = append(looked, c.ID)
		}
	}
	source := readFile(t, "unit_test.go")
	if i := slices.IndexFunc(looked, func(id string) bool { return !strings.Contains(source, id) }); i >= 0 {
		t.Errorf("%s has no test", looked[i])
	}
}

func readFile(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
