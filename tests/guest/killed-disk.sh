# The guest's work on a served disk, /dev/vda, whose server is killed from time to time: it writes everything, many
# requests at a time, and reads it back. The only visible effect is that some requests take longer.
. /lib/snapblk/functions

run fio --name=verified --filename=/dev/vda --direct=1 --ioengine=libaio --size=$FIO_SIZE --rw=randwrite \
    --bsrange=512-64k --blockalign=512 --iodepth=32 --verify=crc32c --verify_fatal=1 --do_verify=1 --randseed=$SEED
no_disk_errors
