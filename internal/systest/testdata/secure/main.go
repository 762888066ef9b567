// Command secure is a service whose connections cannot move, because TLS has a state of its own: HTTP/1.1 and HTTP/2, as
// the client asks for (ALPN).
package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"log"
	"math/big"
	"net/http"
	"time"

	"github.com/zdt-dev/zdt/handoff"
)

// version is set at build time.
var version = "v1"

func main() {
	log.SetFlags(0)
	if err := run(); err != nil {
		log.Fatal(err)
	}
}

func run() error {
	cert, err := selfSigned()
	if err != nil {
		return err
	}
	h, err := handoff.Open(handoff.Options{})
	if err != nil {
		return err
	}
	ln, err := h.Listen("https", "tcp", "127.0.0.1:1") // the address is systemd's: this one would not do
	if err != nil {
		return err
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Version", version)
		if r.Method == http.MethodGet {
			fmt.Fprint(w, version)
			return
		}
		io.Copy(w, r.Body)
	})
	mux.HandleFunc("GET /slow", func(w http.ResponseWriter, r *http.Request) {
		d, err := time.ParseDuration(r.URL.Query().Get("for"))
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		w.Header().Set("X-Version", version)
		select {
		case <-time.After(d):
			fmt.Fprint(w, version)
		case <-r.Context().Done():
		}
	})
	return h.Serve(&http.Server{Handler: mux}, tls.NewListener(ln, &tls.Config{
		Certificates: []tls.Certificate{cert}, NextProtos: []string{"h2", "http/1.1"},
	}))
}

// selfSigned is another certificate in each process: the clients of the test believe any.
func selfSigned() (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), DNSNames: []string{"hello"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return tls.Certificate{}, err
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, nil
}
