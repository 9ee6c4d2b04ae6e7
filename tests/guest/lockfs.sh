# A guest that writes while its disk is suspended: /dev/vda has a file system that is written without a stop, and
# /dev/vdb and /dev/vdc will be snapshots of it. The host says when, on the console.
. /lib/snapblk/functions
disk=/dev/vda
files=20

run modprobe virtio_console
# The number in its name is its position among the virtio devices.
until port=$(ls /dev/vport*p1 2>/dev/null); do usleep 20000; done
run mkfs.ext4 -q -b 4096 -E lazy_itable_init=0,lazy_journal_init=0 $disk
mkdir -p /mnt/disk /mnt/image
run mount $disk /mnt/disk
mkdir /mnt/disk/files
sync
run qemu-ga -d -m virtio-serial -p $port -t /run -f /run/qemu-ga.pid -l /tmp/qemu-ga.log

content() { yes "file $1" | head -c 20000; }

# A file gets its name when it is complete. Nothing is synced: writing it to the disk is left to the kernel.
write_files() {
    number=0
    while [ ! -e /tmp/stop ]; do
        number=$((number + 1))
        content $number >/mnt/disk/files/new
        mv /mnt/disk/files/new /mnt/disk/files/$number
        echo $number >/tmp/written
    done
}

# written NUMBER: waits until that many files exist.
written() {
    while [ "$(cat /tmp/written 2>/dev/null || echo 0)" -lt "$1" ]; do usleep 20000; done
}

# wait_for WORD: waits until the host sends it.
wait_for() {
    read -r word
    [ "$word" = "$1" ] || fail "'$word' came, and not '$1'"
}

# look NAME DEVICE: whether its journal must be replayed, fsck's result, and the number of complete files without a
# replay.
look() {
    needs=clean
    ! dumpe2fs -h "$2" 2>/dev/null | grep -q needs_recovery || needs=needs-recovery
    e2fsck -fn "$2" >/tmp/fsck.log 2>&1
    checked=$?
    run mount -t ext4 -o ro,norecovery "$2" /mnt/image
    whole=0 broken=0
    for file in /mnt/image/files/*; do
        name=${file##*/}
        case $name in new | '*') continue ;; esac
        if content "$name" | cmp -s - "$file"; then whole=$((whole + 1)); else broken=$((broken + 1)); fi
    done
    run umount /mnt/image
    echo "$1 $needs $checked $whole $broken"
}

write_files &
written $files
echo "ready"
wait_for taken
# It has been thawed: there are more files than before.
written $(($(cat /tmp/written) + 5))
echo "goes-on"
wait_for resumed
written $(($(cat /tmp/written) + 5))
touch /tmp/stop
wait
run sync
[ "$(ls /mnt/disk/files | wc -l)" -ge $((files + 10)) ] || fail "files are missing"
blockdev --flushbufs /dev/vdb
blockdev --flushbufs /dev/vdc
look frozen /dev/vdb
look torn /dev/vdc
run umount /mnt/disk
run e2fsck -fn $disk
no_disk_errors
