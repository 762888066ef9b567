package systest

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"io"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/zdt-dev/zdt/internal/guest"
)

// unpacked are the files of an archive by their names below its one directory.
func unpacked(t *testing.T, archive []byte) map[string]string {
	t.Helper()
	z, err := gzip.NewReader(bytes.NewReader(archive))
	if err != nil {
		t.Fatal(err)
	}
	files := map[string]string{}
	for r := tar.NewReader(z); ; {
		h, err := r.Next()
		if err == io.EOF {
			return files
		}
		if err != nil {
			t.Fatal(err)
		}
		data, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		if h.Mode != 0o600 || h.Uid != 0 || h.Typeflag != tar.TypeReg {
			t.Errorf("%s: %+v", h.Name, h)
		}
		_, name, _ := strings.Cut(h.Name, "/")
		files[name] = string(data)
	}
}

// reportDoc is what the tests need of zdt bugreport -o json.
type reportDoc struct {
	File  string `json:"file"`
	Files []struct {
		Path     string         `json:"path"`
		Redacted map[string]int `json:"redacted"`
		Cut      []string       `json:"cut"`
	} `json:"files"`
	Missing []string `json:"missing"`
}

// bugreport makes a report as a user of the guest, and returns it with the files in it.
func (s *service) bugreport(uid int, args ...string) (doc reportDoc, files map[string]string) {
	s.t.Helper()
	c := guest.Command{Args: append([]string{"zdt", "bugreport", "-o", "json"}, args...), UID: uid, Dir: "/tmp"}
	p, err := s.g.Spawn(s.t.Context(), c)
	if err != nil {
		s.t.Fatal(err)
	}
	r, err := p.Wait()
	if err != nil || r.Code != 0 {
		s.t.Fatalf("%v\n%s", err, r)
	}
	if err := json.Unmarshal([]byte(r.Stdout), &doc); err != nil {
		s.t.Fatalf("%v\n%s", err, r)
	}
	info, err := os.Stat(s.g.Path(doc.File))
	if err != nil || info.Mode() != 0o600 {
		s.t.Fatalf("%s: %v, %v", doc.File, info, err)
	}
	return doc, unpacked(s.t, readFile(s.t, s.g.Path(doc.File)))
}

// private writes a file that others cannot read.
func (s *service) private(path, text string, mode os.FileMode) {
	s.t.Helper()
	if err := s.g.WriteFile(path, []byte(text), mode); err != nil {
		s.t.Fatal(err)
	}
}

