#!/bin/sh
# capture.sh DIR N: before, peak, after
out=$1; n=$2
hold 64 1 </dev/null >/dev/null; sleep 1
sh dump.sh $out/warm; rm -rf $out/warm
sh dump.sh $out/before
rm -f /tmp/hf /tmp/ho; mkfifo /tmp/hf
hold $n 1 </tmp/hf >/tmp/ho & exec 7>/tmp/hf
while ! grep -q held /tmp/ho; do sleep 1; done
sh dump.sh $out/peak
sleep 2; sh dump.sh $out/hold_end
exec 7>&-; while ! grep -q closed /tmp/ho; do sleep 1; done; sleep 1
sh dump.sh $out/after
for l in TCP eventpoll_epi eventpoll_pwq ep_head tcp_bind_bucket tcp_bind2_bucket filp dentry sock_inode_cache lsm_file_cache lsm_inode_cache request_sock_TCP; do [ -e /sys/kernel/slab/$l ] && echo $l $(readlink /sys/kernel/slab/$l) $(cat /sys/kernel/slab/$l/object_size /sys/kernel/slab/$l/slab_size); done >$out/slab_names
cat /proc/sys/fs/epoll/max_user_watches /proc/sys/net/ipv4/tcp_mem /proc/sys/fs/file-max >$out/misc; uname -r > $out/kernel
cat /sys/kernel/security/lsm >>$out/misc 2>/dev/null
