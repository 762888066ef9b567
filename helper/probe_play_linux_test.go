package helper

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// playServe is a server at the socket that is descriptor 3. STYLE is how it answers, LOG the
// file where it says what came. It does not accept before GATE exists.
func playServe() error {
	style := os.Getenv("STYLE")
	if style == "worker" {
		// A process of its own session accepts, this one only holds the socket.
		cmd := exec.Command("/proc/self/exe", "-test.run=^TestPlay$")
		cmd.Env = append(os.Environ(), "STYLE=")
		cmd.ExtraFiles = []*os.File{os.NewFile(3, "listener")}
		cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
		cmd.SysProcAttr = player("").SysProcAttr
		cmd.SysProcAttr.Setsid = true
		if err := cmd.Start(); err != nil {
			return err
		}
		os.Stdout.Close()
		return cmd.Wait()
	}
	if style == "undumpable" {
		if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
			return err
		}
	}
	log, err := os.OpenFile(os.Getenv("LOG"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	ln, err := net.FileListener(os.NewFile(3, "listener"))
	if err != nil {
		return err
	}
	if style == "tls" {
		cert, err := selfSigned()
		if err != nil {
			return err
		}
		ln = tls.NewListener(ln, &tls.Config{Certificates: []tls.Certificate{cert}})
	}
	os.Stdout.Close() // it is up
	go func() {
		io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	}()
	for gate := os.Getenv("GATE"); gate != ""; time.Sleep(time.Millisecond) {
		if _, err := os.Stat(gate); err == nil {
			break
		}
	}
	for {
		conn, err := ln.Accept()
		if err != nil {
			return err
		}
		fmt.Fprintln(log, "accept")
		go answer(conn, style, log)
	}
}

func answer(conn net.Conn, style string, log io.Writer) {
	defer conn.Close()
	if style == "slam" {
		return
	}
	var head []byte
	buf := make([]byte, 4096)
	for !bytes.HasSuffix(head, []byte("\r\n\r\n")) {
		n, err := conn.Read(buf)
		head = append(head, buf[:n]...)
		if err != nil {
			if len(head) > 0 {
				fmt.Fprintln(log, "half a request")
			}
			return
		}
	}
	line, _, _ := strings.Cut(string(head), "\r\n")
	fmt.Fprintln(log, "request", line)
	switch style {
	case "http10":
		io.WriteString(conn, "HTTP/1.0 200 OK\r\n\r\nfine\n")
	case "hints":
		io.WriteString(conn, "HTTP/1.1 103 Early Hints\r\nLink: <a>\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n")
	case "hints, then no":
		io.WriteString(conn, "HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n")
	case "redirect":
		io.WriteString(conn, "HTTP/1.1 302 Found\r\nLocation: http://elsewhere.example/\r\nContent-Length: 0\r\n\r\n")
	case "503":
		body := "warming up\x1b[31m\n" + strings.Repeat("x", 1000)
		fmt.Fprintf(conn, "HTTP/1.1 503 Service Unavailable\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
	case "junk":
		io.WriteString(conn, "220 mail.example ESMTP\r\n\r\n")
	case "endless":
		for io.WriteString(conn, "HTTP/1.1 200 OK\r\nX: "); ; {
			if _, err := conn.Write(bytes.Repeat([]byte("x"), 4096)); err != nil {
				return
			}
		}
	case "drip":
		for io.WriteString(conn, "HTTP/1.1 200 OK\r\nX: "); ; time.Sleep(10 * time.Millisecond) {
			if _, err := conn.Write([]byte("x")); err != nil {
				return
			}
		}
	default:
		io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nfine\n")
		conn.Read(buf) // until the client is done
	}
}

func selfSigned() (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, err
}

// server is a running playServe.
type server struct {
	band  band
	ended chan struct{}
	log   string // its file
	gate  string
}

// open lets it accept.
func (s server) open(t *testing.T) {
	t.Helper()
	if err := os.WriteFile(s.gate, nil, 0o600); err != nil {
		t.Fatal(err)
	}
}

// count says how often a line that begins so is in the log.
func (s server) count(t *testing.T, prefix string) int {
	t.Helper()
	b, err := os.ReadFile(s.log)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	return strings.Count("\n"+string(b), "\n"+prefix)
}

// serve starts one at a listening socket, which stays the caller's.
func serve(t *testing.T, socket int, style string, gated bool) server {
	t.Helper()
	dir := t.TempDir()
	s := server{ended: make(chan struct{}), log: filepath.Join(dir, "log"), gate: filepath.Join(dir, "gate")}
	cmd := player("serve", "STYLE="+style, "LOG="+s.log)
	if gated {
		cmd.Env = append(cmd.Env, "GATE="+s.gate)
	}
	copied, err := unix.FcntlInt(uintptr(socket), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	listener := os.NewFile(uintptr(copied), "listener")
	defer listener.Close()
	cmd.ExtraFiles = []*os.File{listener}
	cmd.SysProcAttr.Setpgid = true
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	s.band.Leader = cmd.Process.Pid
	io.Copy(io.Discard, stdout)
	go func() {
		defer close(s.ended)
		cmd.Wait()
	}()
	t.Cleanup(func() {
		stdin.Close()
		<-s.ended
	})
	return s
}

// listen binds a socket as a helper does: its descriptor is nobody's poller's.
// Address is a host, whose port the kernel chooses, or a path.
func listen(t *testing.T, address string, options ...func(fd int) error) (fd int, bound string) {
	t.Helper()
	family, sa := unix.AF_UNIX, unix.Sockaddr(&unix.SockaddrUnix{Name: address})
	if ip := net.ParseIP(address); ip.To4() != nil {
		family, sa = unix.AF_INET, &unix.SockaddrInet4{Addr: [4]byte(ip.To4())}
	} else if ip != nil {
		family, sa = unix.AF_INET6, &unix.SockaddrInet6{Addr: [16]byte(ip)}
	}
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err == unix.EAFNOSUPPORT {
		t.Skip("no IPv6 here")
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	for _, option := range options {
		if err := option(fd); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Bind(fd, sa); err == unix.EADDRNOTAVAIL {
		t.Skip("no IPv6 here")
	} else if err != nil {
		t.Fatal(err)
	}
	if err := unix.Listen(fd, 128); err != nil {
		t.Fatal(err)
	}
	sa, err = unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return fd, fmt.Sprintf("%s:%d", net.IP(sa.Addr[:]), sa.Port)
	case *unix.SockaddrInet6:
		return fd, fmt.Sprintf("[%s]:%d", net.IP(sa.Addr[:]), sa.Port)
	}
	return fd, address
}
