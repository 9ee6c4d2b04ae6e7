//! Ten million exceptions, and a limit on the memory of exception tables: it holds while the store
//! is opened, and while a guest reads and writes all over the disk.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::json;
use snapblk_qmp::client::Client as Qmp;
use snapblk_tests::disk::Disk;
use snapblk_tests::handmade::{self, CHUNK};
use snapblk_tests::rng::Rng;
use snapblk_tests::server::{Memory, Place, Scratch, Server, ServerCommand};

const MIB: u64 = 1 << 20;
/// `--table-memory`.
const BOUND: u64 = 32 * MIB;
/// The additional memory in docs/configuration.md, except the part that depends on the size of the
/// disk, which the small store's disk has too.
const SLACK: u64 = 10 * MIB;
const EXCEPTIONS: u64 = 10_000_000;
/// Chunks of the disk per exception.
const CELL: u64 = 16;
/// The data of one exception in this many is checked.
const SAMPLED: u64 = 1999;
/// Chunks of a region of the table: a read in each accesses all of it.
const REGION: u64 = 4096;

/// A disk of [`EXCEPTIONS`] cells and a store for it.
struct Made {
    origin: PathBuf,
    store: PathBuf,
    /// The chunk of the disk, by exception.
    old: Vec<u64>,
}

impl Made {
    /// With an exception in each of `count` cells, in random order.
    fn new(scratch: &Scratch, count: u64) -> Made {
        let mut rng = Rng::new(count);
        let step = EXCEPTIONS / count * CELL;
        let mut old: Vec<u64> = (0..count).map(|n| n * step + rng.below(CELL)).collect();
        rng.shuffle(&mut old);
        let origin = scratch.sparse(&format!("origin-{count}.img"), EXCEPTIONS * CELL * CHUNK);
        let made =
            Made { origin: origin.unwrap(), store: scratch.path(&format!("{count}.cow")), old };
        handmade::write(&made.store, &made.old).unwrap();
        let store = File::options().write(true).open(&made.store).unwrap();
        // Room for new ones.
        store.set_len(handmade::data_offset(count + 100_000)).unwrap();
        for n in made.samples() {
            store.write_all_at(&stamp(made.old[n as usize]), handmade::data_offset(n)).unwrap();
        }
        made
    }

    fn samples(&self) -> impl Iterator<Item = u64> + use<> {
        let count = self.old.len() as u64;
        (0..count).step_by(SAMPLED.min(count / 16) as usize)
    }

    fn line(&self) -> String {
        let (origin, store) = (self.origin.display(), self.store.display());
        let sectors = EXCEPTIONS * CELL * CHUNK / 512;
        format!("0 {sectors} snapshot {origin} {store} PO {}", CHUNK / 512)
    }
}

fn stamp(chunk: u64) -> [u8; 512] {
    let mut bytes = [0x5a; 512];
    bytes[..8].copy_from_slice(&chunk.to_le_bytes());
    bytes
}

/// The process's present memory and its maximum, in bytes.
fn memory(server: &Server) -> (u64, u64) {
    (server.memory(Memory::Now).unwrap(), server.memory(Memory::Most).unwrap())
}

/// The process's processor time in ticks.
fn ticks(server: &Server) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{}/stat", server.pid())).unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

/// The growth of a process.
struct Grown {
    /// The maximum while it opened the store, and under the loads.
    opening: u64,
    loaded: u64,
}

