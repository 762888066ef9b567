package upgrade

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// listen receives what the service tells.
func (s *systemd) listen() {
	defer s.wg.Done()
	buf, oob := make([]byte, 4096), make([]byte, 4096)
	for {
		n, oobn, _, _, err := s.notify.ReadMsgUnix(buf, oob)
		if err != nil {
			return
		}
		sender, fds := 0, []int(nil)
		messages, _ := unix.ParseSocketControlMessage(oob[:oobn])
		for _, m := range messages {
			if cred, err := unix.ParseUnixCredentials(&m); err == nil {
				sender = int(cred.Pid)
			}
			if got, err := unix.ParseUnixRights(&m); err == nil {
				fds = append(fds, got...)
			}
		}
		s.told(sender, strings.Split(string(buf[:n]), "\n"))
		for _, fd := range fds { // the barrier
			unix.Close(fd)
		}
	}
}

func (s *systemd) told(sender int, lines []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if sender != s.unit.MainPID && !s.all {
		return
	}
	for _, l := range lines {
		name, value, _ := strings.Cut(l, "=")
		switch name {
		case "READY":
			if s.unit.ActiveState == "activating" {
				s.setLocked(func(u *Unit) { u.ActiveState = "active" })
			}
		case "MAINPID":
			pid, _ := strconv.Atoi(value)
			if pid == s.unit.MainPID || s.mute {
				continue
			}
			if ofUnit(pid, s.dir) && sender != pid { // the sender's own end is followed already
				s.superviseLocked(pid, sender)
			}
			s.setLocked(func(u *Unit) { u.MainPID = pid })
		case "NOTIFYACCESS":
			if !s.old {
				s.all = value == "all"
			}
		case "STATUS":
			s.setLocked(func(u *Unit) { u.StatusText = value })
		}
	}
}

// reclaim is Host.Reclaim.
func (s *systemd) reclaim(ctx context.Context, ask func(context.Context) error) error {
	s.mu.Lock()
	before := s.all
	s.all = true
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		s.all = before
		s.mu.Unlock()
	}()
	return ask(ctx)
}

// serveBus streams the unit's states to who connects.
func (s *systemd) serveBus() {
	defer s.wg.Done()
	for {
		c, err := s.bus.Accept()
		if err != nil {
			return
		}
		s.wg.Add(1)
		go func() {
			defer s.wg.Done()
			defer c.Close()
			ctx, cancel := context.WithCancel(context.Background())
			defer cancel()
			s.wg.Add(1)
			go func() {
				defer s.wg.Done()
				if n, _ := c.Read(make([]byte, 1)); n > 0 { // not its end: it asks for a reload
					s.reload(context.Background()) // which goes on without it
				}
				cancel()
			}()
			units, err := s.watch(ctx)
			if err != nil {
				return
			}
			enc := json.NewEncoder(c)
			for u := range units {
				if enc.Encode(u) != nil {
					cancel()
				}
			}
		}()
	}
}

// close ends every process of the unit and waits for it.
func (s *systemd) close() {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.hangUp(nil)
	for {
		pids := s.processes()
		if len(pids) == 0 {
			break
		}
		for _, pid := range pids {
			unix.Kill(pid, unix.SIGKILL)
			unix.Wait4(pid, nil, unix.WNOHANG, nil)
		}
		pause(context.Background(), poll)
	}
	s.notify.Close()
	s.bus.Close()
	s.wg.Wait()
	if s.t.Failed() {
		log, _ := os.ReadFile(filepath.Join(s.dir, "log"))
		s.t.Logf("log of the unit:\n%s", log)
	}
}
