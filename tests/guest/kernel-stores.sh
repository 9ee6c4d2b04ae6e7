# Loads exception stores in this kernel. $PLAN has a line for each: NAME ORIGIN COW P|PO CHUNK_SECTORS.
# Answers are lines "NAME WORD VALUE": see tests/src/kernel.rs.
. /lib/snapblk/functions
modprobe dm-snapshot

sectors() { blockdev --getsz "$1"; }
# Bypasses the page cache: reads the devices' content, not this kernel's copy.
direct_sha256() { dd if="$1" bs=64k iflag=direct,fullblock status=none | sha256sum | cut -d ' ' -f 1; }

# The stack that LVM uses: linear base; snapshot-origin and snapshot over it.
stack() {
    size=$(sectors "$origin")
    run dmsetup create base --table "0 $size linear $origin 0"
    run dmsetup create orig --table "0 $size snapshot-origin /dev/mapper/base"
    run dmsetup create snap --table "0 $size snapshot /dev/mapper/base $cow $persistence $chunk"
}

unstack() {
    for device in snap orig base; do
        [ ! -e /dev/mapper/$device ] || run dmsetup remove $device
    done
}

# The kernel's order for a handover: load the merge, suspend the snapshot, then the origin.
merge() {
    run dmsetup load orig --table "0 $size snapshot-merge /dev/mapper/base $cow $persistence $chunk"
    run dmsetup suspend snap
    run dmsetup suspend orig
    run dmsetup resume orig
    run dmsetup remove snap
    tries=0
    until dmsetup status orig | awk '{ split($4, used, "/"); exit !(used[1] == $5) }'; do
        tries=$((tries + 1))
        [ $tries -lt 600 ] || fail "$name: the merge does not end: $(dmsetup status orig)"
        usleep 50000
    done
}

judge() {
    stack
    status=$(dmsetup status snap)
    case $status in
    *Invalid*) ! direct_sha256 /dev/mapper/snap >/dev/null 2>&1; echo "$name invalid $status"; unstack; return ;;
    esac
    echo "$name status $(echo "$status" | cut -d ' ' -f 3-)"
    echo "$name snapshot $(direct_sha256 /dev/mapper/snap)"
    echo "$name origin $(direct_sha256 /dev/mapper/orig)"
    merge
    unstack
    echo "$name merged $(direct_sha256 "$origin")"
    stack
    echo "$name reloaded $(direct_sha256 /dev/mapper/snap)"
    unstack
}

echo "$PLAN" >/tmp/plan
# Descriptor 3, because standard input is the console.
while read -r name origin cow persistence chunk <&3; do
    [ -z "$name" ] || judge
done 3</tmp/plan
