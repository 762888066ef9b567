// Command zdt upgrades a service on a Linux host without its clients noticing.
package main

import (
	"os"

	"github.com/zdt-dev/zdt/cmd"
)

func main() { os.Exit(cmd.Main(os.Args[1:])) }
