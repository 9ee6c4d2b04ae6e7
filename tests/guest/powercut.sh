# snapblk serves a disk inside the guest, and a load writes it: see tests/tests/powercut. $SERVE has the arguments of
# the server, $LOAD those of the load; /dev/vde is a tar of both programs.
. /lib/snapblk/functions
mkdir -p /tmp/tools /dev/shm
mount -t tmpfs tmpfs /dev/shm
tar xf /dev/vde -C /tmp/tools || fail "no programs on /dev/vde"

eval "/tmp/tools/snapblk serve --monitor m.sock --socket-path v.sock --num-queues 1 --state /tmp/state $SERVE" &
server=$!
until /tmp/tools/snapblk ctl m.sock version >/dev/null 2>&1; do
    kill -0 $server 2>/dev/null || fail "snapblk did not start"
done
run /tmp/tools/powercut-load $LOAD
no_disk_errors
kill -9 $server
