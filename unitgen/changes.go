package unitgen

import (
	"cmp"
	"fmt"
	"path"
	"slices"
	"strings"
)

// Remedy is what puts a changed setting of a running service into force.
type Remedy string

const (
	// RemedyHandoff: the next handoff takes it over, once systemd has read the file.
	RemedyHandoff Remedy = "handoff"
	// RemedyReload: it is in force as soon as systemd has read the file.
	RemedyReload Remedy = "daemon-reload"
	// RemedyRestart: only a restart of the service takes it over.
	RemedyRestart Remedy = "restart"
	// RemedySocket: only a restart of the socket unit does, and with it of the service.
	RemedySocket Remedy = "socket-restart"
	// RemedyEnable: systemctl reenable makes the links that [Install] speaks of.
	RemedyEnable Remedy = "reenable"
	// RemedyZdt: zdt reads the file itself, each time.
	RemedyZdt Remedy = "zdt"
)

// UnitText is the text of a unit: its fragment, and then its drop-ins in the order in which systemd reads them.
type UnitText struct {
	Unit  string // web.service
	Files []File
}

// A SettingChange is a setting of a unit that is not what it was.
type SettingChange struct {
	Unit    string `json:"unit"`
	Section string `json:"section"`
	Key     string `json:"key"`
	// Name is the part of Key that has changed, where it has parts: a variable of Environment=, a flag of zdt run in
	// ExecStart=, a file of EnvironmentFile=.
	Name string `json:"name,omitempty"`
	// Before and After are the values, several joined by "; ", "" for none. Those of variables are never told.
	Before string `json:"before,omitempty"`
	After  string `json:"after,omitempty"`
	// Path is the file that says so now or, of a setting that is gone, that has said so.
	Path string `json:"path,omitempty"`
	// Contents: it is the content of the file Name that has changed.
	Contents bool   `json:"contents,omitempty"`
	Remedy   Remedy `json:"remedy"`
}

func (c SettingChange) String() string {
	what := c.Key + "="
	switch {
	case c.Contents:
		return "the contents of " + c.Name
	case c.Key == "ExecStart" && strings.HasPrefix(c.Name, "-"):
		what += " " + c.Name
	case c.Name != "":
		return what + c.Name
	}
	switch {
	case c.Before == "" && c.After == "":
		return what
	case c.Before == "":
		return what + " " + c.After + " (was not set)"
	case c.After == "":
		return what + " " + c.Before + " (is not set any more)"
	}
	return what + " " + c.Before + " -> " + c.After
}

// Takes is how much of a unit the handoffs of a service take anew.
type Takes struct {
	// Unit: a handoff goes by way of ExecReload= and the helper, which starts the new program with the command and
	// the environment that the unit has then. With the library a new process inherits both from the old one.
	Unit bool
}

// Changes returns what is different in the text of units since before, and what puts it into force. Units are matched by
// name; those of one list only count as empty in the other.
func Changes(before, after []UnitText, takes Takes) []SettingChange {
	var all []SettingChange
	var units []string
	for _, u := range append(slices.Clone(before), after...) {
		if !slices.Contains(units, u.Unit) {
			units = append(units, u.Unit)
		}
	}
	find := func(texts []UnitText, unit string) effective {
		for _, u := range texts {
			if u.Unit == unit {
				return effectiveOf(u.Files)
			}
		}
		return effective{}
	}
	for _, unit := range units {
		all = append(all, compareUnit(unit, find(before, unit), find(after, unit), takes)...)
	}
	return all
}

// settingKey names a setting; part is a variable's name and the like.
type settingKey struct{ section, key, part string }

// settingValue is what a setting comes to, and the file that has the last word.
type settingValue struct {
	text string
	path string
}

// effective is what the files of a unit come to.
type effective map[settingKey]settingValue

