//! Disks that lose unsynced data, and hosts that carry actions out in any order.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use crate::cow::layout::{ENTRY_BYTES, Geometry, Header};
use crate::cow::log::{LOG_WORDS, Log};
use crate::cow::store::{StoreEvent, StoreObserver, StoreParts};
use crate::cow::tail::Tail;
use crate::cow::words::Words;
use crate::cow::{self, Entry, Persistence, Store};
use crate::engine::{Engine, EngineConfig};
use crate::exception::{ExceptionTable, Layer, Place};
use crate::io::{Action, Completion, Errno, FileId, IoOp, Seg, Storage};
use crate::request::{Op, Request, Status, Token};
use crate::units::{Chunk, ChunkSize, DataIndex, Sector, StoreChunk};
use crate::workers::{Wake, Workers};

pub(super) const SECTOR: usize = 512;

/// xorshift64*.
pub(super) struct Rng(pub(super) u64);

impl Rng {
    pub(super) fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % n
    }

    pub(super) fn shuffle<T>(&mut self, items: &mut [T]) {
        for n in (1..items.len()).rev() {
            items.swap(n, self.below(n as u64 + 1) as usize);
        }
    }
}

/// A file: its visible content, its durable content, and every sector written since, in order.
#[derive(Clone)]
pub(in crate::engine) struct Disk {
    pub(super) now: Vec<u8>,
    durable: Vec<u8>,
    unsynced: Vec<(u64, usize, Vec<u8>)>,
}

impl Disk {
    pub(in crate::engine) fn new(bytes: Vec<u8>) -> Disk {
        Disk { durable: bytes.clone(), now: bytes, unsynced: Vec::new() }
    }

    fn write(&mut self, at: usize, bytes: &[u8], seq: u64) {
        assert!(at.is_multiple_of(SECTOR) && bytes.len().is_multiple_of(SECTOR));
        self.now[at..at + bytes.len()].copy_from_slice(bytes);
        for (n, sector) in bytes.chunks(SECTOR).enumerate() {
            self.unsynced.push((seq, at / SECTOR + n, sector.to_vec()));
        }
    }

    /// Makes writes before `seq` durable.
    fn sync(&mut self, seq: u64) {
        for (at, sector, bytes) in std::mem::take(&mut self.unsynced) {
            if at < seq {
                self.durable[sector * SECTOR..][..SECTOR].copy_from_slice(&bytes);
            } else {
                self.unsynced.push((at, sector, bytes));
            }
        }
    }

    /// A sync failed: writes before `seq` are visible, and never become durable.
    fn lose(&mut self, seq: u64) {
        self.unsynced.retain(|(at, ..)| *at >= seq);
    }

    /// The disk after a power cut: each sector has any of its versions since the last sync.
    pub(super) fn crashed(&self, rng: &mut Rng) -> Disk {
        let mut versions: BTreeMap<usize, Vec<&[u8]>> = BTreeMap::new();
        for (_, sector, bytes) in &self.unsynced {
            versions.entry(*sector).or_default().push(bytes);
        }
        let mut bytes = self.durable.clone();
        for (sector, versions) in versions {
            let pick = rng.below(versions.len() as u64 + 1) as usize;
            if pick < versions.len() {
                bytes[sector * SECTOR..][..SECTOR].copy_from_slice(versions[pick]);
            }
        }
        Disk::new(bytes)
    }
}

struct Memory(RefCell<Vec<u8>>);

impl Storage for Memory {
    fn name(&self) -> String {
        "memory".into()
    }
    fn len(&self) -> std::io::Result<u64> {
        Ok(self.0.borrow().len() as u64)
    }
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> std::io::Result<()> {
        buffer.copy_from_slice(&self.0.borrow()[offset as usize..][..buffer.len()]);
        Ok(())
    }
    fn write_at(&self, bytes: &[u8], offset: u64) -> std::io::Result<()> {
        self.0.borrow_mut()[offset as usize..][..bytes.len()].copy_from_slice(bytes);
        Ok(())
    }
    fn sync(&self) -> std::io::Result<()> {
        Ok(())
    }
}

struct Nobody;

impl StoreObserver for Nobody {
    fn store_event(&self, _: &str, _: StoreEvent) {}

    fn first_owed(&self) {}
}

impl Wake for Nobody {
    fn wake(&self) {}
}

/// The bytes of a store whose list is `entries`, each with the bytes of its chunk.
pub(in crate::engine) fn store_image(
    chunk: ChunkSize,
    chunks: u64,
    entries: &[(Entry, Vec<u8>)],
) -> Vec<u8> {
    let geometry = Geometry { chunk, device_chunks: chunks };
    let mut bytes = vec![0; (chunks * chunk.bytes()) as usize];
    let header = Header { valid: true, chunk }.encode();
    bytes[..header.len()].copy_from_slice(&header);
    for (position, (entry, data)) in entries.iter().enumerate() {
        let at = geometry.entry_offset(position as u64) as usize;
        bytes[at..at + ENTRY_BYTES].copy_from_slice(&entry.encode());
        let at = chunk.store_offset(entry.new) as usize;
        bytes[at..at + data.len()].copy_from_slice(data);
    }
    bytes
}

