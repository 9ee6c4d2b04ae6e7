# Executes steps on device-mapper devices and prints their state after each: see tests/tests/parity/kernel.rs.
# Answers are lines "answer SCRIPT STEP WHAT", "status SCRIPT STEP DEVICE: LINE" and "content SCRIPT STEP SUM PATH".
. /lib/snapblk/functions
modprobe dm-snapshot
patterns=/dev/vde

# begin ORIGIN STORE...: a disk of the first generation, and empty stores.
begin() {
    run dd if=$patterns of="$1" bs=512 skip=$SECTORS count=$SECTORS conv=fsync
    shift
    for store in "$@"; do run dd if=/dev/zero of="$store" bs=64k count=16 conv=fsync; done
    drop_caches
}

# swap DEVICE TABLE
swap() { dmsetup load "$1" --table "$2" && dmsetup suspend "$1" && dmsetup resume "$1"; }

# join ORIGIN SNAPSHOT TABLE: an origin learns the chunk size at which it must split its writes when it is resumed.
join() { dmsetup suspend "$1" && dmsetup create "$2" --table "$3" && dmsetup resume "$1"; }

# fill DEVICE FIRST EACH TIMES GENERATION: writes in a row, until one fails; prints how many succeeded.
fill() {
    at=$2 good=0
    while [ $good -lt "$4" ]; do
        dd if=$patterns of="/dev/mapper/$1" bs=$(($3 * 512)) count=1 iflag=skip_bytes,direct oflag=seek_bytes,direct \
            skip=$((($5 * SECTORS + at) * 512)) seek=$((at * 512)) conv=notrunc status=none || break
        at=$((at + $3)) good=$((good + 1))
    done
    echo "$good" >/tmp/answer
}

# merge ORIGIN SNAPSHOT TABLE: in the kernel's order; until the merge is complete.
merge() {
    dmsetup load "$1" --table "$3" && dmsetup suspend "$2" && dmsetup suspend "$1" && dmsetup resume "$1" &&
        dmsetup remove "$2" || return 1
    tries=0
    until dmsetup status "$1" | awk '{ split($4, used, "/"); exit !(used[1] == $5) }'; do
        tries=$((tries + 1))
        [ $tries -lt 600 ] || return 1
        usleep 50000
    done
}

# step SCRIPT STEP COMMAND...
step() {
    script=$1 number=$2
    shift 2
    echo ok >/tmp/answer
    "$@" >/tmp/step.log 2>&1 || echo error >/tmp/answer
    [ "$(cat /tmp/answer)" != error ] || sed 's/^/said: /' /tmp/step.log
    echo "answer $script $number $(cat /tmp/answer)"
}

# look SCRIPT STEP PATH...: the status of all devices, and the sums of these. They are not open, so that reads come from
# the devices.
look() {
    script=$1 number=$2
    shift 2
    dmsetup status | sed "s/^/status $script $number /"
    [ $# -eq 0 ] || sha256sum "$@" 2>/dev/null | sed "s/^/content $script $number /"
}
