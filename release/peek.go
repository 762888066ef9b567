package release

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
)

// A Peek is what Stage would make of a source.
type Peek struct {
	// Release is the one that is there already with this content, or else what is known of the one that would be made:
	// it has no ID then and, of a directory, no SHA256.
	Release Release
	// Staged: it is there already.
	Staged bool
}

// Peek looks at a source as Stage does, and changes nothing: it takes no lock, and refuses what Stage would refuse for the
// checksum or the signature. What becomes of an archive or a directory when it is unpacked is seen by Stage alone.
func (s *Store) Peek(ctx context.Context, src string, o StageOptions) (Peek, error) {
	p, err := s.peek(ctx, src, o)
	var bad *SignatureError
	if errors.As(err, &bad) {
		err = bad
	}
	if err != nil {
		return Peek{}, fmt.Errorf("stage %q: %w", src, err) // as Stage says it
	}
	return p, nil
}

func (s *Store) peek(ctx context.Context, src string, o StageOptions) (Peek, error) {
	g := &staging{Store: s, StageOptions: o}
	if err := g.check(); err != nil {
		return Peek{}, err
	}
	if id := s.releaseOf(src); id != "" {
		r, err := g.own(ctx, id)
		return Peek{Release: r, Staged: err == nil}, err
	}
	var err error
	if g.in, err = openSource(ctx, src); err != nil {
		return Peek{}, fmt.Errorf("open source: %w", err)
	}
	defer g.in.Close()
	switch {
	case g.in.kind == sourceFile && g.Exec != "":
		return Peek{}, hint(errors.New("--exec is for archives and directories, and this is a file"), "leave it out")
	case g.in.kind == sourceDir && g.signature != nil:
		return Peek{}, hint(errors.New("a directory cannot have a signature"), "make a tar of it and sign that")
	case g.in.kind == sourceDir && g.Require.Needed():
		return Peek{}, hint(fmt.Errorf("%w (RequireSignature=%s), and a directory cannot be", ErrUnsigned, g.Require), "make a tar of it and sign that")
	}
	r := Release{Program: g.program, Source: g.in.path}
	if g.in.kind == sourceDir {
		r.Tree = &Tree{Asked: g.Exec}
		return Peek{Release: r}, nil
	}
	r.Size = g.in.size
	sum, err := g.peekSum(ctx)
	if err != nil {
		return Peek{}, err
	}
	if g.want != "" && sum != g.want {
		return Peek{}, &ChecksumError{Path: g.in.path, Want: g.want, Got: sum}
	}
	if err := g.in.unchanged(); err != nil {
		return Peek{}, err
	}
	old, err := g.peekStaged(ctx, sum)
	if err != nil {
		return Peek{}, err
	}
	if old.ID != "" {
		if g.signature == nil {
			err = g.Keys.Believe(old, g.Require)
		}
		return Peek{Release: old, Staged: err == nil}, err
	}
	if err := g.unsigned(); err != nil {
		return Peek{}, err
	}
	if g.in.kind == sourceArchive {
		r.Tree, r.Archive = &Tree{Asked: g.Exec}, &Archive{Format: g.in.format, Size: g.in.size, SHA256: sum}
		return Peek{Release: r}, nil
	}
	r.SHA256, r.Build, r.Dropped = sum, readBuild(g.in.f), g.in.dropped()
	return Peek{Release: r}, nil
}

// peekSum is the checksum of the file, whose signature is verified on the way.
func (g *staging) peekSum(ctx context.Context) (sum string, err error) {
	_, err = g.verified(ctx, func(f func(io.Reader) error) (err error) {
		if _, err = g.in.f.Seek(0, io.SeekStart); err == nil {
			sum, err = hashFile(ctx, g.in.f, f)
		}
		return err
	})
	return sum, err
}

// peekStaged is the sound release that Stage would find for the file, or a zero Release.
func (g *staging) peekStaged(ctx context.Context, sum string) (Release, error) {
	var err error
	g.releases, err = g.openReleases(false)
	if errors.Is(err, fs.ErrNotExist) {
		return Release{}, nil
	}
	if err != nil {
		return Release{}, err
	}
	defer g.releases.Close()
	if g.in.kind == sourceArchive {
		return g.findTree(ctx, func(r Release) bool { return r.Archive != nil && r.Archive.SHA256 == sum && r.Tree.Asked == g.Exec })
	}
	list, err := g.list(g.releases)
	for _, r := range list {
		if r.Damage == nil && r.Tree == nil && r.Program == g.program && r.SHA256 == sum && g.verify(ctx, g.releases, r) == nil {
			return r, nil
		}
	}
	return Release{}, errors.Join(err, ctx.Err())
}
