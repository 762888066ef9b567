//go:build linux

package memfile

import (
	"bytes"
	"io"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

func TestWrite(t *testing.T) {
	for _, size := range []int{0, 1, 3 << 20} {
		want := bytes.Repeat([]byte("z"), size)
		fd, err := Write("zdt-test", want)
		if err != nil {
			t.Fatal(err)
		}
		if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC == 0 {
			t.Errorf("flags %d, %v", flags, err)
		}
		f := os.NewFile(uintptr(fd), "test")
		got, err := io.ReadAll(io.NewSectionReader(f, 0, 4<<20))
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%d bytes of %d, %v", len(got), size, err)
		}
		f.Close()
	}
}
