package health

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/zdt-dev/zdt/internal/sockowner"
)

// settled asks one gate until it has passed or failed, and tells what it says then.
func settled(t *testing.T, p Prober, text string, pid int) (Result, error) {
	t.Helper()
	w := p.Run(t.Context(), []Gate{gate(t, text)}, Candidate{PID: pid}, nil)
	var err error
	select {
	case <-w.Passed():
	case err = <-w.Failed():
	case <-time.After(patience):
		t.Fatalf("%s does not come to an end", text)
	}
	return w.Close()[0], err
}

const quick = " every=10ms successes=8 within=1m timeout=30s"

// While both generations accept at one socket, only what the candidate answers counts, and the other one is asked
// nothing.
func TestConnectTellsGenerationsApart(t *testing.T) {
	for _, tt := range []struct {
		what, network, listen string
		gate                  func(bound string) string
		style                 string
	}{
		{"http", "tcp", "127.0.0.1:0", func(a string) string { return "http://" + a + "/status/200" }, "serve"},
		{"http over IPv6", "tcp", "[::1]:0", func(a string) string { return "http://" + a + "/status/200" }, "serve"},
		{"http over a unix socket", "unix", "sock", func(a string) string { return "http+unix:" + a + ":/status/200" }, "serve"},
		{"tcp", "tcp", "127.0.0.1:0", func(a string) string { return "tcp:" + a }, "serve"},
		{"unix", "unix", "sock", func(a string) string { return "unix:" + a }, "serve"},
		{"a child serves", "tcp", "127.0.0.1:0", func(a string) string { return "http://" + a + "/status/200" }, "parent"},
	} {
		t.Run(tt.what, func(t *testing.T) {
			t.Parallel()
			listen := tt.listen
			if listen == "sock" {
				listen = t.TempDir() + "/sock"
			}
			socket, bound := bind(t, tt.network, listen)
			before := start(t, socket, "serve")

			// Only the old one accepts.
			deaf := start(t, socket, "deaf")
			for within := 500 * time.Millisecond; ; within *= 2 {
				r, err := settled(t, Prober{}, fmt.Sprintf("%s successes=1 within=%v timeout=%v", tt.gate(bound), within, within-10*time.Millisecond), deaf.pid)
				if err == nil || r.OK != 0 || r.Connections.Candidate != 0 || r.Connections.Unknown != 0 {
					t.Errorf("%+v, %v", r, err)
				}
				if strings.Contains(r.Last, "came to the candidate, another process accepted them; if that is a proxy") && r.Connections.Others > 0 {
					break
				}
				if within > patience/2 {
					t.Fatalf("%+v, %v", r, err)
				}
			}

			after := start(t, socket, tt.style)
			r, err := settled(t, Prober{}, tt.gate(bound)+quick, after.pid)
			if err != nil || r.State != Passed || r.Connections.Candidate != r.Tries || r.OK != r.Tries || r.OK < 8 || r.Connections.Unknown != 0 || r.Blind != "" {
				t.Errorf("%+v, %v", r, err)
			}
			t.Logf("others: %d of %d", r.Connections.Others, r.Connections.Others+r.Connections.Candidate)
			if n := before.requests(); n != 0 {
				t.Errorf("the incumbent got %d requests", n)
			}
			for deadline := time.Now().Add(patience); strings.HasPrefix(tt.what, "http") && after.requests() < r.Tries; time.Sleep(time.Millisecond) {
				if time.Now().After(deadline) {
					t.Fatalf("the candidate got %d requests in %d tries", after.requests(), r.Tries)
				}
			}
			// If it makes no difference, that is said.
			r, err = settled(t, Prober{}, tt.gate(bound)+quick+" from=anyone", deaf.pid)
			if err != nil || r.Connections.Unknown != r.Tries || r.Blind != "from=anyone" {
				t.Errorf("%+v, %v", r, err)
			}
		})
	}
}

