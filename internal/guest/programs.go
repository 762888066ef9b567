package guest

import (
	"context"
	_ "embed"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// The images with programs that zdt run has to be good for, as Debian packages them. Each is a plain image and more.
const (
	BookwormPrograms Image = "programs-bookworm" // gunicorn, nginx
	TrixiePrograms   Image = "programs-trixie"   // gunicorn, uvicorn, Node.js, nginx, HAProxy, puma, Java, Server::Starter
)

// TrixieServices has what servers commonly run, with the units that Debian gives it: for what zdt says of services that
// nobody wrote with zdt in mind.
const TrixieServices Image = "services-trixie"

// plain is the image that i is a copy of, "" for a plain one.
func (i Image) plain() Image {
	switch i {
	case BookwormPrograms:
		return Bookworm
	case TrixiePrograms, TrixieServices:
		return Trixie
	}
	return ""
}

// programs are the packages that i has beyond its plain image.
func (i Image) programs() []string {
	switch i {
	case BookwormPrograms:
		return []string{"gunicorn", "nginx"}
	case TrixiePrograms:
		return []string{
			"gunicorn", "uvicorn", "nodejs", "nginx", "haproxy", "puma",
			// A JDK is three times the download of a JRE, and all that a test needs of it is a compiler.
			"default-jre-headless", "libeclipse-jdt-core-compiler-batch-java",
			"libserver-starter-perl",
		}
	case TrixieServices: // small ones: together they are fetched in seconds
		return []string{
			"apache2", "bind9", "chrony", "cron", "dnsmasq", "dovecot-core", "haproxy", "lighttpd", "memcached", "mosquitto", "nginx",
			"openssh-server", "postfix", "postgresql-common", "prometheus-node-exporter", "redis-server", "rsync", "rsyslog", "squid",
			"tftpd-hpa", "unbound", "vsftpd",
		}
	}
	return nil
}

//go:embed programs.sh
var programsScript string

// noServices is a policy-rc.d as invoke-rc.d asks it: no package may start anything. The image has no systemd running,
// but a package cannot tell.
const noServices = "#!/bin/sh\nexit 101\n"

// addPrograms makes dir the image, which is another one's copy. Two tools share the work: the host's apt fetches, as
// it knows the proxies, certificates and passwords that its mirror may want, and the image's own apt installs, as it
// knows its release.
func (s Store) addPrograms(ctx context.Context, image Image, plain, dir string) error {
	// GNU cp shares the blocks where the file system can.
	if out, err := runTool(ctx, "cp", "-a", "--reflink=auto", plain+"/.", dir); err != nil {
		return fmt.Errorf("copy %s: %w\n%s", plain, err, lastLines(out, 20))
	}
	fetch := fetchOptions(dir)
	install := append([]string{"-y", "--no-install-recommends", "install"}, image.programs()...)
	if out, err := runTool(ctx, "apt-get", slices.Concat(fetch, []string{"update"})...); err != nil {
		return fmt.Errorf("update package lists: %w\n%s", err, lastLines(out, 20))
	}
	if out, err := runTool(ctx, "apt-get", slices.Concat(fetch, []string{"--download-only"}, install)...); err != nil {
		return fmt.Errorf("fetch packages: %w\n%s", err, lastLines(out, 20))
	}
	if err := os.WriteFile(filepath.Join(dir, "usr/sbin/policy-rc.d"), []byte(noServices), 0o755); err != nil {
		return err
	}
	// Java's packages run Java, which finds itself through /proc. The mount goes with runTool's mount namespace.
	const inside = `mount -t proc proc "$1/proc" && exec chroot "$@"`
	args := slices.Concat([]string{"-c", inside, "install.sh", dir, "apt-get", "--no-download", "-o", "Dpkg::Options::=--force-unsafe-io"}, install)
	if out, err := runTool(ctx, "/bin/sh", args...); err != nil {
		return fmt.Errorf("install packages: %w\n%s", err, lastLines(out, 20))
	}
	if out, err := runTool(ctx, "chroot", dir, "/bin/sh", "-c", programsScript); err != nil {
		return fmt.Errorf("configure: %w\n%s", err, lastLines(out, 20))
	}
	return nil
}

// fetchOptions make the host's apt-get one of the image in dir: its sources, its keys, its lists and what it has
// installed, and of the host only how to reach an archive.
func fetchOptions(dir string) []string {
	var options []string
	for _, o := range []struct{ name, path string }{
		{"Dir::State", "var/lib/apt"},
		{"Dir::State::status", "var/lib/dpkg/status"},
		{"Dir::Cache", "var/cache/apt"},
		{"Dir::Etc::SourceList", "etc/apt/sources.list"},
		{"Dir::Etc::SourceParts", "etc/apt/sources.list.d"},
		{"Dir::Etc::Trusted", "etc/apt/trusted.gpg"},
		{"Dir::Etc::TrustedParts", "etc/apt/trusted.gpg.d"},
		{"Dir::Etc::Preferences", "etc/apt/preferences"},
		{"Dir::Etc::PreferencesParts", "etc/apt/preferences.d"},
	} {
		options = append(options, "-o", o.name+"="+filepath.Join(dir, o.path))
	}
	// The store is for root alone, and apt would fetch as another user. Of the lists only that of packages is of use.
	return append(options, "-o", "APT::Sandbox::User=root", "-o", "Acquire::Languages=none",
		"-o", "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false")
}

// programsVersion is what goes into an image with programs.
func (i Image) programsVersion() []string {
	return []string{string(i), i.plain().version(), strings.Join(i.programs(), ","), programsScript}
}

// All returns the plain images and those with programs; a plain one comes before its copy.
func All() []Image {
	return slices.Concat(Images(), []Image{BookwormPrograms, TrixiePrograms, TrixieServices})
}
