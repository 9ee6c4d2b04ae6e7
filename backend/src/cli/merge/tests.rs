//! Scenario 37, offline: power cut after every step of a merge, with any subset of the unflushed
//! writes on the disk; after another run, the content is the merged one.

use std::cell::{Cell, RefCell};
use std::io;
use std::rc::Rc;

use snapblk_store::cow::open::{create, open};
use snapblk_store::cow::owed::Owed;
use snapblk_store::cow::{Allocation, Entry, Geometry, Header, Log, OpenOptions};
use snapblk_store::units::{Chunk, ChunkSize, StoreChunk};

use super::*;

const SECTOR: usize = 512;

/// Counts the steps of all disks of a machine, and cuts its power at one of them.
#[derive(Default)]
struct Power {
    steps: Cell<u64>,
    cut_at: Option<u64>,
    random: Cell<u64>,
}

impl Power {
    fn step(&self) -> io::Result<()> {
        let now = self.steps.get();
        self.steps.set(now + 1);
        match self.cut_at {
            Some(at) if now >= at => Err(io::Error::other("power cut")),
            _ => Ok(()),
        }
    }

    /// xorshift: a coin from the seed.
    fn coin(&self) -> bool {
        let mut x = self.random.get();
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        self.random.set(x);
        x & 1 == 1
    }
}

/// A disk that keeps unflushed writes separate, sector by sector.
struct Disk {
    power: Rc<Power>,
    durable: RefCell<Vec<u8>>,
    /// Sectors written since the last flush, in order.
    unflushed: RefCell<Vec<(usize, Vec<u8>)>>,
}

impl Disk {
    fn new(power: &Rc<Power>, bytes: Vec<u8>) -> Disk {
        Disk { power: power.clone(), durable: bytes.into(), unflushed: RefCell::default() }
    }

    fn now(&self) -> Vec<u8> {
        let mut bytes = self.durable.borrow().clone();
        for (at, sector) in &*self.unflushed.borrow() {
            bytes[*at..at + SECTOR].copy_from_slice(sector);
        }
        bytes
    }

    /// The content after a power cut: any subset of the unflushed sectors.
    fn after_cut(self) -> Vec<u8> {
        let mut bytes = self.durable.into_inner();
        for (at, sector) in self.unflushed.into_inner() {
            if self.power.coin() {
                bytes[at..at + SECTOR].copy_from_slice(&sector);
            }
        }
        bytes
    }
}

impl Storage for Disk {
    fn name(&self) -> String {
        "disk".into()
    }
    fn len(&self) -> io::Result<u64> {
        Ok(self.durable.borrow().len() as u64)
    }
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        buffer.copy_from_slice(&self.now()[offset as usize..offset as usize + buffer.len()]);
        Ok(())
    }
    fn write_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        let mut now = self.now();
        now[offset as usize..offset as usize + data.len()].copy_from_slice(data);
        let first = offset as usize / SECTOR;
        let last = (offset as usize + data.len()).div_ceil(SECTOR);
        for at in (first..last).map(|n| n * SECTOR) {
            self.unflushed.borrow_mut().push((at, now[at..at + SECTOR].to_vec()));
        }
        self.power.step()
    }
    fn sync(&self) -> io::Result<()> {
        self.power.step()?;
        *self.durable.borrow_mut() = self.now();
        self.unflushed.borrow_mut().clear();
        Ok(())
    }
}

fn bytes(len: usize, salt: u8) -> Vec<u8> {
    (0..len).map(|at| (at / SECTOR) as u8 ^ (at % 251) as u8 ^ salt).collect()
}

/// An origin of 39.5 chunks, a store with 36 exceptions in two areas, and the merged content.
fn machine() -> (Vec<u8>, Vec<u8>, Vec<u8>) {
    let chunk = ChunkSize::from_sectors(1).unwrap();
    let origin = bytes(39 * SECTOR + 256, 0x55);
    let mut store = bytes(80 * SECTOR, 0xaa);
    // Chunks of 512 bytes: the header, area 0 at chunk 1 with 32 entries, area 1 at chunk 34.
    store[..2 * SECTOR].fill(0);
    store[34 * SECTOR..35 * SECTOR].fill(0);
    store[..16].copy_from_slice(&Header { valid: true, chunk }.encode());
    let mut merged = origin.clone();
    for n in 0..36 {
        // Scattered over all of the origin, including its last half sector, which belongs to no
        // disk and stays; chunk 10 is a hole.
        let old = (n * 7 + 4) % 40;
        let new = n + 2 + usize::from(n >= 8) + usize::from(n >= 31);
        let area = if n < 32 { SECTOR + n * 16 } else { 34 * SECTOR + (n - 32) * 16 };
        let entry = Entry { old: Chunk(old as u64), new: StoreChunk(new as u64) };
        store[area..area + 16].copy_from_slice(&entry.encode());
        let (to, from) = (old * SECTOR, new * SECTOR);
        let count = SECTOR.min((origin.len() / SECTOR * SECTOR).saturating_sub(to));
        merged[to..to + count].copy_from_slice(&store[from..from + count]);
    }
    (origin, store, merged)
}

