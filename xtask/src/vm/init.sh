#!/bin/sh
# The guest's first process: mounts, modules, then one test binary after the other. What it says goes to the port that
# xtask reads; its lines begin with "weft-vm". The kernel's own console is another one.
export PATH=/bin HOME=/root TMPDIR=/tmp WEFT_BIN_DIR=/weft RUST_BACKTRACE=0
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mount -t tmpfs tmp /tmp
mount -t tmpfs run /run
mount -t bpf bpf /sys/fs/bpf
mount -t cgroup2 cgroup /sys/fs/cgroup
ln -s /proc/self/fd /dev/fd
ip link set lo up
hostname weft-vm
for module in virtio_pci virtio_console $(cat /weft/modules); do modprobe -q "$module"; done
for port in /sys/class/virtio-ports/*; do
    [ "$(cat "$port/name")" = weft ] && exec >"/dev/${port##*/}" 2>&1
done
echo "weft-vm booted $(uname -r) $(cut -d' ' -f1 /proc/uptime)"
cd /tmp
while read -r name limit options; do
    echo "weft-vm run $name"
    # The options are words.
    timeout -s KILL "$limit" "/weft/tests/$name" $options </dev/null
    code=$?
    # Beginning with a line's end, for a binary that was killed may have stopped anywhere.
    printf '\nweft-vm end %s %s %s\n' "$name" "$code" "$(cut -d' ' -f1 /proc/uptime)"
done </weft/list
echo "weft-vm done"
poweroff -f
