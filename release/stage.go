package release

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

const (
	programMode = 0o555
	copyChunk   = 1 << 20 // bytes between two looks at the context
	// tempPrefix starts the name of a directory that is being made or deleted.
	// ValidID never accepts it.
	tempPrefix = ".tmp-"
)

// StageOptions say what is expected of a source, and what is noted about it.
type StageOptions struct {
	// SHA256 is the checksum that the source must have, hex, optionally with
	// "sha256:" in front: that of the file, also of an archive; of a directory the
	// one that Stage gives to its content. Empty: any content will do.
	SHA256 string
	// Exec is the path of the program within an archive or a directory. Empty: the
	// file that is called like the program, at the top or else the only one.
	Exec string
	// Signature is the path of the detached signature of the file, and Keys are
	// those that may have made it.
	Signature string
	Keys      Keys
	// Require is the service's policy: without what it asks for there is no
	// release. One that was staged and verified before needs no signature again.
	Require Require
	// Who and Why are kept in the record of a new release.
	Who *Who
	Why string
}

// Stage copies the program in the file src into a release of its own and
// returns it. When it returns without an error the release is on the disk, with
// the content that was hashed; when it returns an error nothing is left behind.
//
// The source is opened once, following a symbolic link as open(2) does, and
// everything is read through that one descriptor. It must be a regular file
// that nobody is writing to, or a directory. Its mode does not matter, the copy
// gets 0555; set-uid bits and file capabilities are not taken over.
//
// An archive (.tar, .tar.gz, known by its content) or a directory becomes a
// release with all its files. Absolute paths, "..", links that lead out, devices
// and set-uid files are refused. The main program is reachable as
// current/<Program> wherever it lies.
//
// A signature is verified against the bytes that are staged. Of a program those
// of the copy are read; an archive is read before it is unpacked, and the bytes
// that are unpacked must have the same checksum.
//
// Staging content that is there already returns the earlier release, after its
// content was checked, and changes nothing but what is known about its signature:
// so a file that failed can be tried again as it is. A path within the store
// means the release that it lies in. Callers that go on to use the release should
// hold the service's lock, or Prune may take it away in between.
func (s *Store) Stage(ctx context.Context, src string, o StageOptions) (Release, error) {
	r, err := s.stage(ctx, src, o)
	var bad *SignatureError
	if errors.As(err, &bad) {
		err = bad // which copy was read says nothing to the operator
	}
	if err != nil {
		return Release{}, fmt.Errorf("stage %q: %w", src, withSpaceHint(err, s.dir))
	}
	return r, nil
}

// A staging is one call of Stage.
type staging struct {
	*Store
	StageOptions
	want      string // SHA256, checked
	signature *detached
	releases  *os.File
	in        *source
	recovered *Recovered
}

func (s *Store) stage(ctx context.Context, src string, o StageOptions) (Release, error) {
	g := &staging{Store: s, StageOptions: o}
	if err := g.check(); err != nil {
		return Release{}, err
	}
	if id := s.releaseOf(src); id != "" {
		return g.own(ctx, id)
	}
	do := s.steps("stage")
	if err := do("open source", func() (err error) { g.in, err = openSource(ctx, src); return err }); err != nil {
		return Release{}, err
	}
	defer g.in.Close()
	return g.run(ctx)
}

// check looks at the options.
func (g *staging) check() error {
	if g.program == "" {
		return errors.New("the store was opened without the name of the program")
	}
	var err error
	if g.StageOptions.SHA256 != "" {
		if g.want, err = parseSum(g.StageOptions.SHA256); err != nil {
			return err
		}
	}
	if g.Signature == "" {
		return nil
	}
	sig, err := readSignature(g.Signature)
	if err != nil {
		return err
	}
	if !g.Require.takes(sig.format) {
		return &SignatureError{sig.path, fmt.Errorf("is one of %s, and the service requires one of %s", sig.format, g.Require), ""}
	}
	g.signature = &sig
	return nil
}