fn run(origin: &Disk, file: &Disk) -> Result<(), CliError> {
    let mut store = open(file, &OpenOptions::default())?;
    merge(origin, file, &mut store, |_| {})
}

/// An origin that ends in mid-sector, on a disk of whole sectors.
struct Clipped<'a>(&'a Disk, u64);

impl Storage for Clipped<'_> {
    fn name(&self) -> String {
        "origin".into()
    }
    fn len(&self) -> io::Result<u64> {
        Ok(self.1)
    }
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.0.read_at(buffer, offset)
    }
    fn write_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        assert!(offset + data.len() as u64 <= self.1, "the origin is not written beyond its end");
        self.0.write_at(data, offset)
    }
    fn sync(&self) -> io::Result<()> {
        self.0.sync()
    }
}

fn run_clipped(origin: &Disk, len: usize, file: &Disk) -> Result<(), CliError> {
    let mut store = open(file, &OpenOptions::default())?;
    merge(&Clipped(origin, len as u64), file, &mut store, |_| {})
}

#[test]
fn scenario_39_a_merge_leaves_the_snapshot_s_content_and_an_empty_store() {
    let (origin, store, merged) = machine();
    let len = origin.len();
    let power = Rc::new(Power::default());
    let mut padded = origin;
    padded.resize(40 * SECTOR, 0xcc);
    let (origin, file) = (Disk::new(&power, padded), Disk::new(&power, store));
    run_clipped(&origin, len, &file).unwrap();
    assert!(origin.now()[..len] == merged);
    assert!(origin.now()[len..].iter().all(|&byte| byte == 0xcc));
    let empty = open(&file, &OpenOptions::default()).unwrap();
    assert!(empty.valid && empty.entries.is_empty() && !empty.garbage);
    run(&origin, &file).unwrap();
    assert!(origin.now()[..len] == merged, "and again changes nothing");
}

#[test]
fn scenario_37_a_power_cut_at_every_step_ends_merged() {
    let (origin, store, merged) = machine();
    let len = origin.len();
    let mut padded = origin;
    padded.resize(40 * SECTOR, 0xcc);
    let whole = Rc::new(Power::default());
    run_clipped(&Disk::new(&whole, padded.clone()), len, &Disk::new(&whole, store.clone()))
        .unwrap();
    let steps = whole.steps.get();
    assert!(steps > 30, "{steps}");
    for cut in 0..steps {
        for seed in 1..=40u64 {
            let random = Cell::new(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
            let power = Rc::new(Power { cut_at: Some(cut), random, ..Power::default() });
            let (o, s) = (Disk::new(&power, padded.clone()), Disk::new(&power, store.clone()));
            run_clipped(&o, len, &s).unwrap_err();
            let again = Rc::new(Power::default());
            let o = Disk::new(&again, o.after_cut());
            let s = Disk::new(&again, s.after_cut());
            run_clipped(&o, len, &s).unwrap();
            assert!(o.now()[..len] == merged, "cut at step {cut}, seed {seed}");
        }
    }
}

#[test]
fn leftovers_are_removed_before_they_can_come_to_life() {
    let (origin, mut store, _) = machine();
    store[34 * SECTOR + 6 * 16..34 * SECTOR + 6 * 16 + 8].fill(1);
    let power = Rc::new(Power::default());
    let mut padded = origin;
    padded.resize(40 * SECTOR, 0);
    let (origin, file) = (Disk::new(&power, padded), Disk::new(&power, store));
    assert!(open(&file, &OpenOptions::default()).unwrap().garbage);
    run(&origin, &file).unwrap();
    assert!(file.now()[34 * SECTOR..35 * SECTOR].iter().all(|&byte| byte == 0));
    assert!(file.now()[SECTOR..2 * SECTOR].iter().all(|&byte| byte == 0));
}

/// A killed process owes the store a chunk that the given disk does not have.
#[test]
fn what_was_owed_past_the_end_of_the_disk_is_not_merged_away() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    for (name, len) in [("short", 10 << 12), ("store", 64 << 12)] {
        std::fs::File::create(path(name)).unwrap().set_len(len).unwrap();
    }
    let file = FileInfo::open(&path("store"), OpenMode::ReadWrite, false).unwrap();
    let store = create(&file, Geometry::of_len(ChunkSize::TOOLS, 64 << 12)).unwrap();
    let words = Owed::of(&file, ChunkSize::TOOLS.sectors()).create(false).unwrap();
    let log = Log::new(words, store.next, store.geometry.capacity());
    let Allocation::Run { first, count: 1 } = log.allocate(1) else { panic!("no room") };
    let place = store.geometry.chunk_of_index(first);
    let _ = log.finish(first, Some(Chunk(10)));
    drop((log, file));
    let merge = Merge { into: path("short"), store: path("store"), force: false, json: false };
    let said = merge.run().unwrap_err().to_string();
    assert!(said.contains("chunk 10 of an origin of 10 chunks"), "{said}");
    let again = StoreFile::to_write(&path("store")).unwrap().load(Some(11 << 12)).unwrap();
    assert_eq!(again.entries, [Entry { old: Chunk(10), new: place }]);
    assert!(!path("store.owed").exists());
}