// effectiveOf applies the files one after another, as systemd does: a later value replaces an earlier one of a setting
// that has one value and joins the others of one that is a list; an empty one takes back all before it.
func effectiveOf(files []File) effective {
	type entry struct{ value, path string }
	lists := map[settingKey][]entry{}
	for _, f := range files {
		settings, _ := parseUnit(f.Data)
		for _, s := range settings {
			k := settingKey{section: s.section, key: s.key}
			switch {
			case s.section == policySection && s.key == "Generated":
				// The seal on the rest: it says nothing of its own.
			case s.value == "":
				// Remembered with its file: that is who takes the setting away.
				lists[k] = []entry{{"", f.Path}}
			case isScalar(s.section, s.key):
				lists[k] = []entry{{s.value, f.Path}}
			default:
				lists[k] = append(lists[k], entry{s.value, f.Path})
			}
		}
	}
	out := effective{}
	for k, entries := range lists {
		var texts []string
		for _, e := range entries {
			if e.value != "" {
				texts = append(texts, e.value)
			}
		}
		path := entries[len(entries)-1].path
		if k.section != "Service" || k.key != "Environment" {
			out[k] = settingValue{strings.Join(texts, "; "), path}
			continue
		}
		for _, e := range entries {
			words, err := splitWords(e.value)
			if err != nil {
				words = []string{e.value}
			}
			for _, w := range words {
				name, _, _ := strings.Cut(w, "=")
				out[settingKey{k.section, k.key, name}] = settingValue{w, e.path}
			}
		}
	}
	return out
}

func compareUnit(unit string, before, after effective, takes Takes) []SettingChange {
	var keys []settingKey
	for k, v := range before {
		if after[k].text != v.text {
			keys = append(keys, k)
		}
	}
	for k, v := range after {
		if _, was := before[k]; !was && v.text != "" {
			keys = append(keys, k)
		}
	}
	slices.SortFunc(keys, func(a, b settingKey) int {
		return cmp.Or(slices.Index(sections[:], a.section)-slices.Index(sections[:], b.section), cmp.Compare(a.section, b.section), cmp.Compare(a.key, b.key), cmp.Compare(a.part, b.part))
	})
	var all []SettingChange
	for _, k := range keys {
		was, is := before[k], after[k]
		c := SettingChange{Unit: unit, Section: k.section, Key: k.key, Name: k.part, Before: was.text, After: is.text, Path: cmp.Or(is.path, was.path)}
		if k.part != "" {
			c.Before, c.After = "", "" // what variables say is nobody's business
		}
		c.Remedy = remedy(unit, k, takes)
		if k.section == "Service" && k.key == "ExecStart" {
			all = append(all, compareCommand(c, takes)...)
			continue
		}
		all = append(all, c)
	}
	return all
}

var sections = [...]string{"Unit", "Service", "Socket", "Install", policySection}

// remedy classifies a setting. What is not known needs a restart, which is always right.
func remedy(unit string, k settingKey, takes Takes) Remedy {
	switch {
	case strings.HasPrefix(k.section, "X-"): // systemd ignores such sections
		return RemedyZdt
	case k.section == "Install": // systemd.unit(5): read by systemctl enable and disable alone
		return RemedyEnable
	case k.section == "Unit":
		// Dependencies, conditions and start limits count for the next job of the unit, and systemd has them from
		// its own copy of the unit then (systemd.unit(5)).
		return RemedyReload
	case path.Ext(unit) == ".socket":
		switch {
		case contains(socketByReload[:], k.key):
			return RemedyReload
		case contains(socketByService[:], k.key):
			return RemedyRestart
		}
		return RemedySocket
	case contains(serviceByReload[:], k.key):
		return RemedyReload
	case takes.Unit && contains(serviceByHandoff[:], k.key) && !contains(helperOnce[:], k.part):
		return RemedyHandoff
	}
	return RemedyRestart
}