// run makes a release of g.in, or finds it.
func (g *staging) run(ctx context.Context) (Release, error) {
	if g.in.kind == sourceFile && g.Exec != "" {
		return Release{}, hint(errors.New("--exec is for archives and directories, and this is a file"), "leave it out")
	}
	if g.in.kind == sourceDir && g.signature != nil {
		return Release{}, hint(errors.New("a directory cannot have a signature"), "make a tar of it and sign that")
	}
	do := g.steps("stage")
	var unlock func()
	if err := do("lock", func() (err error) { unlock, err = g.lock(ctx); return err }); err != nil {
		return Release{}, err
	}
	defer unlock()
	releases, err := g.openReleases(true)
	if err != nil {
		return Release{}, err
	}
	defer releases.Close()
	g.releases = releases
	if err := checkExecutable(releases); err != nil {
		return Release{}, err
	}
	if err := do("sweep", func() error { return sweep(ctx, releases) }); err != nil {
		return Release{}, err
	}
	if g.in.kind != sourceFile {
		return g.stageTree(ctx)
	}
	r, err := g.findStaged(ctx)
	if err != nil {
		return Release{}, err
	}
	if r.ID == "" {
		return g.copyIn(ctx)
	}
	d, err := g.openRelease(releases, r.ID)
	if err != nil {
		return Release{}, err
	}
	defer d.Close()
	var sig *Signature
	if g.signature != nil {
		if sig, err = g.verified(ctx, func(f func(io.Reader) error) error {
			return readProgram(ctx, d, r.Program, r.SHA256, f)
		}); err != nil {
			return Release{}, err
		}
	}
	return g.again(r, d, sig)
}

// own returns a release that is named by its path in the store.
func (g *staging) own(ctx context.Context, id string) (Release, error) {
	r, err := g.Get(id)
	if err != nil {
		return r, err
	}
	if g.want != "" && g.want != r.SHA256 && (r.Archive == nil || g.want != r.Archive.SHA256) {
		return Release{}, &ChecksumError{Path: r.Path, Want: g.want, Got: r.SHA256}
	}
	if g.signature != nil {
		return Release{}, hint(errors.New("a release of the store gets no signature afterwards"), "stage the file that it was made from again, with --signature")
	}
	if err := g.Keys.Believe(r, g.Require); err != nil {
		return Release{}, err
	}
	return r, g.Verify(ctx, r)
}

// again is what happens with content that is there already, as r in d: what was
// verified about it now is noted.
func (g *staging) again(r Release, d *os.File, sig *Signature) (Release, error) {
	do := g.steps("stage")
	if sig == nil {
		if err := g.Keys.Believe(r, g.Require); err != nil {
			return Release{}, err
		}
	} else if old := r.Signature; old == nil || old.Format != sig.Format || old.Key != sig.Key {
		r.Signature = sig
		if err := do("sweep record", func() error { return sweepTempsAt(d, recordFile) }); err != nil {
			return Release{}, err
		}
		if err := g.writeRecord(d, r); err != nil {
			return Release{}, err
		}
		r.Noted = true
	}
	// It may stem from a run that died between the rename and this.
	return r, do("fsync releases", g.releases.Sync)
}

// verified verifies the signature; nil if there is none, and none is needed.
func (g *staging) verified(ctx context.Context, read func(func(io.Reader) error) error) (*Signature, error) {
	if g.signature == nil {
		return nil, read(nil)
	}
	var sig Signature
	err := read(func(message io.Reader) (err error) {
		sig, err = g.Keys.verify(ctx, *g.signature, message, g.in.size)
		return err
	})
	if err != nil {
		return nil, err
	}
	sig.VerifiedAt = g.now().UTC().Truncate(time.Second)
	return &sig, nil
}

// unsigned refuses to copy what could not be used.
func (g *staging) unsigned() error {
	if g.signature == nil && g.Require.Needed() {
		return hint(fmt.Errorf("%w (RequireSignature=%s)", ErrUnsigned, g.Require), "give its signature with --signature FILE")
	}
	return nil
}

