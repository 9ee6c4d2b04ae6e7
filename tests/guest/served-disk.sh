# The guest's work on a served disk, /dev/vda, over two boots of one machine: files, then, after a reboot through the
# firmware, the same files, and fio's own verification on the raw end of the disk.
. /lib/snapblk/functions
disk=/dev/vda

# The file system takes the first half of the disk, so that fio has the other.
size=$(blockdev --getsize64 $disk)
half=$((size / 2))
mkdir -p /mnt/disk

first_boot() {
    run mkfs.ext4 -q -b 4096 $disk $((half / 1024))k
    run mount $disk /mnt/disk
    mkdir /mnt/disk/files
    number=0
    while [ $number -lt 40 ]; do
        dd if=/dev/urandom of=/mnt/disk/files/$number bs=1000 count=$((1 + number * 13)) status=none
        number=$((number + 1))
    done
    (cd /mnt/disk && find files -type f | sort | xargs sha256sum >manifest)
    run umount /mnt/disk
    drop_caches
    run e2fsck -fn $disk
    no_disk_errors
    echo "first-boot $(cat /sys/block/vda/queue/write_cache)"
    sync
    reboot -f
}

second_boot() {
    (cd /mnt/disk && run sha256sum -c manifest)
    run umount /mnt/disk
    run e2fsck -fn $disk
    # Every block is written once, in random order, many at a time and in several sizes, then read and compared.
    run fio --name=verified --filename=$disk --direct=1 --ioengine=libaio --offset=$half --size=$FIO_SIZE \
        --rw=randwrite --bsrange=512-64k --blockalign=512 --iodepth=16 --verify=crc32c --verify_fatal=1 --do_verify=1 \
        --fsync=64 --randseed=$SEED
    # The file system beside it is unchanged.
    run mount $disk /mnt/disk
    (cd /mnt/disk && run sha256sum -c manifest)
    run umount /mnt/disk
    no_disk_errors
    echo "second-boot $(find /sys/block/vda/mq -maxdepth 1 -mindepth 1 | wc -l)"
}

if mount $disk /mnt/disk 2>/dev/null && [ -e /mnt/disk/manifest ]; then
    second_boot
else
    first_boot
fi
