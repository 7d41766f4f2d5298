#!/bin/sh
# Run by mmdebstrap with the new root file system as $1, after the packages are in.
# Environment: TREE (files to copy in), SSH (the lab's keys).
set -eu
root=$1

cp -R --no-preserve=ownership,mode "$TREE/." "$root/"
find "$root/etc/sudoers.d" -type f -exec chmod 0440 {} +

# A key of the lab's own replaces those that openssh-server made: known_hosts is written from it.
rm -f "$root"/etc/ssh/ssh_host_*
install -m 0600 "$SSH/ssh_host_ed25519_key" "$root/etc/ssh/ssh_host_ed25519_key"
install -m 0644 "$SSH/ssh_host_ed25519_key.pub" "$root/etc/ssh/ssh_host_ed25519_key.pub"

# An ordinary user: '*' lines of limits.d do not apply to root (limits.conf(5)).
chroot "$root" useradd --create-home --shell /bin/bash lab
chroot "$root" passwd --lock lab >/dev/null
chroot "$root" passwd --lock root >/dev/null
install -d -m 0700 "$root/home/lab/.ssh"
install -m 0600 "$SSH/id_ed25519.pub" "$root/home/lab/.ssh/authorized_keys"
chroot "$root" chown -R lab:lab /home/lab/.ssh

chroot "$root" systemctl --quiet enable systemd-networkd.service ssh.service
# Debian's packages enable their services: a host is no proxy unless a role makes it one.
chroot "$root" systemctl --quiet disable haproxy.service
# Nothing may wake up by itself on a host that is being measured, and nothing waits for a network
# that has no way out.
for unit in apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer fstrim.timer \
    e2scrub_all.timer e2scrub_reap.service systemd-timesyncd.service systemd-pstore.service \
    systemd-tmpfiles-clean.timer systemd-networkd-wait-online.service systemd-homed.service \
    systemd-resolved.service console-getty.service dev-hugepages.mount \
    systemd-journal-flush.service remote-fs.target; do
  chroot "$root" systemctl --quiet mask "$unit" 2>/dev/null
done
# getty@ and container-getty@ come from a generator and a default link: no login but SSH.
for unit in getty@.service container-getty@.service getty.target; do
  chroot "$root" systemctl --quiet mask "$unit" 2>/dev/null
done
chroot "$root" systemctl --quiet set-default multi-user.target

# With a kernel: the initrd again, by the settings that have just been copied in.
if [ -d "$root/boot" ] && ls "$root"/boot/vmlinuz-* >/dev/null 2>&1; then
  chroot "$root" systemctl --quiet enable connlab-host.service
  chroot "$root" update-initramfs -u -k all >/dev/null
fi

# The machine's own traces stay out of the image: sources and proxies, names, identity.
rm -f "$root"/etc/apt/sources.list "$root"/etc/apt/sources.list.d/* \
  "$root"/etc/apt/apt.conf.d/99mmdebstrap "$root/etc/resolv.conf" "$root/etc/hostname"
: >"$root/etc/machine-id"
rm -f "$root/var/lib/dbus/machine-id"

# What sshd would otherwise say at the first login of a host, not at the build.
chroot "$root" sh -c 'mkdir -p /run/sshd && sshd -t && rmdir /run/sshd'
chroot "$root" visudo -cq