/// The place of data chunk `index` in such a store.
pub(super) fn data_chunk(chunk: ChunkSize, index: u64) -> StoreChunk {
    let area = chunk.bytes() / 16;
    StoreChunk(2 + index + index / area)
}

/// Opens the store on a disk, like a process at its start.
pub(in crate::engine) fn open(
    disk: &mut Disk,
    file: FileId,
    device_len: u64,
) -> (Arc<ExceptionTable>, Arc<Store>) {
    let memory = Memory(RefCell::new(disk.now.clone()));
    let options = cow::OpenOptions { origin_len: Some(device_len), ..Default::default() };
    let mut opened = cow::open::open(&memory, &options).expect("the store opens");
    if opened.garbage {
        cow::open::zero_garbage(&memory, &mut opened).unwrap();
        *disk = Disk::new(memory.0.into_inner());
    }
    let geometry = opened.geometry;
    let table = ExceptionTable::new(geometry.chunk.count_for(device_len));
    for &Entry { old, new: chunk } in &opened.entries {
        table.load(old, Place { layer: Layer::FIRST, chunk });
    }
    let block = Tail::block_entries(&geometry) as usize;
    let entries = &opened.entries;
    let last_block = &entries[entries.len() / block * block..];
    let store = Store::new(StoreParts {
        name: format!("store {}", file.0),
        file,
        geometry,
        persistence: Persistence::Persistent,
        guest_disk: false,
        valid: opened.valid,
        log: Log::new(Words::private(LOG_WORDS), opened.next, geometry.capacity()),
        tail: Tail::new(geometry, entries.len() as u64, last_block),
        observer: Box::new(Nobody),
    });
    (Arc::new(table), Arc::new(store))
}

struct Flight {
    action: Action,
    segs: Vec<Seg>,
    meta: Vec<u8>,
    seq: u64,
}

/// An engine, and its host's state.
pub(super) struct Host {
    pub(super) engine: Engine,
    scratch: Vec<u8>,
    flights: Vec<Flight>,
    pub(super) data: HashMap<Token, Vec<u8>>,
    pub(super) finished: Vec<(Token, Status)>,
    next: u32,
}

impl Host {
    pub(super) fn submit(&mut self, op: Op, offset: u64, len: u64, data: Vec<u8>) -> Token {
        let token = Token(self.next);
        self.next += 1;
        self.data.insert(token, data);
        let sector = Sector::from_bytes(offset);
        self.engine.submit(Request { token, op, sector, len, durable: false });
        token
    }

    pub(super) fn in_flight(&self) -> usize {
        self.flights.len()
    }

    pub(super) fn bytes_in_flight(&self) -> u64 {
        self.flights.iter().map(|flight| flight.action.len).sum()
    }
}

/// An action that fails, after `skip` more of its kind have succeeded.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fault {
    pub(super) op: IoOp,
    pub(super) file: FileId,
    pub(super) skip: u32,
    /// Whether a failed write takes effect nevertheless.
    pub(super) lands: bool,
}

/// Disks, and the hosts that use them.
pub(super) struct World {
    pub(super) disks: Vec<Disk>,
    pub(super) hosts: Vec<Host>,
    pub(super) faults: Vec<Fault>,
    pub(super) rng: Rng,
    workers: Arc<Workers>,
    seq: u64,
    /// The carried out actions, for tests of their order.
    pub(super) done: Vec<(IoOp, FileId, u64)>,
    /// If set, actions for which it returns false stay in flight.
    pub(super) hold: Option<fn(&Action) -> bool>,
    /// An action was carried out, and no engine has gone on from there.
    carried_out: bool,
}

impl World {
    pub(super) fn new(disks: Vec<Disk>, seed: u64) -> World {
        World {
            disks,
            hosts: Vec::new(),
            faults: Vec::new(),
            rng: Rng(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1),
            workers: Arc::new(Workers::with_capacity(8)),
            seq: 1,
            done: Vec::new(),
            hold: None,
            carried_out: false,
        }
    }

    pub(super) fn add_host(&mut self, scratch: u32) -> usize {
        let config = EngineConfig { scratch, requests: 64, claims: 64 };
        self.hosts.push(Host {
            engine: Engine::new(&self.workers, Box::new(Nobody), config).unwrap(),
            scratch: vec![0xee; scratch as usize],
            flights: Vec::new(),
            data: HashMap::new(),
            finished: Vec::new(),
            next: 0,
        });
        self.hosts.len() - 1
    }

