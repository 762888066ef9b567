// Sleeper is a Go program that knows nothing of handoff: it lives, and is never READY.
package main

import "time"

func main() { time.Sleep(time.Hour) }