// A helper finds in a report what he needs, and nobody finds a secret in it: not the values of the environment, not what stands in
// command lines, and not what the program has logged of them. The service's user may have written what he likes wherever he can.
func TestBugreport(t *testing.T) {
	t.Parallel()
	g := guest.Boot(t, guest.Trixie)
	s := newService(t, g, options{init: []string{"--service-user", guest.User}})
	const unit = "/etc/systemd/system/hello.service.d/secrets.conf"
	key := "-----BEGIN PRIVATE KEY-----\nMIIEvKEYKEY\nshort\n-----END PRIVATE KEY-----"
	secrets := []string{
		"env-Pa55", "file-Pa55", "second-line", "arg-Pa55", "flag-Pa55", "url-Pa55", "query-Pa55", "bearer-Pa55", "cred-Pa55", "hostile-Pa55", "learned8",
		"MIIEvKEYKEY", "0123456789abcdef0123456789abcdef01234567", "Zk3vQ9xLm2Tn8RbY5wHs7PdJ",
	}
	// What the user can write: one that systemd reads as root, and that leads to a file of root's.
	s.private("/etc/zdt-test-secret", "FOUND=hostile-Pa55\n", 0o600)
	s.run("runuser", "-u", guest.User, "--", "ln", "-s", "/etc/zdt-test-secret", "/home/"+guest.User+"/env")
	s.private("/etc/hello.env", "DB_PASSWORD=file-Pa55\nLONG=\"one\nsecond-line\"\n", 0o600)
	logged := []string{
		"the pool logs in with learned8 now", "retry --password=arg-Pa55", "connect postgres://shop:url-Pa55@db/shop", "GET /login?token=query-Pa55 200",
		"Authorization: Bearer bearer-Pa55", "session 0123456789abcdef0123456789abcdef01234567", "got Zk3vQ9xLm2Tn8RbY5wHs7PdJ", "env-Pa55", "red \x1b[31m\x9b title \u202e",
	}
	logged = append(logged, strings.Split(key, "\n")...)
	script := "#!/bin/sh\n"
	for _, l := range logged {
		script += "printf '%s\\n' '" + l + "'\n"
	}
	s.private("/usr/local/bin/talk", script, 0o755)
	s.writeUnit(unit, `[Service]
# Environment=OLD=env-Pa55
Environment=API=env-Pa55 "TOKEN=learned8" MODE=production
EnvironmentFile=-/etc/hell?.env
EnvironmentFile=-/etc/nosuch.env
EnvironmentFile=-/home/`+guest.User+`/env
SetCredential=db:cred-Pa55
ExecStartPost=/bin/true --password=arg-Pa55 --secret flag-Pa55 postgres://shop:url-Pa55@db/shop
ExecStartPost=+/usr/local/bin/talk
`)
	s.run("systemctl", "daemon-reload")
	s.run("systemctl", "restart", s.unit)
	s.mustUpgrade(good(2))
	s.run("zdt", "rollback", s.name)

	doc, files := s.bugreport(0, s.name)
	all := ""
	for name, text := range files {
		all += text
		for _, secret := range secrets {
			if strings.Contains(text, secret) {
				t.Errorf("%s has %s:\n%s", name, secret, text)
			}
		}
		if strings.ContainsAny(text, "\x00\x07\x1b\u009b\u202e") {
			t.Errorf("%s has what a terminal acts upon", name)
		}
	}
	st := s.status()
	_, generated, _ := strings.Cut(s.run("cat", "/etc/systemd/system/hello.service"), "Generated=sha256:")
	generated, _, _ = strings.Cut(generated, "\n")
	for name, wants := range map[string][]string{
		"MANIFEST":    {"services/hello/units.txt", "redacted", "environment", "learned", "/home/" + guest.User},
		"host.json":   {`"systemd": "257`, `"pid1": "systemd"`, `"net.core.somaxconn"`, `"container": "zdt"`, `"cgroups": "unified"`},
		"doctor.json": {"zdt.doctor/1"},
		"services/hello/units.txt": {
			"# /etc/systemd/system/hello.service\n", "# /etc/systemd/system/hello.socket\n", "# " + unit + "\n", "[X-Zdt]", "ExecStart=/var/lib/zdt/hello/current/hello", "\nGenerated=sha256:" + generated + "\n",
			"Environment=API=«redacted 8 bytes» TOKEN=«redacted 8 bytes» MODE=«redacted 10 bytes»\n", "SetCredential=db:«redacted", "--secret «redacted",
		},
		"services/hello/environment.txt": {"# /etc/hello.env\nDB_PASSWORD=«redacted 9 bytes»\nLONG=«redacted"},
		"services/hello/properties.json": {`"KillMode": "control-group"`, `"hello.socket"`, `"API=«redacted 8 bytes»"`, `"--password=«redacted`, strings.TrimSpace(s.show("InvocationID"))},
		"services/hello/check.json":      {"zdt.check/1"},
		"services/hello/status.json":     {"zdt.status/1", st.Current.ID, st.Current.SHA256},
		"services/hello/history.json":    {"zdt.history/1", `"upgrade"`, `"rollback"`},
		"services/hello/releases.json":   {st.Current.SHA256, `"staged_at"`},
		"services/hello/journal.txt":     {"ZDT_EVENT=fork", "ZDT_EVENT=upgrade-end", "the pool logs in with «redacted 8 bytes» now", `red \x1b[31m`, "== around upgrade", "== the end", "Started hello.service"},
	} {
		for _, want := range wants {
			if !strings.Contains(files[name], want) {
				t.Errorf("%s lacks %q:\n%s", name, want, files[name])
			}
		}
	}
	reports := 0
	for _, f := range doc.Files {
		if strings.HasPrefix(f.Path, "services/hello/reports/") {
			reports++
		}
	}
	if reports != 2 {
		t.Errorf("%d reports of upgrades, want those of the upgrade and of the rollback: %+v", reports, doc.Files)
	}
	if len(doc.Missing) != 1 || !strings.Contains(doc.Missing[0], "/home/"+guest.User+"/env") || !strings.Contains(doc.Missing[0], "not trusted") {
		t.Errorf("missing: %q", doc.Missing)
	}
	if strings.Contains(all, "machine_id") || strings.Contains(all, strings.TrimSpace(string(readFile(t, g.Path("/etc/machine-id"))))) {
		t.Error("the machine's ID is in the report")
	}

	// As anybody, what cannot be read is named.
	doc, files = s.bugreport(guest.UserUID, s.name, "--file", "/tmp/mine.tar.gz")
	if files["services/hello/status.json"] == "" || !slices.ContainsFunc(doc.Missing, func(m string) bool { return strings.Contains(m, "/etc/hello.env") }) {
		t.Errorf("as %s: %q", guest.User, doc.Missing)
	}
	for name, text := range files {
		for _, secret := range secrets {
			if strings.Contains(text, secret) {
				t.Errorf("as %s: %s has %s", guest.User, name, secret)
			}
		}
	}

	// Nothing is overwritten, no service is made up, and a broken one is no obstacle.
	for _, tt := range []struct {
		code int
		args []string
	}{
		{10, []string{s.name, "--file", "/tmp/mine.tar.gz"}},
		{4, []string{"nosuch"}},
		{4, []string{s.name, "nosuch"}},
	} {
		r, err := g.Run(t.Context(), append([]string{"zdt", "bugreport"}, tt.args...)...)
		if err != nil || r.Code != tt.code {
			t.Errorf("bugreport %q: want exit code %d: %v\n%s", tt.args, tt.code, err, r)
		}
	}
	s.run("systemctl", "stop", s.unit, "hello.socket")
	s.run("rm", "/etc/systemd/system/hello.service", "/var/lib/zdt/hello/current")
	s.private("/var/lib/zdt/hello/txn.json", "{", 0o600)
	s.run("systemctl", "daemon-reload")
	doc, files = s.bugreport(0, "--file", "/tmp/broken.tar.gz")
	if files["services/hello/status.json"] == "" || !slices.ContainsFunc(doc.Missing, func(m string) bool { return strings.Contains(m, "txn.json") || strings.Contains(m, "open upgrade") }) {
		t.Errorf("of a broken service: %q", doc.Missing)
	}
}
