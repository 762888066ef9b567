package release

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math"
	"os"
	"path/filepath"
	"testing"
	"testing/iotest"
)

// What passes is what arrives, and what is hashed, whatever its length and the reader's habits.
func TestPass(t *testing.T) {
	t.Parallel()
	for _, size := range []int{0, 1, flowChunk - 1, flowChunk, flowChunk + 1, flowDepth * flowChunk, 3*flowDepth*flowChunk + 7, flushEvery + 1} {
		data := make([]byte, size)
		for i := range data {
			data[i] = byte(i * 2654435761 >> 13)
		}
		for name, most := range map[string]int64{"to the end": math.MaxInt64, "exactly": int64(size), "less": int64(size) / 2} {
			for what, r := range map[string]io.Reader{"all at once": bytes.NewReader(data), "by halves": iotest.HalfReader(bytes.NewReader(data)),
				"with its end": iotest.DataErrReader(bytes.NewReader(data))} {
				w, err := os.Create(filepath.Join(t.TempDir(), "copy"))
				do(t, err)
				n, sum, err := pass(t.Context(), w, r, most)
				do(t, err)
				do(t, w.Close())
				want := data[:min(most, int64(size))]
				got, err := os.ReadFile(w.Name())
				if err != nil || n != int64(len(want)) || !bytes.Equal(got, want) || sum != digest(want) {
					t.Errorf("%d bytes, %s, %s: %d passed, %d arrived, %s, %v", size, name, what, n, len(got), sum, err)
				}
			}
		}
	}
}

// It ends with its reader, its file and its context.
func TestPassFails(t *testing.T) {
	t.Parallel()
	broken := errors.New("broken")
	long := bytes.Repeat([]byte{'x'}, 4*flowDepth*flowChunk)
	scratch, err := os.Create(filepath.Join(t.TempDir(), "scratch"))
	do(t, err)
	defer scratch.Close()
	if _, _, err := pass(t.Context(), scratch, io.MultiReader(bytes.NewReader(long), iotest.ErrReader(broken)), math.MaxInt64); !errors.Is(err, broken) {
		t.Errorf("reader: %v", err)
	}
	w, err := os.Open(os.DevNull)
	do(t, err)
	defer w.Close()
	if _, _, err := pass(t.Context(), w, bytes.NewReader(long), math.MaxInt64); err == nil {
		t.Errorf("file: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err := pass(ctx, scratch, bytes.NewReader(long), math.MaxInt64); !errors.Is(err, context.Canceled) {
		t.Errorf("context: %v", err)
	}
}