// compareCommand splits a changed ExecStart= of a helper into its flags, each of which is taken anew or not.
func compareCommand(c SettingChange, takes Takes) []SettingChange {
	was, is := parseHelperCommand(c.Before), parseHelperCommand(c.After)
	if !takes.Unit || was == nil || is == nil || was.zdt != is.zdt {
		c.Remedy = RemedyRestart
		return []SettingChange{c}
	}
	var all []SettingChange
	var names []string
	for _, f := range append(slices.Clone(was.flags), is.flags...) {
		name, _, _ := strings.Cut(f, "=")
		if !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	for _, name := range names {
		one := c
		one.Name, one.Before, one.After = name, was.values(name), is.values(name)
		if one.Before == one.After {
			continue
		}
		one.Remedy = RemedyRestart
		if contains(runFlagsAnew[:], strings.TrimLeft(name, "-")) {
			one.Remedy = RemedyHandoff
		}
		all = append(all, one)
	}
	if was.command != is.command {
		one := c
		one.Before, one.After, one.Remedy = was.command, is.command, RemedyHandoff
		all = append(all, one)
	}
	return all
}

// helperCommand is an ExecStart= that runs "zdt run".
type helperCommand struct {
	zdt     string // the words in front of the flags
	flags   []string
	command string
}

// values are those that a flag is given, in their order.
func (h *helperCommand) values(name string) string {
	var all []string
	for _, f := range h.flags {
		if n, v, _ := strings.Cut(f, "="); n == name {
			all = append(all, cmp.Or(v, `""`))
		}
	}
	return strings.Join(all, "; ")
}

// parseHelperCommand returns nil for any other command.
func parseHelperCommand(line string) *helperCommand {
	words, err := splitWords(line)
	dash := slices.Index(words, "--")
	if err != nil || dash < 2 || words[1] != "run" || !strings.HasPrefix(path.Base(words[0]), "zdt") {
		return nil
	}
	h := &helperCommand{zdt: strings.Join(words[:2], " ")}
	for i := 2; i < dash; i++ {
		w := words[i]
		if !strings.HasPrefix(w, "-") {
			return nil
		}
		if !strings.Contains(w, "=") && i+1 < dash && (words[i+1] == "-" || !strings.HasPrefix(words[i+1], "-")) {
			i++
			w += "=" + words[i]
		}
		h.flags = append(h.flags, w)
	}
	// As it is written, quotes and all: that is how people know it.
	_, h.command, _ = strings.Cut(line, " -- ")
	return h
}

// EnvironmentFiles are the paths that EnvironmentFile= of a unit comes to, without the "-" in front of those that may be
// absent. They may hold wildcards and specifiers, as they are written.
func EnvironmentFiles(files []File) []string {
	v := effectiveOf(files)[settingKey{section: "Service", key: "EnvironmentFile"}]
	var paths []string
	for p := range strings.SplitSeq(v.text, "; ") {
		if p = strings.TrimPrefix(strings.TrimSpace(p), "-"); p != "" {
			paths = append(paths, p)
		}
	}
	return paths
}

// SystemCallFilter are the lines of SystemCallFilter= that count, in the order in which systemd reads them.
func SystemCallFilter(files []File) []string {
	text := effectiveOf(files)[settingKey{section: "Service", key: "SystemCallFilter"}].text
	if text == "" {
		return nil
	}
	return strings.Split(text, "; ")
}

// EnvironmentFileChange is the change of what is in a file of EnvironmentFile=. systemd reads it whenever it starts a process of
// the unit, ExecReload= included: it needs no daemon-reload (systemd.exec(5)).
func EnvironmentFileChange(unit, file string, takes Takes) SettingChange {
	k := settingKey{section: "Service", key: "EnvironmentFile"}
	return SettingChange{Unit: unit, Section: k.section, Key: k.key, Name: file, Path: file, Contents: true, Remedy: remedy(unit, k, takes)}
}

func contains(list []string, word string) bool { return word != "" && slices.Contains(list, word) }

// InForce says in words what a change waits for. read: systemd has read it.
func (c SettingChange) InForce(read bool) string {
	switch c.Remedy {
	case RemedyZdt:
		return "in force"
	case RemedyReload:
		if read {
			return "in force"
		}
		return "with daemon-reload"
	case RemedyHandoff:
		if read || c.Contents {
			return "with this handoff"
		}
		return "with daemon-reload and a handoff"
	case RemedyEnable:
		return fmt.Sprintf("with systemctl reenable %s", c.Unit)
	case RemedySocket:
		return fmt.Sprintf("with a restart of %s", c.Unit)
	}
	return "with a restart"
}
