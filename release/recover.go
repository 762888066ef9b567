package release

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Recovered tells of which process a release was taken.
type Recovered struct {
	PID     int       `json:"pid"`
	Deleted bool      `json:"deleted,omitempty"` // its file was no longer there
	At      time.Time `json:"at"`
}

// Recover makes a release of the program that the process p executes, also when
// its file was deleted or replaced: copying a new version over the running one
// (scp, a module of Ansible) takes the old one's name away, and without it there
// is nothing to go back to. The kernel keeps the bytes as long as p lives, and
// lets nobody write to them.
//
// If the release that p was started from is sound it is returned, as it is when
// the same content is there under any name; then nothing is copied. What an
// interpreter runs cannot be recovered: the kernel only knows the interpreter. Nor
// can a release that is a directory, of which p executes one file.
//
// A policy about signatures is not asked: the program runs. Believe tells later
// that the release is not signed. If p has ended the error is fs.ErrNotExist.
func (s *Store) Recover(ctx context.Context, p Proc, o StageOptions) (Release, error) {
	r, err := s.recover(ctx, p, o)
	if err != nil {
		if errors.Is(err, fs.ErrPermission) {
			err = hint(err, "only root, or the user whose process it is, can read the program of a process")
		}
		return Release{}, fmt.Errorf("recover the program of process %d: %w", p.PID, withSpaceHint(err, s.dir))
	}
	return r, nil
}

func (s *Store) recover(ctx context.Context, p Proc, o StageOptions) (Release, error) {
	o.Require, o.Signature, o.Exec = RequireNone, "", ""
	g := &staging{Store: s, StageOptions: o}
	if err := g.check(); err != nil {
		return Release{}, err
	}
	do := s.steps("recover")
	if err := do("open program", func() (err error) { g.in, g.recovered, err = openRunning(ctx, p); return err }); err != nil {
		return Release{}, err
	}
	defer g.in.Close()
	g.recovered.At = s.now().UTC().Truncate(time.Second)

	id, below := s.inStore(g.in.path)
	if r, err := s.Get(id); id != "" && err == nil && (g.want == "" || g.want == r.SHA256) && sameInode(filepath.Join(filepath.Dir(r.Path), below), g.in.st) {
		if err := s.Verify(ctx, r); err == nil {
			return r, nil
		}
	}
	switch name := filepath.Base(g.in.path); {
	case strings.Contains(below, "/"):
		return Release{}, hint(fmt.Errorf("it executes %s of release %s, which was a directory and is not sound any more", below, id),
			"stage the archive that it was made from again")
	case name != s.program && !isVersionOf(name, s.program):
		return Release{}, hint(fmt.Errorf("it executes %s, which is not %s", g.in.path, s.program),
			"a script cannot be recovered, for the kernel knows only its interpreter: stage its file")
	}
	return g.run(ctx)
}

// isVersionOf tells whether a file is called like the program with something
// behind, web-1.4.3 or web_linux_amd64.
func isVersionOf(name, program string) bool {
	rest, ok := strings.CutPrefix(name, program)
	return ok && rest != "" && strings.ContainsRune("-_.", rune(rest[0]))
}

// inStore finds the release that path names, which need not exist any more, and
// what is named within it.
func (s *Store) inStore(path string) (id, below string) {
	dir := filepath.Join(s.dir, releasesDir)
	if real, err := filepath.EvalSymlinks(dir); err == nil {
		dir = real
	}
	rest, ok := strings.CutPrefix(path, dir+"/")
	if !ok {
		return "", ""
	}
	id, below, ok = strings.Cut(rest, "/")
	if !ok || !ValidID(id) {
		return "", ""
	}
	return id, below
}

func sameInode(path string, st unix.Stat_t) bool {
	var now unix.Stat_t
	return unix.Lstat(path, &now) == nil && now.Dev == st.Dev && now.Ino == st.Ino
}

// openRunning opens the file that p executes, as a source.
func openRunning(ctx context.Context, p Proc) (_ *source, _ *Recovered, err error) {
	// As long as the process that the pidfd holds is not reaped nobody else gets its
	// number: if it is there at the end, all that was read in between was its.
	fd, err := unix.PidfdOpen(p.PID, 0)
	if errors.Is(err, unix.ESRCH) || errors.Is(err, unix.EINVAL) {
		return nil, nil, fmt.Errorf("it has ended: %w", fs.ErrNotExist)
	}
	if err != nil {
		return nil, nil, os.NewSyscallError("pidfd_open", err)
	}
	defer unix.Close(fd)
	if now, err := ProcOf(p.PID); err != nil || now != p {
		return nil, nil, fmt.Errorf("it has ended, its number is another's: %w", fs.ErrNotExist)
	}
	magic := "/proc/" + strconv.Itoa(p.PID) + "/exe"
	in := &source{}
	if in.path, err = os.Readlink(magic); err != nil {
		return nil, nil, err
	}
	if err := retry(func() error { return unix.Stat(magic, &in.st) }); err != nil {
		return nil, nil, &fs.PathError{Op: "stat", Path: magic, Err: err}
	}
	if in.st.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil, nil, errors.New("what it executes is not a regular file")
	}
	if err := in.open(magic, in.path); err != nil {
		return nil, nil, &fs.PathError{Op: "open", Path: magic, Err: err}
	}
	defer func() {
		if err != nil {
			in.Close()
		}
	}()
	var opened unix.Stat_t
	if err := unix.Fstat(int(in.f.Fd()), &opened); err != nil {
		return nil, nil, err
	}
	if opened.Dev != in.st.Dev || opened.Ino != in.st.Ino {
		return nil, nil, hint(errors.New("it has executed another program meanwhile"), "try again")
	}
	poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	n, err := unix.Poll(poll, 0)
	if err != nil && !errors.Is(err, unix.EINTR) {
		return nil, nil, os.NewSyscallError("poll", err)
	}
	if n != 0 {
		return nil, nil, fmt.Errorf("it has ended: %w", fs.ErrNotExist)
	}
	rec := &Recovered{PID: p.PID}
	// The kernel says so behind the path; but a file can also be called that.
	if name, ok := strings.CutSuffix(in.path, " (deleted)"); ok && !sameInode(in.path, in.st) {
		in.path, rec.Deleted = name, true
	}
	return in, rec, lease(ctx, in.f)
}
