# A guest whose disk, /dev/vda, grows while it is mounted and written: twice, after the guest has reported that it is
# ready. Each time the new range must be visible without a reboot, be empty, and keep its data.
. /lib/snapblk/functions
disk=/dev/vda
size() { cat /sys/block/vda/size; }

before=$(size)
run mkfs.ext4 -q -b 4096 $disk $((before / 4))k
mkdir -p /mnt/disk
run mount $disk /mnt/disk
dd if=/dev/urandom of=/mnt/disk/file bs=64k count=40 status=none
sum=$(sha256 /mnt/disk/file)
for round in 1 2; do
    # Writes are in progress when the disk grows.
    (while [ ! -e /tmp/enough ]; do dd if=/dev/urandom of=/mnt/disk/noise bs=64k count=8 conv=fsync status=none; done) &
    echo "ready $before"
    read -r wanted
    tries=0
    while [ "$(size)" != "$wanted" ]; do
        tries=$((tries + 1))
        [ $tries -lt 300 ] || fail "the guest sees $(size) sectors, not $wanted"
        usleep 100000
    done
    touch /tmp/enough
    wait
    rm /tmp/enough
    dmesg | grep -q "vda.*new size: $wanted 512-byte" || fail "the kernel did not say so: $(dmesg | tail -n 5)"
    new=$((wanted - before))
    dd if=$disk bs=512 skip=$before count=$new iflag=direct status=none | tr -d '\0' | cmp - /dev/null ||
        fail 'the new range is not empty'
    dd if=/dev/urandom of=/tmp/new bs=512 count=$new status=none
    run dd if=/tmp/new of=$disk bs=64k seek=$((before * 512)) oflag=direct,seek_bytes conv=notrunc,fsync
    drop_caches
    dd if=$disk bs=512 skip=$before count=$new iflag=direct status=none | cmp - /tmp/new ||
        fail 'the new range does not keep what is written to it'
    echo "new $(sha256 /tmp/new)"
    before=$wanted
done
[ "$(sha256 /mnt/disk/file)" = "$sum" ] || fail 'a file is not what it was'
run umount /mnt/disk
run e2fsck -fn $disk
no_disk_errors
