package helper

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

func TestParseAccess(t *testing.T) {
	for text, want := range map[string]access{"": accessMain, "main": accessMain, "group": accessGroup} {
		if got, err := parseAccess(text); got != want || err != nil {
			t.Errorf("%q: %v, %v", text, got, err)
		}
	}
	if _, err := parseAccess("all"); err == nil {
		t.Error("all is accepted")
	}
}

func TestMailboxKnowsItsSenders(t *testing.T) {
	otherGroup := func(c *exec.Cmd) { c.SysProcAttr.Setpgid = true }
	otherUser := func(c *exec.Cmd) {
		c.SysProcAttr.Credential = &syscall.Credential{Uid: 65534, Gid: 65534}
	}
	main, group := band{Leader: unix.Getpgrp()}, band{unix.Getpgrp(), accessGroup}
	for _, tt := range []struct {
		what   string
		band   band
		change func(*exec.Cmd)
		end    string // "", "zombie", "reaped": what became of the sender before it was heard
		root   bool
		want   error
	}{
		{what: "main: another process", band: main, want: errSenderGroup},
		{what: "group: another process of it", band: group},
		{what: "group: not of it", band: group, change: otherGroup, want: errSenderGroup},
		{what: "group: has ended", band: group, end: "zombie"},
		{what: "group: nobody knows it any more", band: group, end: "reaped", want: errSenderGone},
		{what: "group: of another user", band: group, change: otherUser, root: true, want: errSenderUID},
		{what: "main: the leader as another user", band: band{}, change: otherUser, root: true, want: errSenderUID},
		{what: "main: the leader", band: band{}},
	} {
		for _, pidfd := range []int{1, 0} {
			t.Run(fmt.Sprintf("%s pidfd=%d", tt.what, pidfd), func(t *testing.T) {
				if tt.root && os.Getuid() != 0 {
					t.Skip("only root can become another user")
				}
				m, err := openMailbox("", 7)
				if err != nil {
					t.Fatal(err)
				}
				defer m.Close()
				raw, err := m.file.SyscallConn()
				if err != nil {
					t.Fatal(err)
				}
				// Kernels before 6.5 do without; so can this.
				raw.Control(func(fd uintptr) { unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_PASSPIDFD, pidfd) })

				cmd := player("notify", "NOTIFY_SOCKET="+m.Path(), "TEXT=READY=1")
				if tt.change != nil {
					tt.change(cmd)
				}
				stdin, err := cmd.StdinPipe()
				if err != nil {
					t.Fatal(err)
				}
				stdout, err := cmd.StdoutPipe()
				if err != nil {
					t.Fatal(err)
				}
				if err := cmd.Start(); err != nil {
					t.Fatal(err)
				}
				reap := func() { stdin.Close(); cmd.Wait() }
				io.Copy(io.Discard, stdout) // until it has spoken
				switch tt.end {
				case "reaped":
					reap()
				case "zombie":
					stdin.Close()
					unix.Waitid(unix.P_PID, cmd.Process.Pid, nil, unix.WEXITED|unix.WNOWAIT, nil)
					defer reap()
				default:
					defer reap()
				}
				b := tt.band
				if b == (band{}) {
					b.Leader = cmd.Process.Pid
				}
				if err := m.listen(b); err != nil {
					t.Fatal(err)
				}
				if tt.want == nil {
					if n := next(t, m); n.PID != cmd.Process.Pid || !n.says("READY", "1") {
						t.Errorf("%+v", n)
					}
					return
				}
				eventually(t, "the message is dropped", func() bool { return m.Counts() == mailCounts{Strangers: 1} })
				if want := fmt.Sprintf("process %d %v", cmd.Process.Pid, tt.want); !strings.Contains(m.Dropped(), want) {
					t.Errorf("dropped: %s; want %s", m.Dropped(), want)
				}
			})
		}
	}
}
