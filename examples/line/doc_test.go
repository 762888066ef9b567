package main

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/zdt-dev/zdt/examples/internal/staging"
	"github.com/zdt-dev/zdt/internal/docstest"
)

const root = "../.."

func document(t *testing.T) []docstest.Block {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(root, "docs/library.md"))
	if err != nil {
		t.Fatal(err)
	}
	blocks, err := docstest.Blocks(string(text))
	if err != nil {
		t.Fatal(err)
	}
	return blocks
}

// The code in docs/library.md is that of the examples, word for word.
func TestDocumentCode(t *testing.T) {
	files, err := filepath.Glob(filepath.Join(root, "examples/*/*.go"))
	if err != nil {
		t.Fatal(err)
	}
	var code strings.Builder
	for _, file := range files {
		if strings.HasSuffix(file, "_test.go") {
			continue
		}
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		code.Write(text)
	}
	found := 0
	for _, b := range document(t) {
		if b.Language != "go" {
			continue
		}
		found++
		if !strings.Contains(code.String(), b.Text) {
			t.Errorf("docs/library.md:%d: no example has this code:\n%s", b.Line, b.Text)
		}
	}
	if found < 5 {
		t.Errorf("only %d blocks of code: is the document read rightly?", found)
	}
}

// The commands in docs/library.md work and print what it says, in one shell.
func TestDocumentCommands(t *testing.T) {
	commands, err := docstest.Commands(document(t))
	if err != nil {
		t.Fatal(err)
	}
	dir, address := t.TempDir(), freeAddress(t)
	host, port, _ := net.SplitHostPort(address)
	replace := strings.NewReplacer("127.0.0.1:7000", address, "/dev/tcp/127.0.0.1/7000", "/dev/tcp/"+host+"/"+port)
	sh := startShell(t, dir)
	t.Cleanup(func() { kill(t, filepath.Join(dir, "bin/line")) })
	for _, c := range commands {
		if args, ok := strings.CutPrefix(c.Text, "go build -o bin/line "); ok {
			cmd := exec.Command("go", "build", "-buildvcs=false", "-o", filepath.Join(dir, "bin/line"), args)
			cmd.Dir = root
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Fatalf("docs/library.md:%d: %v\n%s", c.Line, err, out)
			}
			continue
		}
		got := sh.run(replace.Replace(c.Text))
		if missed := docstest.Match(c.Output, got); missed != "" {
			t.Fatalf("docs/library.md:%d: $ %s\nthe document has: %s\nit printed: %q", c.Line, c.Text, missed, got)
		}
		if strings.HasSuffix(c.Text, "&") {
			staging.Eventually(t, "the server listens", func() bool { // people type more slowly
				conn, err := net.Dial("tcp", address)
				if err == nil {
					conn.Close()
				}
				return err == nil
			})
		}
	}
}

func freeAddress(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return ln.Addr().String()
}

// kill ends the processes that run a program; they are nobody's children but the test's.
func kill(t *testing.T, exe string) {
	staging.Eventually(t, "no process runs "+exe, func() bool {
		left := 0
		links, _ := filepath.Glob("/proc/[0-9]*/exe")
		for _, link := range links {
			if target, err := os.Readlink(link); err != nil || target != exe {
				continue
			}
			left++
			var pid int
			fmt.Sscanf(link, "/proc/%d/exe", &pid)
			unix.Kill(pid, unix.SIGKILL)
			unix.Wait4(pid, nil, unix.WNOHANG, nil)
		}
		return left == 0
	})
}

// shell is a bash that runs one command after the other.
type shell struct {
	t   *testing.T
	in  io.Writer
	out *bufio.Reader
}

func startShell(t *testing.T, dir string) *shell {
	t.Helper()
	cmd := exec.Command("bash")
	cmd.Dir = dir
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = cmd.Stdout
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { in.Close(); cmd.Process.Kill(); cmd.Wait() })
	out.(*os.File).SetReadDeadline(time.Now().Add(time.Minute)) // should a command wait for what never comes
	return &shell{t, in, bufio.NewReader(out)}
}

func (s *shell) run(command string) (printed []string) {
	s.t.Helper()
	const end = "the command has ended"
	if _, err := fmt.Fprintf(s.in, "%s\necho %s\n", command, end); err != nil {
		s.t.Fatal(err)
	}
	for {
		line, err := s.out.ReadString('\n')
		if err != nil {
			s.t.Fatalf("%s: %v after %q", command, err, printed)
		}
		if line = strings.TrimSuffix(line, "\n"); line == end {
			return printed
		}
		printed = append(printed, line)
	}
}
