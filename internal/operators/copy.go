package operators

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Copy copies what lies beside a request into a directory that only root can read, named by txid, and takes it
// away from incoming. The paths are absolute; signature is "" if there is none. Clear removes them.
func (b *Box) Copy(ctx context.Context, t Taken, txid string) (program, signature string, err error) {
	p := t.Request.Program
	if p == nil {
		return "", "", nil
	}
	if !validTxID(txid) {
		return "", "", fmt.Errorf("%q is not the ID of an upgrade", txid)
	}
	d, err := openDir(b.base, taken)
	if err != nil {
		return "", "", err
	}
	defer d.Close()
	if err := unix.Mkdirat(int(d.Fd()), txid, 0o700); err != nil {
		return "", "", fmt.Errorf("make %s: %w", filepath.Join(d.Name(), txid), err)
	}
	own, err := openDir(d, txid)
	if err != nil {
		return "", "", err
	}
	defer own.Close()
	defer func() {
		if err != nil {
			program, signature, err = "", "", errors.Join(err, b.Discard(txid))
		}
	}()
	program = filepath.Join(own.Name(), p.Name)
	if err := b.copy(ctx, t, t.ID+programSuffix, own, p.Name, MaxProgram); err != nil {
		return "", "", err
	}
	if p.Signed {
		// Its own name: the program's could be that of a signature.
		const name = ".signature"
		signature = filepath.Join(own.Name(), name)
		if err := b.copy(ctx, t, t.ID+signatureSuffix, own, name, maxSignature); err != nil {
			return "", "", err
		}
	}
	return program, signature, nil
}

func (b *Box) copy(ctx context.Context, t Taken, from string, to *os.File, name string, most int64) error {
	in, st, err := b.open(from, most, t.UID)
	if err != nil {
		return err
	}
	defer in.Close()
	if err := roomFor(to, st.Size); err != nil {
		return err
	}
	// Executable, as what a program is taken for has to be; nobody but root gets here.
	fd, err := unix.Openat(int(to.Fd()), name, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o700)
	if err != nil {
		return fmt.Errorf("copy %s: %w", from, err)
	}
	out := os.NewFile(uintptr(fd), filepath.Join(to.Name(), name))
	defer out.Close()
	// On btrfs and XFS this costs nothing. The owner may still write to the original; the copy is compared with the checksum
	// in the request afterwards.
	if unix.IoctlFileClone(fd, int(in.Fd())) != nil {
		_, err = io.Copy(out, io.LimitReader(ctxReader{ctx, in}, st.Size))
	}
	if err == nil {
		var got unix.Stat_t
		if err = unix.Fstat(fd, &got); err == nil && got.Size != st.Size {
			err = &RefusedError{from, "changed while it was copied"}
		}
	}
	if err != nil {
		return fmt.Errorf("copy %s: %w", from, err)
	}
	return b.remove(from)
}

// reserve is what a copy leaves free: others write to that disk, too, and none of this is in anybody's quota.
const reserve = 256 << 20

// roomFor refuses a copy for which there is no room. A sparse file costs its owner nothing; its copy may not be sparse.
func roomFor(d *os.File, size int64) error {
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(d.Fd()), &st); err != nil {
		return fmt.Errorf("look for room: %w", err)
	}
	// What is kept for root (Bfree-Bavail) is not for this.
	if free := int64(st.Bavail) * st.Bsize; free < size+reserve {
		return fmt.Errorf("no room to copy %d bytes: %d are free, and %d have to stay so", size, free, int64(reserve))
	}
	return nil
}

// Discard removes what Copy made for txid.
func (b *Box) Discard(txid string) error {
	if !validTxID(txid) {
		return fmt.Errorf("%q is not the ID of an upgrade", txid)
	}
	return os.RemoveAll(filepath.Join(b.base.Name(), taken, txid))
}

type ctxReader struct {
	ctx context.Context
	r   io.Reader
}

func (r ctxReader) Read(p []byte) (int, error) {
	if err := context.Cause(r.ctx); err != nil {
		return 0, err
	}
	return r.r.Read(p)
}

// Clear removes what Copy made, of every upgrade for which running says no.
func (b *Box) Clear(running func(txid string) bool) error {
	d, err := openDir(b.base, taken)
	if err != nil {
		return err
	}
	defer d.Close()
	names, err := d.Readdirnames(-1)
	for _, name := range names {
		if !running(name) {
			err = errors.Join(err, os.RemoveAll(filepath.Join(d.Name(), name)))
		}
	}
	return err
}