func TestAnswers(t *testing.T) {
	socket, bound := bind(t, "tcp", "127.0.0.1:0")
	p := start(t, socket, "serve")
	late, lateAt := bind(t, "tcp", "127.0.0.1:0", deferAccept)
	deferred := start(t, late, "serve")
	slams, slamsAt := bind(t, "tcp", "127.0.0.1:0")
	slam := start(t, slams, "slam")
	nobody, nobodyAt := bind(t, "tcp", "127.0.0.1:0")
	waits := start(t, nobody, "deaf")
	closed, closedAt := bind(t, "tcp", "127.0.0.1:0")
	closed.Close()
	for _, tt := range []struct {
		gate string
		pid  int
		want string // what is said last
		bad  bool
	}{
		{"http://" + bound + "/status/200", p.pid, "it answered 200 OK after ", false},
		{"http://" + bound + "/status/204", p.pid, "it answered 204 No Content", false},
		{"http://" + bound + "/status/503", p.pid, `it answered 503 Service Unavailable: "this is 503\x1b[0m for ` + bound + `" after `, true},
		{"http://" + bound + "/status/503 status=5xx", p.pid, "it answered 503", false},
		{"http://" + bound + "/status/302", p.pid, "it answered 302 Found to /status/200", true},
		{"http://" + bound + "/status/302 status=302", p.pid, "it answered 302 Found", false},
		{"http://" + bound + "/hints", p.pid, "it answered 200 OK", false},
		{"http://" + bound + `/status/200 body~="this is \d+"`, p.pid, "and the text is there", false},
		{"http://" + bound + "/status/200 body~=that", p.pid, `it answered 200 OK, and no text like "that": "this is 200`, true},
		{"http://" + bound + "/status/200 host=web.example body~=web.example$", p.pid, "the text is there", false},
		{"http://" + bound + "/late body~=needle", p.pid, "the text is there", false},
		{"http://" + bound + "/endless body~=^0", p.pid, "the text is there", false},
		{"http://" + bound + "/endless body~=needle", p.pid, `no text like "needle": "000`, true},
		{"http://" + bound + "/endless", p.pid, "it answered 200 OK", false},
		{"http://" + bound + `/who body~="^zdt-gate close $"`, p.pid, "the text is there", false},
		{"http://" + bound + "/hang", p.pid, "no answer after ", true},
		{"http://" + lateAt + "/status/200", deferred.pid, "it answered 200 OK", false},
		{"tcp:" + lateAt, deferred.pid, "nobody is shown the connection before a request", true},
		{"http://" + slamsAt + "/", slam.pid, "", true},
		{"tcp:" + nobodyAt, waits.pid, "nobody accepted the connection after ", true},
		{"tcp:" + closedAt, p.pid, "connection refused", true},
		{"unix:/no/such/socket", p.pid, "no such file", true},
		{"https://" + bound + "/ verify=no", p.pid, "first record does not look like a TLS handshake", true},
	} {
		t.Run(tt.gate, func(t *testing.T) {
			t.Parallel()
			options := " successes=1"
			if tt.bad {
				options = " every=20ms timeout=900ms within=1s"
			}
			r, err := settled(t, Prober{}, tt.gate+options, tt.pid)
			if (err != nil) != tt.bad || !strings.Contains(r.Last, tt.want) {
				t.Errorf("%+v, %v; want %q", r, err, tt.want)
			}
			if len(r.Last) > 600 {
				t.Errorf("%d bytes", len(r.Last))
			}
		})
	}
}

// certificate is one for all runs of the test in this process, for crypto/x509 reads what the host trusts only once.
var certificate = sync.OnceValues(func() (cert, key []byte) {
	secret, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{"web.example"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &secret.PublicKey, secret)
	if err != nil {
		panic(err)
	}
	raw, err := x509.MarshalPKCS8PrivateKey(secret)
	if err != nil {
		panic(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: raw})
})

func TestCertificates(t *testing.T) {
	dir := t.TempDir()
	cert, key := certificate()
	for name, text := range map[string][]byte{"cert": cert, "key": key} {
		if err := os.WriteFile(dir+"/"+name, text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	// The host trusts it.
	t.Setenv("SSL_CERT_FILE", dir+"/cert")
	t.Setenv("SSL_CERT_DIR", dir+"/none")
	socket, bound := bind(t, "tcp", "127.0.0.1:0")
	p := start(t, socket, "tls", func(c *exec.Cmd) { c.Env = append(c.Env, "CERT="+dir+"/cert", "KEY="+dir+"/key") })
	for _, tt := range []struct {
		options, want string
		bad           bool
	}{
		{"verify=yes", "200 OK", false},
		{"host=web.example", "200 OK", false},
		{"host=other.example", "certificate is valid for web.example, not other.example (verify=no does not look at it)", true},
		{"host=other.example verify=no", "200 OK", false},
	} {
		r, err := settled(t, Prober{}, "https://"+bound+"/status/200 "+tt.options+" successes=1 every=20ms within=2s", p.pid)
		if (err != nil) != tt.bad || !strings.Contains(r.Last, tt.want) {
			t.Errorf("%s: %+v, %v", tt.options, r, err)
		}
	}
}

// Where it is not to be seen who answers, the answer counts, and that is said.
func TestConnectUnseen(t *testing.T) {
	socket, bound := bind(t, "tcp", "127.0.0.1:0")
	p := start(t, socket, "serve")
	prober := Prober{Whose: func(context.Context, net.Conn, int, func() error) (sockowner.Owner, error) {
		return sockowner.Unknown, os.ErrPermission
	}}
	r, err := settled(t, prober, "http://"+bound+"/status/200"+quick, p.pid)
	if err != nil || r.Connections != (Accepted{Unknown: r.Tries}) || r.Blind != os.ErrPermission.Error() {
		t.Errorf("%+v, %v", r, err)
	}
	if text := (Progress{Result: r}).String(); !strings.Contains(text, "it was not to be seen who answered") {
		t.Error(text)
	}
}

// What cannot be reached for a network namespace of the service's own is said to be that.
func TestConnectOtherNamespace(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root can have another network namespace")
	}
	socket, bound := bind(t, "tcp", "127.0.0.1:0")
	p := start(t, socket, "serve", func(c *exec.Cmd) { c.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET} })
	// A socket of the host's that it was given is reached, and told apart.
	r, err := settled(t, Prober{}, "http://"+bound+"/status/200"+quick, p.pid)
	if err != nil || r.Connections != (Accepted{Candidate: r.Tries}) {
		t.Errorf("%+v, %v", r, err)
	}
	_, err = settled(t, Prober{}, "tcp:127.0.0.1:1 every=10ms within=100ms timeout=50ms", p.pid)
	if err == nil || !strings.Contains(err.Error(), "is in a network namespace of its own, where a gate cannot reach it") {
		t.Error(err)
	}
	if _, err = settled(t, Prober{}, "unix:/no/such every=10ms within=100ms timeout=50ms", p.pid); err == nil || strings.Contains(err.Error(), "namespace") {
		t.Error(err)
	}
}
