# The guest's part of the demo: carries out the host's orders, one word per line, and answers "@done WORD STATUS".
# /dev/vda has two partitions: the guest's files, and a database that never stops, which the witness plays.
. /lib/snapblk/functions
disk=/dev/vda files=${disk}1 database=${disk}2
mkdir -p /mnt/files

partition() {
    printf '%s\n' o n p 1 2048 526335 n p 2 526336 559103 w | fdisk -u $disk >/tmp/fdisk 2>&1
    [ -b $files ] && [ -b $database ] || { echo; cat /tmp/fdisk; echo; return 1; }
}

# The sums stay in the guest's memory: the proof of the rollback is not on the disk that is rolled back.
install() {
    partition && mkfs.ext4 -q $files && mount $files /mnt/files || return 1
    mkdir /mnt/files/bin /mnt/files/etc /mnt/files/data
    number=0
    while [ $number -lt 40 ]; do
        dd if=/dev/urandom of=/mnt/files/bin/program-$number bs=64k count=6 status=none
        echo "setting $number of version 1" >/mnt/files/etc/setting-$number
        dd if=/dev/urandom of=/mnt/files/data/record-$number bs=4k count=$((number + 1)) status=none
        number=$((number + 1))
    done
    echo 1 >/mnt/files/version
    (cd /mnt/files && find . -type f | sort | xargs sha256sum) >/tmp/sums
    sync
    echo "files $(wc -l </tmp/sums) kib $(du -sk /mnt/files | cut -f 1)"
}

# The database is 16 MiB of raw disk that is written and read, one request after the other, until the demo ends.
start_database() {
    mkfifo /tmp/orders
    witness $database 0 16777216 1000 </tmp/orders &
    exec 4>/tmp/orders
}

# The number of files that are unchanged, and of those that are changed or missing.
check() {
    right=$(cd /mnt/files && sha256sum -c /tmp/sums 2>/dev/null | grep -c ': OK$')
    echo "checked $right $(($(wc -l </tmp/sums) - right))"
}

# It replaces the programs, loses the settings, fills the disk, and its last step overwrites the file system itself.
upgrade() {
    echo 2 >/mnt/files/version
    for program in /mnt/files/bin/*; do dd if=/dev/zero of="$program" bs=64k count=6 conv=notrunc status=none; done
    rm -r /mnt/files/etc
    dd if=/dev/zero of=/mnt/files/new-version bs=1M count=96 conv=fsync status=none
    sync
}

ruin() { dd if=/dev/zero of=$files bs=1M count=24 oflag=direct status=none; }

# The guest's caches of the disk are no longer valid: they are dropped, and fsck reads the disk. The snapshot is of a
# mounted file system: its journal is replayed first, as a mount would do.
come_back() {
    drop_caches
    blockdev --flushbufs $files
    e2fsck -p -E journal_only $files >/tmp/fsck 2>&1
    e2fsck -fn $files >>/tmp/fsck 2>&1 || { sed 's/^/fsck: /' /tmp/fsck; return 1; }
    mount $files /mnt/files
}

while read -r order argument; do
    case $order in
    install | start_database | check | upgrade | ruin | come_back) $order ;;
    unmount) umount /mnt/files && drop_caches ;;
    witness) echo "$argument" >&4 ;;
    kernel_is_happy) no_disk_errors ;;
    end) exit 0 ;;
    *) echo "there is no order '$order'"; false ;;
    esac
    echo "@done $order $?"
done
