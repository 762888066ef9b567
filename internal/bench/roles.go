package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// The processes that are measured are this program too, in one of these roles.
const (
	roleBare             = "bare"              // net/http alone
	roleLibrary          = "library"           // with the library, for one generation
	roleMoving           = "moving"            // with the library, for many
	roleCarrier          = "carrier"           // connections moved without the library
	roleStarter          = "starter"           // net/http alone, on the socket of SERVER_STARTER_PORT
	roleCarrierSuccessor = "carrier-successor" // set by carrier itself
)

func serveRole(role string) error {
	switch role {
	case roleBare:
		return serveBare()
	case roleLibrary:
		return serveLibrary()
	case roleStarter:
		return serveStarter()
	case roleMoving:
		return serveMoving()
	case roleCarrier:
		return serveCarrier(false)
	case roleCarrierSuccessor:
		return serveCarrier(true)
	}
	return fmt.Errorf("no role %q", role)
}

// answers is what all servers serve.
func answers() http.HandlerFunc {
	body := []byte(strings.Repeat("x", 512))
	return func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/memory" {
			fmt.Fprint(w, memoryInUse())
			return
		}
		w.Write(body)
	}
}

// memoryInUse is what the process needs: objects and stacks, without what waits to be collected or given back.
func memoryInUse() uint64 {
	runtime.GC()
	runtime.GC() // frees what the first has found, pools included
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapInuse + m.StackInuse
}

// tell says something to whoever measures. Generations of a service share the standard output.
func tell(v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return err
	}
	_, err = os.Stdout.Write(append(data, '\n'))
	return err
}

// exitWithInput ends the process when whoever measures is done with it.
func exitWithInput() {
	io.Copy(io.Discard, os.Stdin)
	os.Exit(0)
}

// now is a moment that other processes understand: nanoseconds since the boot.
func now() int64 {
	var ts unix.Timespec
	unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts)
	return ts.Nano()
}
