#!/bin/sh
# The first program of the guest. It mounts the root file system of the host read-only, below a
# writable layer in memory, runs /results/command there, and writes its output to
# /results/output and its exit status to /results/status. If it ends early, the kernel panics, and the host sees that no status was written.
export PATH=/bin:/sbin
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
exec >/dev/console 2>&1 </dev/console
for module in virtio_pci 9pnet_virtio 9p overlay; do
	modprobe "$module" || exit 1
done
ip link set lo up
hostname guest # an API server without one does not register itself
mount -t 9p -o trans=virtio,version=9p2000.L,ro,cache=loose,msize=512000 root /lower || exit 1
mount -t tmpfs -o size=90%,nr_inodes=0 tmpfs /upper || exit 1
mkdir /upper/changes /upper/work
mount -t overlay -o lowerdir=/lower,upperdir=/upper/changes,workdir=/upper/work overlay /guest || exit 1
for directory in proc sys dev; do
	mount --bind "/$directory" "/guest/$directory" || exit 1
done
mkdir -p /guest/dev/pts /guest/dev/shm /guest/results
mount -t devpts devpts /guest/dev/pts
mount -t tmpfs tmpfs /guest/dev/shm
mount -t cgroup2 cgroup2 /guest/sys/fs/cgroup
mount -t 9p -o trans=virtio,version=9p2000.L,cache=none,msize=131072 results /guest/results || exit 1
# The results of tests in directories for temporary files of the host are not those of the guest.
rm -rf /guest/tmp/gantry-*
chroot /guest /bin/sh /results/command >/guest/results/output 2>&1 </dev/null
status=$?
for logs in /guest/tmp/gantry-e2e-*; do
	[ ! -e "$logs" ] || cp -r "$logs" /guest/results/
done
echo "$status" >/guest/results/status
sync
poweroff -f
