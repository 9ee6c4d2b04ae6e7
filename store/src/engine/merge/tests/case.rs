//! A merge under test: a world with an origin, its snapshots and a guest, and the model of the
//! expected result.

use std::sync::Arc;

use super::super::world::{Disk, Rng, SECTOR, World, entry, open, store_image};
use super::super::{MergeFailure, MergeState};
use crate::cow::Store;
use crate::exception::ChunkState;
use crate::io::FileId;
use crate::request::{Op, Status};
use crate::table::{Line, Table};
use crate::target::{Backing, Content, Exceptions, ExceptionsId, Medium, Merge, Origin, Target};
use crate::units::{Chunk, ChunkSize, DataIndex};
use crate::workers::TrackedObject;

pub(super) const ORIGIN: FileId = FileId(0);
pub(super) const STORE: FileId = FileId(1);
pub(super) const OTHER: FileId = FileId(2);
/// The origin's second part.
pub(super) const ORIGIN2: FileId = FileId(3);
/// The hosts: the merge's, and a guest's.
pub(super) const MERGE: usize = 0;
pub(super) const GUEST: usize = 1;
/// The kinds of actions in their tags.
pub(super) const REQUEST: u64 = 1;
pub(super) const ROUND: u64 = 6;

/// The parameters of a world.
#[derive(Clone, Copy)]
pub(super) struct Shape {
    pub(super) seed: u64,
    /// Sectors of a chunk of the merged store, and of the other snapshot's if there is one.
    pub(super) chunk: u32,
    pub(super) other: Option<u32>,
    /// Sectors of the origin.
    pub(super) sectors: u64,
    /// Exceptions.
    pub(super) entries: u64,
    /// Whether the log has holes.
    pub(super) holes: bool,
}

pub(super) const PLAIN: Shape =
    Shape { seed: 1, chunk: 1, other: None, sectors: 201, entries: 110, holes: true };
pub(super) const SMALLER: Shape =
    Shape { seed: 2, chunk: 8, other: Some(2), sectors: 1003, entries: 90, holes: true };

/// A world, and its expected result.
pub(super) struct Case {
    pub(super) world: World,
    pub(super) shape: Shape,
    pub(super) table: Arc<Table>,
    pub(super) store: Arc<Store>,
    /// The device's content.
    pub(super) model: Vec<u8>,
    /// The versions of each sector that a crash may leave, the last one `model`'s.
    pub(super) versions: Vec<Vec<Vec<u8>>>,
    /// The other snapshot's content.
    pub(super) other: Vec<u8>,
}

pub(super) fn chunk_size(sectors: u32) -> ChunkSize {
    ChunkSize::from_sectors(sectors).unwrap()
}

/// Bytes that name their sector and their writer.
pub(super) fn stamp(sector: u64, sectors: u64, of: u64) -> Vec<u8> {
    let words = |sector: u64| {
        let word = (sector << 32 | of).to_le_bytes();
        std::iter::repeat_n(word, SECTOR / 8).flatten()
    };
    (sector..sector + sectors).flat_map(words).collect()
}

pub(super) fn build(shape: Shape) -> Case {
    let mut rng = Rng(shape.seed * 7919 + 1);
    let chunk = chunk_size(shape.chunk);
    let per = u64::from(shape.chunk);
    let len = shape.sectors * SECTOR as u64;
    let origin = stamp(0, shape.sectors, 0x0eee);
    let mut olds: Vec<u64> = (0..chunk.count_for(len)).collect();
    // Some neighbours, and the rest scattered.
    let cut = olds.len() / 3;
    rng.shuffle(&mut olds[cut..]);
    let mut model = origin.clone();
    let mut index = 0;
    let mut entries = Vec::new();
    for &old in &olds[..shape.entries.min(olds.len() as u64) as usize] {
        index += if shape.holes && rng.below(9) == 0 { 2 } else { 1 };
        let data = stamp(old * per, per, 0xc0c);
        let at = (old * chunk.bytes()) as usize;
        let valid = data.len().min(model.len() - at);
        model[at..at + valid].copy_from_slice(&data[..valid]);
        entries.push((entry(chunk, old, DataIndex(index)), data));
    }
    let image = store_image(chunk, 2 * index + index / 16 + 40, &entries);
    let other = shape.other.map_or(Vec::new(), |other| {
        let chunk = chunk_size(other);
        let count = chunk.count_for(len);
        store_image(chunk, count + count / 16 + 8, &[])
    });
    let split = 77 * SECTOR;
    let disks = vec![
        Disk::new(origin[..split].to_vec()),
        Disk::new(image),
        Disk::new(other),
        Disk::new(origin[split..].to_vec()),
    ];
    let versions = model.chunks(SECTOR).map(|sector| vec![sector.to_vec()]).collect();
    start(disks, shape, model, versions, origin)
}

