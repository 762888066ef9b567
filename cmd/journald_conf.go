package cmd

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// confLimit bounds one configuration file, in bytes.
const confLimit = 1 << 20

// journaldConf is [Journal] of journald's configuration below the directories, the most important first. As journald does
// (systemd-journald.conf(5)) it reads the first journald.conf that there is and then all drop-ins by their names; of two of one
// name the more important one counts, and one that is empty or a link to /dev/null hides the others.
func journaldConf(dirs ...string) (map[string]string, error) {
	dropIns := map[string]string{} // by name
	main := ""
	for _, dir := range dirs {
		path := filepath.Join(dir, "systemd/journald.conf")
		if _, err := os.Stat(path); err == nil && main == "" {
			main = path
		}
		entries, err := os.ReadDir(path + ".d")
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		for _, e := range entries {
			if name := e.Name(); strings.HasSuffix(name, ".conf") && dropIns[name] == "" {
				dropIns[name] = filepath.Join(path+".d", name)
			}
		}
	}
	var names, files []string
	for name := range dropIns {
		names = append(names, name)
	}
	slices.Sort(names)
	if main != "" {
		files = append(files, main)
	}
	for _, name := range names {
		files = append(files, dropIns[name])
	}
	settings := map[string]string{}
	for _, path := range files {
		if err := readConf(path, settings); err != nil {
			return nil, err
		}
	}
	return settings, nil
}

// readConf adds what a file says under [Journal]. An empty value is the default.
func readConf(path string, settings map[string]string) error {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // removed just now, or a link that leads nowhere
	}
	if err != nil {
		return err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, confLimit))
	if err != nil {
		return err
	}
	section := ""
	for line := range strings.Lines(string(data)) {
		line = strings.TrimSpace(line)
		if strings.HasPrefix(line, "[") {
			section = line
		}
		key, value, ok := strings.Cut(line, "=")
		if !ok || section != "[Journal]" || strings.HasPrefix(line, "#") || strings.HasPrefix(line, ";") {
			continue
		}
		settings[strings.TrimSpace(key)] = strings.TrimSpace(value)
	}
	return nil
}
