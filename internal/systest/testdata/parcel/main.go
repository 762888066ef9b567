// Command parcel is a service with a socket of each kind, all found by name: HTTP on TCP and on a unix stream socket,
// and datagrams, which it sends back with its version, on UDP and on a unix datagram socket.
package main

import (
	"fmt"
	"io"
	"log"
	"net/http"
	"sync"

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
	h, err := handoff.Open(handoff.Options{})
	if err != nil {
		return err
	}
	web, err := h.Listen("web", "tcp", "127.0.0.1:1") // the addresses are systemd's: these would not do
	if err != nil {
		return err
	}
	local, err := h.Listen("local", "unix", "/nowhere/to/be/found")
	if err != nil {
		return err
	}
	udp, err := h.ListenPacket("udp", "udp", "127.0.0.1:1")
	if err != nil {
		return err
	}
	gram, err := h.ListenPacket("gram", "unixgram", "/nowhere/to/be/found")
	if err != nil {
		return err
	}
	var wg sync.WaitGroup
	wg.Go(func() { sendBack(udp) })
	wg.Go(func() { sendBack(gram) })
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Version", version)
		io.Copy(w, r.Body)
	})}
	wg.Go(func() {
		if err := h.Serve(srv, local); err != nil {
			log.Print(err)
		}
	})
	err = h.Serve(srv, web)
	wg.Wait()
	return err
}

func sendBack(pc *handoff.PacketConn) {
	buf := make([]byte, 1500)
	for {
		n, from, err := pc.ReadFrom(buf)
		if err != nil {
			return
		}
		if _, err := pc.WriteTo(fmt.Appendf(nil, "%s %s", version, buf[:n]), from); err != nil {
			log.Print(err)
		}
	}
}