    /// Advances every engine, and carries out one action. False if all of them sleep.
    pub(super) fn turn(&mut self) -> bool {
        let mut awake = std::mem::take(&mut self.carried_out);
        for host in 0..self.hosts.len() {
            self.pump(host);
        }
        for host in &self.hosts {
            if !host.engine.may_sleep() {
                awake = true;
            } else {
                host.engine.woke();
            }
        }
        let hold = self.hold;
        let ready: Vec<(usize, usize)> = self
            .hosts
            .iter()
            .enumerate()
            .flat_map(|(h, host)| {
                host.flights.iter().enumerate().map(move |(f, flight)| (h, f, flight))
            })
            .filter(|(.., flight)| hold.is_none_or(|goes| goes(&flight.action)))
            .map(|(h, f, _)| (h, f))
            .collect();
        if ready.is_empty() {
            return awake;
        }
        let (host, flight) = ready[self.rng.below(ready.len() as u64) as usize];
        self.carry_out(host, flight);
        true
    }

    /// Runs until nothing changes.
    pub(super) fn settle(&mut self) {
        let mut turns = 0;
        while self.turn() {
            turns += 1;
            assert!(turns < 1_000_000, "it never ends");
        }
    }

    fn pump(&mut self, index: usize) {
        let World { hosts, seq, .. } = self;
        let host = &mut hosts[index];
        host.engine.step();
        while let Some(wants) = host.engine.merge_wants() {
            let Seg::Scratch { offset, len, .. } = wants else { panic!("that is not scratch") };
            host.engine.merge_supply(&host.scratch[offset as usize..][..len as usize]);
            host.engine.step();
        }
        while let Some(action) = host.engine.pop_action() {
            let segs = host.engine.segs(&action).to_vec();
            let meta = host.engine.meta_of(&action).to_vec();
            host.flights.push(Flight { action, segs, meta, seq: *seq });
            *seq += 1;
        }
        while let Some(finished) = host.engine.pop_finished() {
            host.finished.push(finished);
        }
    }

    fn carry_out(&mut self, host: usize, flight: usize) {
        let flight = self.hosts[host].flights.swap_remove(flight);
        let action = flight.action;
        let fails = self.fails(&action);
        if fails.is_none_or(|lands| lands) {
            self.effect(host, &flight);
        }
        self.carried_out = true;
        self.done.push((action.op, action.file, action.offset));
        if fails.is_some() && action.op == IoOp::Sync {
            self.disks[action.file.0 as usize].lose(flight.seq);
        }
        let result = if fails.is_some() { Err(Errno::EIO) } else { Ok(()) };
        self.hosts[host].engine.complete(Completion { tag: action.tag, result });
    }

    fn fails(&mut self, action: &Action) -> Option<bool> {
        let fault = self.faults.iter().position(|f| f.op == action.op && f.file == action.file)?;
        if self.faults[fault].skip > 0 {
            self.faults[fault].skip -= 1;
            return None;
        }
        Some(self.faults.remove(fault).lands)
    }

    fn effect(&mut self, host: usize, flight: &Flight) {
        let Flight { action, segs, meta, seq } = flight;
        let (at, len) = (action.offset as usize, action.len as usize);
        let host = &mut self.hosts[host];
        match action.op {
            IoOp::Read => {
                let mut from = at;
                let disk = &self.disks[action.file.0 as usize];
                for seg in segs {
                    let bytes = &disk.now[from..from + seg.len() as usize];
                    from += bytes.len();
                    match *seg {
                        Seg::Guest { token, offset, len } => {
                            host.data.get_mut(&token).unwrap()[offset as usize..][..len as usize]
                                .copy_from_slice(bytes);
                        }
                        Seg::Scratch { offset, len, .. } => {
                            host.scratch[offset as usize..][..len as usize].copy_from_slice(bytes);
                        }
                        _ => panic!("nothing is read into {seg:?}"),
                    }
                }
            }
            IoOp::Write => {
                let mut bytes = Vec::with_capacity(len);
                for seg in segs {
                    match *seg {
                        Seg::Guest { token, offset, len } => bytes.extend_from_slice(
                            &host.data[&token][offset as usize..][..len as usize],
                        ),
                        Seg::Scratch { offset, len, .. } => bytes
                            .extend_from_slice(&host.scratch[offset as usize..][..len as usize]),
                        Seg::Zero { len } => bytes.resize(bytes.len() + len as usize, 0),
                        Seg::Meta { .. } => bytes.extend_from_slice(meta),
                    }
                }
                assert_eq!(bytes.len(), len);
                self.disks[action.file.0 as usize].write(at, &bytes, self.seq);
            }
            IoOp::Zero | IoOp::Punch => {
                self.disks[action.file.0 as usize].write(at, &vec![0; len], self.seq);
            }
            IoOp::Sync => self.disks[action.file.0 as usize].sync(*seq),
            IoOp::Clear | IoOp::Discard => {}
        }
        self.seq += 1;
    }
}

impl Drop for World {
    fn drop(&mut self) {
        // As in a killed process: actions in flight are not waited for.
        std::mem::forget(std::mem::take(&mut self.hosts));
    }
}

/// `entry` of old chunk `old` at data chunk `index`.
pub(super) fn entry(chunk: ChunkSize, old: u64, index: DataIndex) -> Entry {
    Entry { old: Chunk(old), new: data_chunk(chunk, index.0) }
}