/// Serves the store with the limit, and loads it.
fn serve(made: &Made, scratch: &Scratch, tables: &Path) -> Grown {
    let command = ServerCommand::snapblk_monitor(scratch).unwrap_or_else(|error| panic!("{error}"));
    let command = command.arg("--table-memory").arg("32M").arg("--table-dir").arg(tables);
    let server = command.start().unwrap_or_else(|error| panic!("{error}"));
    let mut qmp = Qmp::connect(server.monitor()).unwrap();
    let mut call = |command: &str, arguments| {
        qmp.call(command, arguments)
            .unwrap_or_else(|e| panic!("{command}: {e}\n{}", server.stderr()))
    };
    let device = json!({"name": "disk"});
    call("device-create", device.clone());
    let start = Instant::now();
    call("table-load", json!({"name": "disk", "table": [made.line()]}));
    call("device-resume", device.clone());
    let opening = memory(&server).1;
    println!("{} exceptions opened in {:?}", made.old.len(), start.elapsed());
    let socket = scratch.socket("disk.sock");
    let addr = json!({"type": "unix", "path": &socket});
    let export = json!({"type": "vhost-user-blk", "id": "disk", "node-name": "disk",
        "writable": true, "addr": addr});
    call("block-export-add", export);
    let mut disk = Disk::connect(&socket).unwrap_or_else(|error| panic!("{error}"));
    check_samples(made, &mut disk);
    read_all_over(&mut disk);
    write_all_over(made, &mut disk);
    check_samples(made, &mut disk);
    let (now, loaded) = memory(&server);
    assert!(now <= loaded);
    drop(disk);
    call("block-export-del", json!({"id": "disk", "mode": "hard"}));
    // No event ends an idle time: it has to be waited for. A tick is a hundredth of a second.
    let before = ticks(&server);
    std::thread::sleep(Duration::from_secs(1));
    let used = ticks(&server) - before;
    assert!(used <= 1, "{used} ticks of an idle second");
    call("device-remove", device);
    let status = server.terminate().unwrap_or_else(|error| panic!("{error}"));
    assert!(status.success(), "{status}");
    Grown { opening, loaded }
}

/// The store's chunks have their data, and all others the origin's.
fn check_samples(made: &Made, disk: &mut Disk) {
    for n in made.samples() {
        let chunk = made.old[n as usize];
        let found = disk.read(chunk * CHUNK, 512).unwrap();
        assert_eq!(found, stamp(chunk), "exception {n}, of chunk {chunk}");
        let other = neighbour(chunk, 3);
        assert_eq!(disk.read(other * CHUNK, 512).unwrap(), [0; 512], "chunk {other}");
    }
}

/// Another chunk of the same cell, which has no exception.
fn neighbour(chunk: u64, by: u64) -> u64 {
    chunk / CELL * CELL + (chunk % CELL + by) % CELL
}

/// A read in each region, in random order.
fn read_all_over(disk: &mut Disk) {
    let mut rng = Rng::new(7);
    let mut regions: Vec<u64> = (0..EXCEPTIONS * CELL / REGION).collect();
    rng.shuffle(&mut regions);
    for region in regions {
        let chunk = region * REGION + rng.below(REGION);
        disk.read(chunk * CHUNK, 512).unwrap();
    }
}

/// First writes, each in another region, in random order; also reads them back.
fn write_all_over(made: &Made, disk: &mut Disk) {
    let written: Vec<u64> = made.old.iter().take(5000).map(|&old| neighbour(old, 5)).collect();
    for &chunk in &written {
        disk.write(chunk * CHUNK, &stamp(chunk)).unwrap();
    }
    disk.flush().unwrap();
    for &chunk in &written {
        assert_eq!(disk.read(chunk * CHUNK, 512).unwrap(), stamp(chunk), "chunk {chunk}");
    }
}

#[test]
fn a_bound_on_exception_tables_holds_with_ten_million() {
    let scratch = Scratch::new(Place::Memory).unwrap();
    // On a disk, if there is one: evicted pages are in the system's cache, or written out.
    let tables = Scratch::new(Place::Disk).unwrap();
    let small = Made::new(&scratch, 10_000);
    let without = serve(&small, &scratch, tables.dir());
    let start = Instant::now();
    let made = Made::new(&scratch, EXCEPTIONS);
    println!("made in {:?}", start.elapsed());
    let with = serve(&made, &scratch, tables.dir());
    let mib = |bytes: u64| bytes as f64 / MIB as f64;
    let grown =
        [with.opening.saturating_sub(without.opening), with.loaded.saturating_sub(without.loaded)];
    println!("{:.1} MiB more while opening, {:.1} MiB under load", mib(grown[0]), mib(grown[1]));
    for bytes in grown {
        assert!(bytes <= BOUND + SLACK, "{:.1} MiB more", mib(bytes));
        assert!(bytes >= BOUND / 2, "{:.1} MiB more: is the table there?", mib(bytes));
    }
    assert!(fs::read_dir(tables.dir()).unwrap().next().is_none(), "the file has no name");
}
