package release

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"strconv"
)

// maxStream bounds what an archive is unpacked to, with its headers: some bytes
// of gzip can stand for any number.
const maxStream = maxTreeSize + maxEntries*4096

// An Archive is the file that a release was unpacked from.
type Archive struct {
	Format string `json:"format"` // tar, tar.gz
	SHA256 string `json:"sha256"` // of the file
	Size   int64  `json:"size"`   // of the file, bytes
}

const (
	formatTar = "tar"
	formatGz  = "tar.gz"
)

// sniff tells by the first bytes whether a file is an archive: "" is none. The
// error names one that zdt does not read. No program that a kernel can
// execute begins like one of these.
func sniff(head []byte) (format string, err error) {
	for _, m := range []struct{ magic, format string }{
		{"\x28\xb5\x2f\xfd", "zstd"}, {"\xfd7zXZ\x00", "xz"}, {"BZh", "bzip2"}, {"PK\x03\x04", "zip"},
	} {
		if bytes.HasPrefix(head, []byte(m.magic)) {
			return "", hint(fmt.Errorf("is an archive of a kind that zdt does not read (%s)", m.format), "unpack it and give the directory, or make a .tar or .tar.gz of it")
		}
	}
	switch {
	case bytes.HasPrefix(head, []byte("\x1f\x8b")):
		return formatGz, nil
	case len(head) >= 262 && string(head[257:262]) == "ustar":
		return formatTar, nil
	}
	return "", nil
}

// unpack writes the files of the archive in to w. It returns the SHA-256 of the
// archive, whose bytes it has read to the last.
func (in *source) unpack(ctx context.Context, w *treeWriter) (sum string, err error) {
	if _, err := in.f.Seek(0, io.SeekStart); err != nil {
		return "", err
	}
	raw := &hashingReader{ctx: ctx, r: io.LimitReader(in.f, in.size), h: sha256.New()}
	var stream io.Reader = raw
	if in.format == formatGz {
		z, err := gzip.NewReader(raw)
		if err != nil {
			return "", cutShort(err)
		}
		stream = z
	}
	counted := &endingReader{r: stream, left: maxStream}
	t := tar.NewReader(counted)
	for {
		h, err := t.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return "", cutShort(err)
		}
		if err := member(ctx, w, t, h); err != nil {
			return "", fmt.Errorf("%s: %w", strconv.Quote(printableText(h.Name, maxComment)), err)
		}
	}
	if counted.ended {
		// A reader of tar takes the end of the file for the end of the archive. The
		// archive says where it ends, with a block of zeros.
		return "", cutShort(io.ErrUnexpectedEOF)
	}
	for _, rest := range []io.Reader{counted, raw} { // padding; what gzip has not asked for
		if _, err := io.Copy(io.Discard, rest); err != nil {
			return "", cutShort(err)
		}
	}
	if raw.n != in.size {
		return "", in.changed()
	}
	return hex.EncodeToString(raw.h.Sum(nil)), nil
}

// member writes one member of an archive.
func member(ctx context.Context, w *treeWriter, t io.Reader, h *tar.Header) error {
	p, err := entryPath(h.Name)
	if err != nil {
		return err
	}
	if _, ok := h.PAXRecords["SCHILY.xattr.security.capability"]; ok {
		w.dropped = true
	}
	switch h.Typeflag {
	case tar.TypeDir:
		if p == "" {
			return nil
		}
		return w.dir(p)
	case tar.TypeReg:
		if h.PAXRecords["GNU.sparse.major"] != "" || h.PAXRecords["GNU.sparse.map"] != "" {
			return errSparse()
		}
		if p == "" {
			return errors.New("is a file without a name")
		}
		mode := fs.FileMode(h.Mode)
		if h.Mode&0o6000 != 0 {
			return errSetuid(h.Mode)
		}
		return w.file(ctx, p, mode&0o111 != 0, t, h.Size)
	case tar.TypeSymlink:
		if p == "" {
			return errors.New("is a link without a name")
		}
		return w.link(p, h.Linkname)
	case tar.TypeLink:
		to, err := entryPath(h.Linkname)
		if err != nil {
			return fmt.Errorf("is another name of %q, which %w", h.Linkname, err)
		}
		return w.hardLink(p, to)
	case tar.TypeChar, tar.TypeBlock, tar.TypeFifo:
		return errors.New("is a device or a pipe; only files, directories and links are possible")
	case tar.TypeGNUSparse:
		return errSparse()
	case tar.TypeXGlobalHeader: // a comment, as git archive writes
		return nil
	}
	return fmt.Errorf("is of a kind that zdt does not know (%q)", h.Typeflag)
}

// errSparse: some bytes can stand for any number of zeros, which would be written.
func errSparse() error {
	return hint(errors.New("is a sparse file"), "make the archive without --sparse")
}

func errSetuid(mode int64) error {
	return hint(fmt.Errorf("has a set-uid or set-gid bit (mode %04o)", mode&0o7777), "take it away: a service gets its user and rights from its unit (User=, AmbientCapabilities=)")
}

// cutShort says of errors in the middle of an archive what they mean.
func cutShort(err error) error {
	switch {
	case errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, io.EOF):
		return hint(errors.New("the archive is cut short"), "the copy that made it is not finished, or has failed; fetch it again")
	case errors.Is(err, gzip.ErrHeader), errors.Is(err, gzip.ErrChecksum), errors.Is(err, tar.ErrHeader):
		return hint(fmt.Errorf("the archive is damaged: %w", err), "fetch it again; only .tar and .tar.gz can be read")
	}
	return err
}

// hashingReader hashes and counts what passes.
type hashingReader struct {
	ctx context.Context
	r   io.Reader
	h   hash.Hash
	n   int64
}

func (h *hashingReader) Read(p []byte) (int, error) {
	if err := h.ctx.Err(); err != nil {
		return 0, err
	}
	n, err := h.r.Read(p)
	h.h.Write(p[:n])
	h.n += int64(n)
	return n, err
}

// endingReader notes that its end was seen, and refuses to go on for ever.
type endingReader struct {
	r     io.Reader
	left  int64
	err   error // comes behind bytes that came with it
	ended bool
}

func (e *endingReader) Read(p []byte) (int, error) {
	if e.err == nil {
		n, err := e.r.Read(p)
		e.err = err
		if e.left -= int64(n); e.left < 0 {
			return 0, fmt.Errorf("the archive is too large: at most %d GiB can be unpacked", maxTreeSize>>30)
		}
		if n > 0 {
			return n, nil
		}
	}
	e.ended = e.ended || e.err == io.EOF
	return 0, e.err
}
