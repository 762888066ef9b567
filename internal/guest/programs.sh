# Runs in a copy of a plain image that has just been given packages. A guest starts what a test asks for and nothing
# else, whatever packages enable.
set -eu

rm /usr/sbin/policy-rc.d
# What the packages enabled. The plain image's own links are masks and the default target.
find /etc/systemd/system -mindepth 1 -type l ! -lname /dev/null ! -name default.target -delete
find /etc/systemd/system -mindepth 1 -type d -empty -delete

apt-get clean
rm -rf /var/lib/apt/lists/* /usr/share/doc/* /usr/share/locale/* /usr/share/man/*
# Older than /usr, and every boot would rebuild ld.so.cache, the message catalog and the hardware database.
touch /usr /etc/.updated /var/.updated
