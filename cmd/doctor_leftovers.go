package cmd

import (
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/zdt-dev/zdt/release"
	"github.com/zdt-dev/zdt/unitgen"
)

// leftover is a file that nothing needs any more.
type leftover struct {
	Path string `json:"path"`
	Text string `json:"text"`
	Next string `json:"next"`
}

// leftovers are the files of zdt that belong to no service and to no upgrade that goes on. services are the names of those
// that have a store. What cannot be read is nobody's leftover.
func leftovers(p Paths, services []string) (all []leftover) {
	add := func(path, text, next string) { all = append(all, leftover{path, text, next}) }
	for _, e := range list(p.Broadcasts()) {
		path := filepath.Join(p.Broadcasts(), e.Name())
		r, err := openBroadcast(path)
		if err != nil {
			continue // just created, or none
		}
		// The one that ended last stays until the next upgrade of the service, for who attaches late.
		if !r.head.Runner.Alive() && !slices.Contains(services, r.head.Service) {
			add(path, "the account of an upgrade of a service that is gone", "rm "+path)
		}
		r.close()
	}
	if p.Operators != "" {
		for _, e := range list(p.Operators) {
			if name := e.Name(); e.IsDir() && unitgen.ValidateName(name) == nil && !slices.Contains(services, name) {
				path := p.OperatorsOf(name)
				add(path, "the box of operators of a service that zdt does not manage", "zdt operators "+name+" --off, or rm -r "+path)
			}
		}
	}
	for _, name := range services {
		if _, held, err := release.ReadHolder(p.Lock(name)); held || err != nil {
			continue // somebody may be making it at this moment
		}
		releases := filepath.Join(p.StateDir(name), "releases")
		for _, e := range list(p.disk(releases)) {
			if strings.HasPrefix(e.Name(), ".tmp-") { // as package release names what is not whole
				add(filepath.Join(releases, e.Name()), "half of a release: its copy or its deletion was cut short", "zdt prune "+name)
			}
		}
	}
	return all
}

func list(dir string) []os.DirEntry {
	entries, _ := os.ReadDir(dir)
	return entries
}
