#!/bin/sh
# Keeps one host running: it starts the host again after a reboot inside it, and ends after a poweroff.
# usage: supervise.sh DIRECTORY CGROUP... -- systemd-nspawn arguments
#
# The lab_nspawn module starts it in its own session and mount namespace, so that it outlives
# Ansible, and the overlay is unmounted with it, however it ends.
set -eu
cd "$1"
shift

# Enter the host's own cgroup before nspawn starts. If PID 1 is not systemd, the init inside would
# otherwise share the machine's root cgroup with the inits of all other hosts.
while [ "$1" != "--" ]; do
  echo $$ >"$1/cgroup.procs"
  shift
done
shift

# Relative paths: colons and commas in the lab's own path mean something to overlayfs.
mount -t overlay overlay -o lowerdir=lower,upperdir=upper,workdir=work root

while :; do
  status=0
  systemd-nspawn "$@" || status=$?
  # With --keep-unit, nspawn leaves a reboot to its caller and ends with this status
  # (EXIT_FORCE_RESTART in systemd's src/basic/exit-status.h).
  if [ "$status" -ne 133 ] || [ -e stop ]; then
    break
  fi
done
echo "$status" >exit
