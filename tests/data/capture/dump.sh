#!/bin/sh
# dump.sh DIR: the texts of one phase
d=$1; mkdir -p $d
cat /proc/slabinfo >$d/slabinfo; cat /proc/meminfo >$d/meminfo
cat /proc/net/sockstat >$d/sockstat; cat /proc/net/sockstat6 >$d/sockstat6 2>/dev/null
ss -s >$d/ss_s; NSTAT_HISTORY=/tmp/nh.$$ nstat -az >$d/nstat
for l in /sys/kernel/slab/*; do [ -L $l ] && echo ${l##*/} $(readlink $l); done >$d/slab_aliases
