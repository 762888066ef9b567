# Runs on the host as PID 1 of the new namespaces and becomes the guest's systemd.
# Arguments: the image, an empty directory to mount on, the machine ID, the notify socket. Descriptor 3: the gate.
# Descriptor 4, where there is a fifth argument, the ID of the boot: what a guest that lost its power had written.
set -eu
image=$1 scratch=$2 machine_id=$3 notify=$4 boot_id=${5-}

# The creator opens the gate once it has the guest in hand. If it was killed before the kernel noted that this process
# shall die with it, the gate closes instead.
read -r _ <&3
exec 3<&-

mount -t tmpfs -o mode=0755 zdt-guest "$scratch"
cd "$scratch"
mkdir upper work root
if [ "$boot_id" ]; then
	cp -a /proc/self/fd/4/. upper/
	exec 4<&-
fi
mount -t overlay -o "lowerdir=$image,upperdir=$scratch/upper,workdir=$scratch/work" zdt-guest root
cd root

mount -t proc -o nosuid,noexec,nodev proc proc
# The kernel's knobs belong to the host, except the network's, which are the guest's own.
mount --bind proc/sys proc/sys
mount --bind proc/sys/net proc/sys/net
if [ "$boot_id" ]; then
	echo "$boot_id" >../boot_id
	mount --bind ../boot_id proc/sys/kernel/random/boot_id
fi
mount -o remount,bind,ro proc/sys
if [ -e proc/sysrq-trigger ]; then
	mount --bind proc/sysrq-trigger proc/sysrq-trigger
	mount -o remount,bind,ro proc/sysrq-trigger
fi
mount -t sysfs -o ro,nosuid,noexec,nodev sysfs sys
mount -t cgroup2 -o nosuid,noexec,nodev cgroup2 sys/fs/cgroup
mount -t tmpfs -o mode=0755,nosuid,nodev tmpfs run
# What the guest writes: PowerCycle takes it along.
mkdir -m 0700 run/guest-disk
mount --bind ../upper run/guest-disk
mount -t tmpfs -o mode=1777,nosuid,nodev tmpfs tmp
mount -t tmpfs -o mode=0755,nosuid tmpfs dev
for node in null zero full random urandom tty; do
	: >"dev/$node"
	mount --bind "/dev/$node" "dev/$node"
done
mkdir dev/pts dev/shm
mount -t devpts -o newinstance,ptmxmode=0666,mode=0620,gid=5,nosuid,noexec devpts dev/pts
mount -t tmpfs -o mode=1777,nosuid,nodev tmpfs dev/shm
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
ln -s fd/0 dev/stdin
ln -s fd/1 dev/stdout
ln -s fd/2 dev/stderr

# An image has an empty one, which systemd would take for a transient machine.
[ "$boot_id" ] && [ -s etc/machine-id ] || echo "$machine_id" >etc/machine-id

pivot_root . mnt
cd /
umount -l /mnt
mount --make-rshared /
ip link set lo up
ulimit -S -n "$(ulimit -H -n)"
# The clock and the kernel's modules are the host's too.
exec env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin LANG=C.UTF-8 \
	container=zdt NOTIFY_SOCKET="$notify" \
	setpriv --bounding-set=-sys_time,-sys_module,-syslog /lib/systemd/systemd
