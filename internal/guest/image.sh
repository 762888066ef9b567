# Runs inside a fresh debootstrap: makes it boot fast, quietly, and without touching what it shares with the host.
set -eu
user=$1 uid=$2

useradd --create-home --uid "$uid" --shell /bin/bash "$user"
echo guest >/etc/hostname
printf '127.0.0.1 localhost guest\n::1 localhost\n' >/etc/hosts

# What packages enabled: gettys, apt and fstrim timers, …
find /etc/systemd/system -mindepth 1 -delete

# What systemd itself pulls in: consoles nobody sits at, mounts and knobs of the one kernel that host and guest share,
# and first-boot work of which the result is already in the image.
for unit in \
	getty.target console-getty.service getty-static.service \
	systemd-ask-password-wall.path systemd-ask-password-console.path \
	systemd-update-utmp.service systemd-update-utmp-runlevel.service \
	remote-fs.target systemd-tmpfiles-clean.timer \
	dev-hugepages.mount sys-kernel-debug.mount sys-kernel-tracing.mount sys-kernel-config.mount \
	sys-fs-fuse-connections.mount proc-sys-fs-binfmt_misc.automount proc-sys-fs-binfmt_misc.mount \
	systemd-binfmt.service systemd-modules-load.service modprobe@.service kmod-static-nodes.service \
	systemd-sysctl.service systemd-random-seed.service systemd-pstore.service systemd-firstboot.service \
	systemd-machine-id-commit.service systemd-journald-audit.socket systemd-journal-flush.service \
	systemd-repart.service systemd-hibernate-clear.service systemd-tpm2-setup.service systemd-tpm2-setup-early.service \
	systemd-pcrmachine.service systemd-pcrphase.service systemd-pcrphase-sysinit.service \
	systemd-pcrlock.socket systemd-pcrextend.socket systemd-sysext.socket systemd-creds.socket \
	systemd-hostnamed.socket systemd-initctl.socket systemd-networkd.socket \
	systemd-networkd.service systemd-resolved.service systemd-timesyncd.service
do
	ln -s /dev/null "/etc/systemd/system/$unit"
done
ln -s /lib/systemd/system/multi-user.target /etc/systemd/system/default.target

# The journal lives and dies with the guest, and a test wants every line of it.
mkdir -p /etc/systemd/journald.conf.d
cat >/etc/systemd/journald.conf.d/guest.conf <<-'END'
	[Journal]
	Storage=volatile
	RateLimitBurst=0
	Audit=no
	ForwardToWall=no
	ForwardToConsole=no
END

apt-get clean
rm -rf /var/lib/apt/lists/* /usr/share/doc/* /usr/share/locale/* /usr/share/man/*
: >/etc/machine-id
# Older than /usr, and every boot would rebuild ld.so.cache, the message catalog and the hardware database.
touch /usr /etc/.updated /var/.updated
