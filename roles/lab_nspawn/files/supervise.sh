#!/bin/sh
# Keeps one host running: a reboot inside it starts it again, a poweroff ends it.
# usage: supervise.sh DIRECTORY CGROUP... -- systemd-nspawn arguments
#
# Started by the lab_nspawn module in a session and a mount namespace of its own, so that it
# outlives Ansible and so that the overlay goes away with it, however it ends.
set -eu
cd "$1"
shift

# A cgroup of its own, before nspawn starts: where PID 1 is not systemd, the init inside would
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
  # With --keep-unit nspawn leaves the reboot to its caller, and says so by this status
  # (EXIT_FORCE_RESTART in systemd's src/basic/exit-status.h).
  if [ "$status" -ne 133 ] || [ -e stop ]; then
    break
  fi
done
echo "$status" >exit