/// A process that starts on these disks.
pub(super) fn start(
    disks: Vec<Disk>,
    shape: Shape,
    model: Vec<u8>,
    versions: Vec<Vec<Vec<u8>>>,
    other: Vec<u8>,
) -> Case {
    let mut world = World::new(disks, shape.seed);
    let (table, store) = load(&mut world.disks, shape);
    world.add_host(256 << 10);
    world.add_host(256 << 10);
    for host in &mut world.hosts {
        host.engine.bind(Some(table.clone()));
    }
    Case { world, shape, table, store, model, versions, other }
}

pub(super) fn load(disks: &mut [Disk], shape: Shape) -> (Arc<Table>, Arc<Store>) {
    let len = shape.sectors * SECTOR as u64;
    let mut backing = Backing::default();
    for file in [ORIGIN, ORIGIN2] {
        let medium = Arc::new(Medium::new(file));
        let bytes = disks[file.0 as usize].now.len() as u64;
        backing.push(bytes, Content::File { medium, offset: 0 });
    }
    let mut exceptions = Vec::new();
    let mut of = |file: FileId| {
        let (table, store) = open(&mut disks[file.0 as usize], file, len);
        let layers = vec![store.clone()];
        exceptions.push(Exceptions { table, layers, origin: backing.clone(), len });
        store
    };
    let store = of(STORE);
    if shape.other.is_some() {
        of(OTHER);
    }
    let snapshots = if shape.other.is_some() { vec![ExceptionsId(1)] } else { vec![] };
    let origin = Origin { backing, start: 0, tracked: TrackedObject(1), snapshots };
    let merge = Merge {
        exceptions: ExceptionsId(0),
        origin,
        writes: TrackedObject(2),
        in_use: Default::default(),
    };
    let line = Line { start: 0, len, target: Target::Merge(merge) };
    (Arc::new(Table::new(vec![line], exceptions)), store)
}

impl Case {
    pub(super) fn start_merge(&mut self) -> Result<(), MergeFailure> {
        self.world.hosts[MERGE].engine.start_merge()
    }

    pub(super) fn state(&self) -> MergeState {
        self.world.hosts[MERGE].engine.merge().unwrap().state
    }

    pub(super) fn finish(&mut self) {
        self.start_merge().unwrap();
        self.world.settle();
        assert_eq!(self.state(), MergeState::Finished);
    }

    pub(super) fn origin(&self) -> Vec<u8> {
        let disks = &self.world.disks;
        [&disks[ORIGIN.0 as usize].now[..], &disks[ORIGIN2.0 as usize].now].concat()
    }

    /// The content of a device over exceptions `which`, read from the disks.
    pub(super) fn image(&self, which: usize) -> Vec<u8> {
        let ex = &self.table.exceptions()[which];
        let mut image = self.origin();
        let chunks = ex.table.chunks();
        for chunk in (0..chunks).map(Chunk) {
            if let ChunkState::Mapped(place) | ChunkState::Busy(place) = ex.table.get(chunk) {
                let (file, at) = ex.file_offset(place, 0);
                let len = ex.valid_len(chunk) as usize;
                let bytes = &self.world.disks[file.0 as usize].now[at as usize..][..len];
                image[ex.chunk().start_of(chunk) as usize..][..len].copy_from_slice(bytes);
            }
        }
        image
    }

    /// After a finished merge: checks that everything is in its place.
    pub(super) fn check_finished(&self) {
        let origin = self.origin();
        for (sector, versions) in self.versions.iter().enumerate() {
            let found = &origin[sector * SECTOR..][..SECTOR];
            let right = versions.iter().any(|version| version == found);
            assert!(right, "sector {sector} holds {:x?}", &found[..8]);
        }
        assert_eq!(self.store.entries(), 0);
        let usage = self.store.usage();
        assert_eq!(usage.allocated, usage.metadata);
        self.check_other();
    }

    pub(super) fn check_other(&self) {
        if self.shape.other.is_some() && self.image(1) != self.other {
            let image = self.image(1);
            let sector = (0..).find(|s| {
                image[s * SECTOR] != self.other[s * SECTOR]
                    || image[s * SECTOR + 4] != self.other[s * SECTOR + 4]
            });
            panic!("the other snapshot changed in sector {sector:?}");
        }
    }

    /// The power fails; a new process starts.
    pub(super) fn crash(&mut self) -> Case {
        let World { disks, rng, .. } = &mut self.world;
        let disks = disks.iter().map(|disk| disk.crashed(rng)).collect();
        let shape = Shape { seed: self.shape.seed + 1 + self.world.rng.below(1000), ..self.shape };
        start(disks, shape, self.model.clone(), self.versions.clone(), self.other.clone())
    }