// findStaged returns the release that already holds the content of the source, or
// a zero Release. To spare a new version the second reading, the source is only
// hashed when a release of the same size exists.
func (g *staging) findStaged(ctx context.Context) (Release, error) {
	list, err := g.list(g.releases)
	if err != nil {
		return Release{}, err
	}
	var sum string
	for _, r := range list {
		if r.Damage != nil || r.Tree != nil || r.Program != g.program || r.Size != g.in.size {
			continue
		}
		if sum == "" {
			if sum, err = g.in.hash(ctx); err != nil {
				return Release{}, err
			}
			if g.want != "" && sum != g.want {
				return Release{}, &ChecksumError{Path: g.in.path, Want: g.want, Got: sum}
			}
		}
		// A release that was tampered with must not swallow a good file.
		if r.SHA256 == sum && g.verify(ctx, g.releases, r) == nil {
			return r, nil
		}
	}
	return Release{}, ctx.Err()
}

// copyIn makes a new release of a program.
func (g *staging) copyIn(ctx context.Context) (_ Release, err error) {
	if err := g.unsigned(); err != nil {
		return Release{}, err
	}
	do := g.steps("stage")
	b, err := g.begin()
	if err != nil {
		return Release{}, err
	}
	defer func() { err = b.end(err) }()
	sum, err := g.copyProgram(ctx, b.d, g.in)
	if err != nil {
		return Release{}, err
	}
	if g.want != "" && sum != g.want {
		return Release{}, &ChecksumError{Path: g.in.path, Want: g.want, Got: sum}
	}
	r := g.describe(sum)
	r.Size, r.Build, r.Dropped = g.in.size, readBuild(g.in.f), g.in.dropped()
	if err := do("re-hash", func() (err error) {
		r.Signature, err = g.verified(ctx, func(f func(io.Reader) error) error {
			return readProgram(ctx, b.d, g.program, sum, f)
		})
		return err
	}); err != nil {
		return Release{}, err
	}
	return b.publish(r)
}

// describe is what is known about any release of content sum. It has no ID yet.
func (g *staging) describe(sum string) Release {
	return Release{
		Schema: releaseSchema, Program: g.program, SHA256: sum, Source: g.in.path,
		StagedAt: g.now().UTC().Truncate(time.Second), Who: g.Who, Why: g.Why, Recovered: g.recovered,
	}
}

// copyProgram copies in into the directory d and returns the SHA-256 of the
// bytes it has read.
func (s *Store) copyProgram(ctx context.Context, d *os.File, in *source) (sum string, err error) {
	do := s.steps("stage")
	var out *os.File
	if err := do("create file", func() error {
		fd, err := unix.Openat(int(d.Fd()), s.program, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
		if err != nil {
			return err
		}
		out = os.NewFile(uintptr(fd), filepath.Join(d.Name(), s.program))
		return nil
	}); err != nil {
		return "", err
	}
	defer func() {
		if out != nil {
			err = errors.Join(err, out.Close())
		}
	}()

	if err := do("check room", func() error { return checkRoom(out, in.size) }); err != nil {
		return "", err
	}
	if err := do("copy", func() (err error) { sum, err = in.copyTo(ctx, out); return err }); err != nil {
		return "", err
	}
	if err := do("source unchanged", in.unchanged); err != nil {
		return "", err
	}
	if err := do("chmod", func() error { return out.Chmod(programMode) }); err != nil {
		return "", err
	}
	if err := do("fsync file", out.Sync); err != nil {
		return "", err
	}
	f := out
	out = nil
	if err := do("close file", f.Close); err != nil {
		f.Close()
		return "", err
	}
	return sum, do("settle", func() error { return settle(ctx, d, s.program) })
}

// checkRoom tells now, not after minutes, that the disk is full. fallocate(2) would also keep the room free, but some
// file systems clear it first, which takes half as long as the copy; whoever takes it meanwhile is noticed by the copy.
func checkRoom(out *os.File, size int64) error {
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(out.Fd()), &st); err != nil {
		return err
	}
	// Those that root alone may use are free as well. Where there is no limit there are no blocks either.
	if st.Blocks > 0 && st.Bfree < uint64(size)/uint64(max(st.Bsize, 1)) {
		return unix.ENOSPC
	}
	return nil
}

// checkExecutable refuses a store whose programs the kernel would not run.
func checkExecutable(releases *os.File) error {
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(releases.Fd()), &st); err != nil {
		return err
	}
	if st.Flags&unix.ST_NOEXEC != 0 {
		return hint(fmt.Errorf("%s is on a file system mounted noexec", releases.Name()),
			"mount it with exec, or a file system of its own on /var/lib/zdt")
	}
	return nil
}
