package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/zdt-dev/zdt/release"
)

// stagedSize is the size of the file that is staged, bytes.
const stagedSize = 200 << 20

// staging compares putting a program into the release store with cp and sha256sum of the same file, of which cp does not
// wait for the disk and sha256sum reads the copy once. Staging hashes what it reads, waits for the disk, and reads the copy.
func staging(ctx context.Context, t *table, n int) error {
	t.title = "Staging a file of 200 MiB"
	copied, staged, err := measureStaging(ctx, min(n, 8))
	if err != nil {
		return fmt.Errorf("staging: %w", err)
	}
	t.times("cp + sha256sum, for comparison", copied, 0)
	t.times("zdt stage: copy, fsync, hash of the copy", staged, 0)
	var ratios []float64
	for i := range copied {
		ratios = append(ratios, float64(copied[i])/float64(staged[i]))
	}
	x := quantile(ratios, 0.5)
	t.value("speed as a multiple of theirs, neighbouring turns", fmt.Sprintf("%.2f", x), "≥ 0.70", x >= 0.7)
	t.value("  their 10th and 90th percentile", fmt.Sprintf("%.2f–%.2f", quantile(ratios, 0.1), quantile(ratios, 0.9)), "", true)
	return nil
}

func measureStaging(ctx context.Context, n int) (copied, staged []time.Duration, err error) {
	// Beside the real store: the service's releases are on that disk.
	const parent = "/var/lib/zdt"
	if err := os.MkdirAll(parent, 0o755); err != nil {
		return nil, nil, err
	}
	dir, err := os.MkdirTemp(parent, "bench-")
	if err != nil {
		return nil, nil, err
	}
	defer os.RemoveAll(dir)
	src, dst := filepath.Join(dir, "src"), filepath.Join(dir, "dst")
	data := make([]byte, stagedSize)
	rand.Read(data)
	if err := os.WriteFile(src, data, 0o755); err != nil {
		return nil, nil, err
	}
	if err := exec.CommandContext(ctx, "sync", src).Run(); err != nil { // its own writing must not be measured
		return nil, nil, fmt.Errorf("sync: %w", err)
	}
	store, err := release.Create(filepath.Join(dir, "store"), release.Options{Program: "program"})
	if err != nil {
		return nil, nil, err
	}
	defer store.Close()
	copyIt := func() error {
		begun := time.Now()
		err := exec.CommandContext(ctx, "cp", "--reflink=never", src, dst).Run()
		if err == nil {
			err = exec.CommandContext(ctx, "sha256sum", dst).Run()
		}
		copied = append(copied, time.Since(begun))
		return errors.Join(err, os.Remove(dst))
	}
	stageIt := func() error {
		begun := time.Now()
		r, err := store.Stage(ctx, src, release.StageOptions{})
		staged = append(staged, time.Since(begun))
		if err != nil {
			return err
		}
		return os.RemoveAll(filepath.Dir(r.Path))
	}
	for range n {
		for _, f := range []func() error{copyIt, stageIt, stageIt, copyIt} {
			if err := f(); err != nil {
				return nil, nil, err
			}
		}
	}
	return copied, staged, nil
}
