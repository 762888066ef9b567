package release

import (
	"crypto/rand"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
)

// BenchmarkStage compares staging with cp and sha256sum of the same file: the
// ratio is the speed against theirs, which do not wait for the disk.
func BenchmarkStage(b *testing.B) {
	dir := b.TempDir()
	src := filepath.Join(dir, "src")
	data := make([]byte, 200<<20)
	_, _ = rand.Read(data)
	if err := os.WriteFile(src, data, 0o644); err != nil {
		b.Fatal(err)
	}
	_ = exec.Command("sync", src).Run() // its own writeback must not be ours
	b.Run("cp+sha256sum", func(b *testing.B) {
		for b.Loop() {
			dst := filepath.Join(dir, "dst")
			if err := exec.Command("cp", "--reflink=never", src, dst).Run(); err != nil {
				b.Fatal(err)
			}
			if err := exec.Command("sha256sum", dst).Run(); err != nil {
				b.Fatal(err)
			}
			os.Remove(dst)
		}
	})
	b.Run("stage", func(b *testing.B) {
		s, err := Create(filepath.Join(dir, "store"), Options{Program: "web"})
		if err != nil {
			b.Fatal(err)
		}
		defer s.Close()
		for b.Loop() {
			r, err := s.Stage(b.Context(), src, StageOptions{})
			if err != nil {
				b.Fatal(err)
			}
			os.RemoveAll(filepath.Dir(r.Path))
		}
	})
}

// BenchmarkStageTree compares a directory of many small files with cp -r and sync
// of the same.
func BenchmarkStageTree(b *testing.B) {
	dir := b.TempDir()
	src := filepath.Join(dir, "src")
	data := make([]byte, 8<<10)
	for i := range 5000 {
		_, _ = rand.Read(data)
		path := filepath.Join(src, strconv.Itoa(i%50), strconv.Itoa(i))
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, data, 0o644)); err != nil {
			b.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(src, "web"), data, 0o755); err != nil {
		b.Fatal(err)
	}
	_ = exec.Command("sync", "-f", src).Run()
	b.Run("cp+sync", func(b *testing.B) {
		for b.Loop() {
			dst := filepath.Join(dir, "dst")
			if err := exec.Command("cp", "-r", "--reflink=never", src, dst).Run(); err != nil {
				b.Fatal(err)
			}
			if err := exec.Command("sync", "-f", dst).Run(); err != nil {
				b.Fatal(err)
			}
			os.RemoveAll(dst)
		}
	})
	b.Run("stage", func(b *testing.B) {
		s, err := Create(filepath.Join(dir, "store"), Options{Program: "web"})
		if err != nil {
			b.Fatal(err)
		}
		defer s.Close()
		for b.Loop() {
			r, err := s.Stage(b.Context(), src, StageOptions{})
			if err != nil {
				b.Fatal(err)
			}
			os.RemoveAll(filepath.Dir(r.Path))
		}
	})
}
