//! Owed chunks on a disk: more than a log of the smallest size holds, none of them committed, and
//! all committed after a while.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use snapblk_tests::client::Connect;
use snapblk_tests::disk::Disk;
use snapblk_tests::server::{Place, Scratch, ServerCommand};
use snapblk_tests::steady::{Ask, Steady};

const CHUNK: u64 = 4096;
/// Chunks of the disk; the first two of every four are written.
const CHUNKS: u64 = 80_000;

fn is_written(chunk: u64) -> bool {
    chunk % 4 < 2
}

/// A disconnected client got a completion for each of these writes, and sent no flush.
pub(crate) fn outlives_a_kill_however_much_is_owed() {
    let scratch = Scratch::new(Place::Disk).expect("a directory");
    let (base, store) = (scratch.sparse("base.raw", CHUNKS * CHUNK), scratch.path("store.cow"));
    let command = ServerCommand::snapblk(&scratch).expect("snapblk").arg("--blk-file");
    let command = command.arg(base.expect("a file")).arg("--overlay").arg(&store);
    let command = command.arg("--flush-interval").arg("never");
    let server = command.start().expect("it serves");
    let connect = Connect::to(server.socket().to_owned());
    let mut load = Steady::connect(connect, 32, CHUNK as usize).expect("a session");
    // As far apart as neighbours in a random order, and none twice.
    let order = (0..CHUNKS).map(|n| n * 30_011 % CHUNKS).filter(|&chunk| is_written(chunk));
    let wrote = load.run(order.map(|chunk| Ask::Write(chunk * CHUNK, CHUNK as usize)));
    assert_eq!(wrote.expect("every write ends well"), CHUNKS / 2);
    server.kill().expect("it is killed");
    drop(load);
    assert_eq!(entry(&store, 0), [0; 16], "nothing was committed: that is what this is about");

    let server = command.start().expect("it serves again");
    let mut disk = Disk::connect(server.socket()).expect("a session");
    let content = disk.read_all().expect("it is read");
    for (chunk, bytes) in content.chunks(CHUNK as usize).enumerate() {
        let right = bytes.iter().all(|&byte| (byte != 0) == is_written(chunk as u64));
        assert!(right, "chunk {chunk} is not what was written, or not");
    }
    server.terminate().expect("it ends");
}

/// A guest that never flushes, and a power cut some time later.
pub(crate) fn is_durable_some_time_later() {
    let scratch = Scratch::new(Place::Disk).expect("a directory");
    let (base, store) = (scratch.sparse("base.raw", 64 * CHUNK), scratch.path("store.cow"));
    let command = ServerCommand::snapblk(&scratch).expect("snapblk").arg("--blk-file");
    let command = command.arg(base.expect("a file")).arg("--overlay").arg(&store);
    let command = command.arg("--flush-interval").arg("200ms");
    let server = command.start().expect("it serves");
    let mut disk = Disk::connect(server.socket()).expect("a session");
    // The second time there are owed chunks, too.
    for entries in 1..3 {
        disk.write(entries * 10 * CHUNK, &[entries as u8; CHUNK as usize]).expect("a write");
        let deadline = Instant::now() + Duration::from_secs(20);
        while entry(&store, entries - 1) == [0; 16] {
            assert!(Instant::now() < deadline, "nobody committed write {entries}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    server.kill().expect("it is killed");
    drop(disk);
    // As in a power cut: uncommitted chunks are lost.
    std::fs::remove_file(scratch.path("store.cow.owed")).expect("it was served");
    let server = command.start().expect("it serves again");
    let mut disk = Disk::connect(server.socket()).expect("a session");
    let content = disk.read_all().expect("it is read");
    for (chunk, bytes) in content.chunks(CHUNK as usize).enumerate() {
        let written = if matches!(chunk, 10 | 20) { chunk as u8 / 10 } else { 0 };
        assert!(bytes.iter().all(|&byte| byte == written), "chunk {chunk}");
    }
    server.terminate().expect("it ends");
}

/// The store's entry `number`, in its first area, as it is on disk.
fn entry(store: &Path, number: u64) -> [u8; 16] {
    let mut entry = [0xff; 16];
    let read =
        File::open(store).and_then(|file| file.read_exact_at(&mut entry, CHUNK + number * 16));
    read.expect("an area");
    entry
}