    pub(super) fn guest_write(
        &mut self,
        sector: u64,
        sectors: u64,
        of: u64,
    ) -> crate::request::Token {
        let data = stamp(sector, sectors, of);
        for (n, bytes) in data.chunks(SECTOR).enumerate() {
            let at = sector as usize + n;
            self.model[at * SECTOR..][..SECTOR].copy_from_slice(bytes);
            self.versions[at].push(bytes.to_vec());
        }
        let (offset, len) = (sector * SECTOR as u64, sectors * SECTOR as u64);
        self.world.hosts[GUEST].submit(Op::Write, offset, len, data)
    }

    pub(super) fn guest_flush(&mut self) {
        let token = self.world.hosts[GUEST].submit(Op::Flush, 0, 0, Vec::new());
        self.world.settle();
        self.ended_ok(token);
        for versions in &mut self.versions {
            versions.drain(..versions.len() - 1);
        }
    }

    pub(super) fn ended_ok(&self, token: crate::request::Token) {
        assert!(self.world.hosts[GUEST].finished.contains(&(token, Status::Ok)));
    }

    /// Reads all of the device through the guest's engine.
    pub(super) fn guest_reads_model(&mut self) {
        let len = self.model.len() as u64;
        let token = self.world.hosts[GUEST].submit(Op::Read, 0, len, vec![0; len as usize]);
        self.world.settle();
        self.ended_ok(token);
        assert!(self.world.hosts[GUEST].data[&token] == self.model);
    }

    /// Up to `requests` random requests, carried out between the merge's own.
    pub(super) fn random_io(&mut self, requests: u32, crash_at: Option<u32>) {
        let mut busy: Vec<(crate::request::Token, Op, u64, u64)> = Vec::new();
        let sectors = self.shape.sectors;
        let mut turns = 0;
        let mut left = requests;
        // The number of versions of each sector when the flush in flight began.
        let mut flushing: Option<Vec<usize>> = None;
        loop {
            if left > 0 && busy.len() < 6 && self.world.rng.below(3) == 0 {
                let sector = self.world.rng.below(sectors);
                let count = 1 + self.world.rng.below(24.min(sectors - sector));
                let meets =
                    |&(_, _, at, n): &(_, Op, u64, u64)| at < sector + count && sector < at + n;
                if !busy.iter().any(meets) {
                    left -= 1;
                    let writing = busy.iter().any(|b| b.1 == Op::Write);
                    if flushing.is_none() && !writing && self.world.rng.below(3) == 0 {
                        let token = self.world.hosts[GUEST].submit(Op::Flush, 0, 0, Vec::new());
                        flushing = Some(self.versions.iter().map(Vec::len).collect());
                        busy.push((token, Op::Flush, 0, 0));
                    } else if self.world.rng.below(2) == 0 {
                        let token = self.guest_write(sector, count, 0x1_0000 + u64::from(left));
                        busy.push((token, Op::Write, sector, count));
                    } else {
                        let (at, len) = (sector * SECTOR as u64, count * SECTOR as u64);
                        let host = &mut self.world.hosts[GUEST];
                        let token = host.submit(Op::Read, at, len, vec![0xdd; len as usize]);
                        busy.push((token, Op::Read, sector, count));
                    }
                }
            }
            let moved = self.world.turn();
            for (token, status) in std::mem::take(&mut self.world.hosts[GUEST].finished) {
                assert_eq!(status, Status::Ok);
                let at = busy.iter().position(|b| b.0 == token).unwrap();
                let (_, op, sector, count) = busy.swap_remove(at);
                if op == Op::Flush {
                    for (versions, had) in self.versions.iter_mut().zip(flushing.take().unwrap()) {
                        versions.drain(..had - 1);
                    }
                }
                if op == Op::Read {
                    let (at, len) = (sector as usize * SECTOR, count as usize * SECTOR);
                    let read = &self.world.hosts[GUEST].data[&token];
                    assert!(read[..] == self.model[at..at + len], "sector {sector}");
                }
            }
            turns += 1;
            if crash_at.is_some_and(|at| turns >= at) || (!moved && left == 0) {
                assert!(crash_at.is_some() || busy.is_empty(), "a request hangs");
                return;
            }
        }
    }

    /// A read of a busy chunk is served from the store: its content before the write.
    pub(super) fn guest_reads_held(&mut self, sector: u64) {
        let at = sector * SECTOR as u64;
        let token = self.world.hosts[GUEST].submit(Op::Read, at, 512, vec![0; 512]);
        self.world.settle();
        self.ended_ok(token);
        let before = stamp(sector, 1, 0xc0c);
        assert_eq!(self.world.hosts[GUEST].data[&token], before);
    }
}
