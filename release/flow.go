package release

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

const (
	// flowChunk is small enough that what was read is still in the processor's cache when it is hashed and written,
	// and large enough that the passing on does not count. It is also what lies between two looks at the context.
	flowChunk = 256 << 10
	// flowDepth is how many chunks may wait for the hash: reading, writing and hashing seldom take the same time.
	flowDepth = 8
	// flushEvery is after how many bytes the kernel is asked to begin with the disk.
	flushEvery = 8 << 20
)

// A flow hashes on a goroutine of its own what another goroutine reads and writes: SHA-256 takes about as long as all the
// rest, and a host with one idle processor is rare. end stops and joins it.
type flow struct {
	free  chan []byte // of flowChunk bytes
	made  int         // as many there are, at most flowDepth
	full  chan []byte
	ended chan struct{}
	sum   string // valid when ended is closed
}

func startFlow() *flow {
	f := &flow{free: make(chan []byte, flowDepth), full: make(chan []byte, flowDepth), ended: make(chan struct{})}
	go func() {
		defer close(f.ended)
		h := sha256.New()
		for b := range f.full {
			h.Write(b)
			f.free <- b[:flowChunk] // has room for all there are
		}
		f.sum = hex.EncodeToString(h.Sum(nil))
	}()
	return f
}

// chunk returns one that is not in use.
func (f *flow) chunk() []byte {
	if f.made < flowDepth && len(f.free) == 0 {
		f.made++
		return make([]byte, flowChunk)
	}
	return <-f.free
}

// end returns the SHA-256 of all that has passed.
func (f *flow) end() string {
	close(f.full)
	<-f.ended
	return f.sum
}

// pass reads from r until most bytes have passed or r is at its end, writes them to w, and returns their
// number and SHA-256. The end of r is no error. Only to hash, it is not worth while: reading takes a tenth of that.
func pass(ctx context.Context, w *os.File, r io.Reader, most int64) (n int64, sum string, err error) {
	f := startFlow()
	defer func() { sum = f.end() }()
	flushed := int64(0)
	for n < most {
		if err := ctx.Err(); err != nil {
			return n, "", err
		}
		// The hash gives a chunk back when it is done with it. Written it is by then: that is done here, in turn.
		b := f.chunk()
		got, err := r.Read(b[:min(most-n, flowChunk)])
		f.full <- b[:got]
		if got > 0 {
			if _, err := w.Write(b[:got]); err != nil {
				return n, "", err
			}
		}
		n += int64(got)
		if err == io.EOF {
			return n, "", nil
		}
		if err != nil {
			return n, "", err
		}
		if n-flushed >= flushEvery {
			// The disk may begin: the fsync that follows has less to wait for. No promise depends on it.
			_ = unix.SyncFileRange(int(w.Fd()), flushed, n-flushed, unix.SYNC_FILE_RANGE_WRITE)
			flushed = n
		}
	}
	return n, "", nil
}
