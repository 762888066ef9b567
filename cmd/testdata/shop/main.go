// A program that knows nothing of zdt. Its socket has the number that --fd says, it tells systemd when it is ready, and it
// finishes its requests after SIGQUIT; SIGTERM kills it.
package main

import (
	"context"
	"flag"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
)

var version = "0" // set by the linker

func main() {
	fd := flag.Int("fd", -1, "")
	note := flag.String("note", "", "")
	flag.Parse()
	if err := run(*fd, *note); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(fd int, note string) error {
	if version == "broken" {
		return fmt.Errorf("this version is broken")
	}
	ln, err := net.FileListener(os.NewFile(uintptr(fd), "socket"))
	if err != nil {
		return err
	}
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "version %s, greeting %s, note %s", version, os.Getenv("GREETING"), note)
	})}
	srv.SetKeepAlivesEnabled(false) // so that no client loses a request to Shutdown
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGQUIT)
	failed := make(chan error, 1)
	go func() { failed <- srv.Serve(ln) }()
	c, err := net.Dial("unixgram", os.Getenv("NOTIFY_SOCKET"))
	if err != nil {
		return err
	}
	if _, err := c.Write([]byte("READY=1")); err != nil {
		return err
	}
	c.Close()
	select {
	case <-stop:
		return srv.Shutdown(context.Background())
	case err := <-failed:
		return err
	}
}
