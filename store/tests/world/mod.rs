//! A world for the engine: simulated disks, stores on them, devices with tables over those, and
//! workers that serve the devices. Everything follows from one seed.

#![allow(dead_code, unreachable_pub, reason = "each test file uses its part")]

pub mod budget;
mod build;
pub mod change;
mod coverage;
mod crash;
pub mod everywhere;
mod full;
mod judge;
pub mod model;
pub mod run;

pub use coverage::Coverage;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use snapblk_store::cow::adopt::{Gaps, adopt, tail_of};
use snapblk_store::cow::log::{LOG_WORDS, Log};
use snapblk_store::cow::open::{self, Keep, OpenOptions, OpenStore};
use snapblk_store::cow::store::{StoreEvent, StoreObserver, StoreParts};
use snapblk_store::cow::words::Words;
use snapblk_store::cow::{Entry, Geometry, MergeMark, Persistence, Store, StoreState};
use snapblk_store::engine::{Engine, EngineConfig, MergeState};
use snapblk_store::exception::{ChunkState, ExceptionTable, Layer, Place};
use snapblk_store::io::sim::{Asked, Cut, Rng, Sim};
use snapblk_store::io::{FileId, IoOp, Seg};
use snapblk_store::request::{Op, Request, Status, Token};
use snapblk_store::table::{Line, Table};
use snapblk_store::target::snapshot::Features;
use snapblk_store::target::{
    Backing, Exceptions, ExceptionsId, Medium, Merge, Origin, Snapshot, Target,
};
use snapblk_store::units::{ChunkSize, DataIndex, Sector, StoreChunk};
use snapblk_store::workers::{TrackedObject, Wake, Workers};

use model::{ANY, Model, SECTOR, ZERO, describe, pattern};

/// The identity of the one origin.
const ORIGIN: TrackedObject = TrackedObject(1);
/// Writes to the device that is being merged.
const MERGED: TrackedObject = TrackedObject(2);
/// The stamp of the base disk's first content.
pub const BASE: u64 = 1;

/// One snapshot of the origin.
#[derive(Clone, Copy, Debug)]
pub struct Snap {
    pub chunk: u32,
    pub persistence: Persistence,
    /// Sectors of its store.
    pub store: u64,
    /// Sectors of the snapshot, at most the origin's.
    pub sectors: u64,
}

/// The devices.
#[derive(Clone, Debug)]
pub enum Shape {
    Plain,
    /// Device 0 is the origin, the others its snapshots.
    Origin(Vec<Snap>),
    /// One device: a guest's disk over a base that is never written.
    Overlay {
        chunk: u32,
        store: u64,
    },
}

#[derive(Clone, Debug)]
pub struct Config {
    pub shape: Shape,
    /// Sectors of the base disk.
    pub sectors: u64,
    /// Workers per device.
    pub queues: usize,
    /// Requests in flight, for all devices.
    pub depth: usize,
    /// Claims per engine.
    pub claims: usize,
    /// Bytes of scratch memory per engine.
    pub scratch: u32,
    /// Whether requests to snapshots may fail, and stores become Invalid.
    pub failures: bool,
    /// Whether requests to the origin may fail.
    pub origin_failures: bool,
    /// From this sector on, the base always fails (an `error` target).
    pub bad_base_from: Option<u64>,
    /// Whether engines sometimes commit unflushed chunks.
    pub commits: bool,
}

impl Config {
    pub fn new(shape: Shape, sectors: u64) -> Config {
        Config {
            shape,
            sectors,
            queues: 1,
            depth: 12,
            claims: 16,
            scratch: 256 << 10,
            failures: false,
            origin_failures: false,
            bad_base_from: None,
            commits: false,
        }
    }
}

/// A request to a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Req {
    pub device: usize,
    pub op: Op,
    pub sector: u64,
    pub count: u64,
    pub durable: bool,
}

#[derive(Debug)]
struct Flag(Arc<AtomicBool>);

impl Wake for Flag {
    fn wake(&self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// Records the stores' events.
#[derive(Clone, Debug, Default)]
pub struct Events(Arc<std::sync::Mutex<Vec<(String, StoreEvent)>>>);

impl Events {
    pub fn list(&self) -> Vec<(String, StoreEvent)> {
        self.0.lock().unwrap().clone()
    }
}

impl StoreObserver for Events {
    fn store_event(&self, name: &str, event: StoreEvent) {
        self.0.lock().unwrap().push((name.to_owned(), event));
    }

    fn first_owed(&self) {}
}

struct Host {
    engine: Engine,
    device: usize,
    woken: Arc<AtomicBool>,
    asleep: bool,
    /// Whether the engine is to be stepped without a wake.
    touched: bool,
    requests: BTreeMap<u32, Live>,
    next_token: u32,
    /// It merges, and serves no guest.
    merges: bool,
}

#[derive(Clone, Copy, Debug)]
struct Live {
    req: Req,
    stamp: u64,
    /// For reads that are not judged.
    keep: bool,
}

struct StoreSpec {
    file: FileId,
    chunk: u32,
    persistence: Persistence,
    guest_disk: bool,
    /// Recorded as Invalid outside of its header.
    recorded_invalid: bool,
}

pub struct Device {
    pub model: Model,
    /// Its stores by layer, by their numbers in the world.
    pub stores: Vec<usize>,
    sectors: u64,
    exceptions: Option<Arc<ExceptionTable>>,
    table: Option<Arc<Table>>,
    waiting: VecDeque<Req>,
    /// Its content is no longer judged.
    pub lost: bool,
    /// It no longer exists: it is merged, or merging.
    pub gone: bool,
}

pub struct World {
    pub config: Config,
    pub sim: Sim,
    pub rng: Rng,
    pub devices: Vec<Device>,
    pub events: Events,
    pub coverage: Coverage,
    pub stores: Vec<Arc<Store>>,
    pub base: FileId,
    /// The results of the individually requested requests.
    pub ended: Vec<(Req, Status)>,
    specs: Vec<StoreSpec>,
    medium: Arc<Medium>,
    workers: Arc<Workers>,
    hosts: Vec<Host>,
    role: change::Role,
    changing: Option<change::Changing>,
    /// A merge has ended, but could not be flushed.
    refused_finish: bool,
    kept: Option<Vec<u8>>,
    /// By file: the writes that failed syncs had lost when the process ended last.
    lost_before: BTreeMap<FileId, usize>,
    /// How often an action took effect or completed.
    pub advanced: u64,
    now: u64,
    stamp: u64,
    trace: bool,
}

type Outcome = Result<(), String>;

impl World {
    pub fn new(config: Config, seed: u64) -> World {
        let mut sim = Sim::new(seed);
        let content = (0..config.sectors).flat_map(|sector| pattern(BASE, sector)).collect();
        let base = sim.add_disk("base", content);
        let mut specs = Vec::new();
        let mut devices = Vec::new();
        let device = |sectors: u64, stores: Vec<usize>| Device {
            model: Model::new(sectors, BASE),
            stores,
            sectors,
            exceptions: None,
            table: None,
            waiting: VecDeque::new(),
            lost: false,
            gone: false,
        };
        let mut store = |chunk, sectors: u64, persistence, guest_disk| {
            let file =
                sim.add_disk(&format!("store{}", specs.len()), vec![0; sectors as usize * SECTOR]);
            specs.push(StoreSpec { file, chunk, persistence, guest_disk, recorded_invalid: false });
            specs.len() - 1
        };
        match &config.shape {
            Shape::Plain => devices.push(device(config.sectors, vec![])),
            Shape::Origin(snaps) => {
                devices.push(device(config.sectors, vec![]));
                for snap in snaps {
                    let number = store(snap.chunk, snap.store, snap.persistence, false);
                    devices.push(device(snap.sectors, vec![number]));
                }
            }
            Shape::Overlay { chunk, store: sectors } => {
                let number = store(*chunk, *sectors, Persistence::PersistentOverflow, true);
                devices.push(device(config.sectors, vec![number]));
            }
        }
        let mut world = World {
            config,
            sim,
            rng: Rng::new(seed ^ 0xabcd),
            devices,
            events: Events::default(),
            coverage: Coverage::default(),
            stores: Vec::new(),
            base,
            ended: Vec::new(),
            specs,
            medium: Arc::new(Medium::new(base)),
            workers: Arc::new(Workers::with_capacity(64)),
            hosts: Vec::new(),
            role: change::Role::Serve,
            changing: None,
            refused_finish: false,
            kept: None,
            lost_before: BTreeMap::new(),
            advanced: 0,
            now: 1,
            stamp: BASE,
            trace: std::env::var_os("SNAPBLK_TRACE").is_some(),
        };
        world.open(Vec::new()).expect("a new world opens");
        world
    }

    /// Queues requests.
    pub fn ask(&mut self, reqs: impl IntoIterator<Item = Req>) {
        for req in reqs {
            if !self.devices[req.device].gone {
                self.devices[req.device].waiting.push_back(req);
            }
        }
    }

    /// Submits one request and runs until nothing is left to do; returns its result, if it ended.
    pub fn one(&mut self, req: Req) -> Result<Option<Status>, String> {
        self.ended.clear();
        self.ask([req]);
        self.run()?;
        Ok(self.ended.iter().find(|(of, _)| *of == req).map(|&(_, status)| status))
    }

    /// Submits requests to a worker before it runs, and runs until nothing is left to do. Returns
    /// all actions on the disks, in order; all requests must succeed.
    pub fn batch(&mut self, reqs: impl IntoIterator<Item = Req>) -> Result<Vec<Asked>, String> {
        self.ended.clear();
        self.sim.take_asked();
        let mut count = 0;
        for req in reqs {
            self.submit(req, false);
            count += 1;
        }
        self.run()?;
        let ended = self.ended.iter().filter(|(_, status)| *status == Status::Ok).count();
        if ended != count {
            return Err(format!("of {count} requests {ended} ended well"));
        }
        Ok(self.sim.take_asked())
    }

    /// The file of a store.
    pub fn store_file(&self, store: usize) -> FileId {
        self.specs[store].file
    }

    /// Drops the requests that were not submitted yet.
    pub fn drop_waiting(&mut self) {
        self.devices.iter_mut().for_each(|device| device.waiting.clear());
    }

    fn outstanding(&self) -> usize {
        self.hosts.iter().map(|host| host.requests.len()).sum()
    }

    /// Takes one step; false if nothing is left to do.
    pub fn turn(&mut self) -> Result<bool, String> {
        self.now += 1;
        if self.go_on_changing()? {
            return Ok(true);
        }
        let submittable: Vec<usize> = if self.outstanding() < self.config.depth {
            (0..self.devices.len()).filter(|&device| self.may_submit(device)).collect()
        } else {
            Vec::new()
        };
        let runnable: Vec<usize> =
            (0..self.hosts.len()).filter(|&host| self.is_runnable(host)).collect();
        let io = self.sim.can_advance();
        let mut choices = Vec::new();
        choices.extend((!submittable.is_empty()).then_some(0));
        choices.extend((!runnable.is_empty()).then_some(1));
        choices.extend(io.then_some(2));
        if choices.is_empty() {
            if self.outstanding() > 0 && self.sim.in_flight() == 0 && !self.is_waiting_for_room() {
                return Err(format!("nothing goes on, and these have not ended: {}", self.stuck()));
            }
            return Ok(false);
        }
        match *self.rng.pick(&choices) {
            0 => {
                let device = *self.rng.pick(&submittable);
                let req = self.devices[device].waiting.pop_front().expect("it was looked at");
                self.submit(req, false);
            }
            1 => {
                let host = *self.rng.pick(&runnable);
                self.step(host)?;
            }
            _ => {
                self.advanced += 1;
                if let Some((host, completion)) = self.sim.advance() {
                    if self.trace {
                        eprintln!("{}: host {host} completes {completion:x?}", self.now);
                    }
                    self.rouse(host);
                    self.hosts[host].engine.complete(completion);
                }
            }
        }
        Ok(true)
    }

    /// Runs until nothing is left to do, or everything left is held.
    pub fn run(&mut self) -> Outcome {
        let mut turns = 0u64;
        while self.turn()? {
            turns += 1;
            if turns > 2_000_000 {
                return Err(format!("no end in sight: {}", self.stuck()));
            }
        }
        Ok(())
    }

    fn stuck(&self) -> String {
        let mut text = String::new();
        for (number, host) in self.hosts.iter().enumerate() {
            for live in host.requests.values() {
                text += &format!("\n  host {number}: {:?}", live.req);
            }
        }
        for store in &self.stores {
            let log = store.log();
            text += &format!(
                "\n  {}: {:?}, {:?} committed of {:?}, a round runs: {}",
                store.name(),
                store.state(),
                log.committed(),
                log.next(),
                log.is_committing()
            );
        }
        text
    }

    fn is_runnable(&self, host: usize) -> bool {
        let host = &self.hosts[host];
        host.touched || !host.asleep || host.woken.load(Ordering::SeqCst)
    }

    fn rouse(&mut self, host: usize) {
        let host = &mut self.hosts[host];
        host.touched = true;
        if std::mem::take(&mut host.asleep) {
            host.engine.woke();
        }
    }

    fn may_submit(&self, device: usize) -> bool {
        let Some(req) = self.devices[device].waiting.front() else { return false };
        let writes = |req: &Req| req.op != Op::Read && req.op != Op::Flush;
        !self.is_stopped(device)
            && !self.hosts.iter().filter(|host| host.device == device).any(|host| {
                host.requests.values().any(|live| {
                    (writes(&live.req) || writes(req))
                        && live.req.sector < req.sector + req.count
                        && req.sector < live.req.sector + live.req.count
                })
            })
    }

    fn submit(&mut self, req: Req, keep: bool) {
        let serves = |host: &usize| {
            let host = &self.hosts[*host];
            host.device == req.device && !host.merges
        };
        let queues: Vec<usize> = (0..self.hosts.len()).filter(serves).collect();
        let number = *self.rng.pick(&queues);
        self.stamp += 1;
        let stamp = match req.op {
            Op::WriteZeroes { .. } => ZERO,
            Op::Discard => ANY,
            _ => self.stamp,
        };
        let data = match req.op {
            Op::Write => {
                (req.sector..req.sector + req.count).flat_map(|at| pattern(stamp, at)).collect()
            }
            Op::Read => vec![0xee; req.count as usize * SECTOR],
            _ => Vec::new(),
        };
        self.note_coverage(&req);
        self.rouse(number);
        let host = &mut self.hosts[number];
        host.next_token += 1;
        let token = Token(host.next_token);
        if self.trace {
            eprintln!("{}: host {number} takes {req:?} as {token:?} writing {stamp}", self.now);
        }
        self.sim.host(number).guest.insert(token, data);
        host.requests.insert(token.0, Live { req, stamp, keep });
        let device = &mut self.devices[req.device];
        match req.op {
            Op::Read => {}
            Op::Flush => device.model.flush_begins(self.stamp, self.now),
            _ if self.changes_nothing(&req) => {}
            _ => self.devices[req.device].model.write_begins(req.sector, req.count, stamp),
        }
        self.hosts[number].engine.submit(Request {
            token,
            op: req.op,
            sector: Sector(req.sector),
            len: req.count * SECTOR as u64,
            durable: req.durable,
        });
        if self.config.commits && self.rng.chance(1, 24) {
            let table = self.hosts[number].engine.table().expect("it serves");
            let mut stores = table.exceptions().iter().flat_map(|ex| &ex.layers);
            if stores.any(|store| store.has_committable() && !store.log().is_committing()) {
                self.coverage.met("commit that nobody waits for");
            }
            self.hosts[number].engine.commit();
        }
    }

    /// A discard of a snapshot without the feature.
    fn changes_nothing(&self, req: &Req) -> bool {
        req.op == Op::Discard
            && req.device.is_multiple_of(2)
            && (!self.devices[req.device].stores.is_empty()
                || (req.device == 0 && self.role != change::Role::Serve))
    }

    fn note_coverage(&mut self, req: &Req) {
        if req.device != 0 || matches!(req.op, Op::Read | Op::Flush) {
            return;
        }
        let range = (req.sector * 512, req.count * 512);
        if let change::Role::Merge(of) = self.role {
            let ex = self.exceptions(of);
            let busy = |chunk| matches!(ex.table.get(chunk), ChunkState::Busy(_));
            if Origin::chunks(&ex, range.0, range.1).any(busy) {
                self.coverage.met("queued in a run");
            }
        }
        for device in 1..self.devices.len() {
            if self.devices[device].gone {
                continue;
            }
            let ex = self.exceptions(device);
            let volatile = Origin::chunks(&ex, range.0, range.1).any(|chunk| {
                matches!(ex.table.get(chunk), ChunkState::Mapped(place)
                    if !ex.store().is_durable(place.chunk))
            });
            if volatile {
                self.coverage.met("origin write on a volatile exception");
            }
            let reading = self.hosts.iter().filter(|host| host.device == device).any(|host| {
                host.requests.values().any(|live| {
                    live.req.op == Op::Read
                        && live.req.sector < req.sector + req.count
                        && req.sector < live.req.sector + live.req.count
                })
            });
            if reading {
                self.coverage.met("origin write against a snapshot's read");
            }
        }
    }

    fn step(&mut self, number: usize) -> Outcome {
        let host = &mut self.hosts[number];
        host.woken.store(false, Ordering::SeqCst);
        host.touched = false;
        if std::mem::take(&mut host.asleep) {
            host.engine.woke();
        }
        host.engine.step();
        while let Some(wants) = host.engine.merge_wants() {
            let Seg::Scratch { offset, len, .. } = wants else { panic!("that is not scratch") };
            let scratch = &self.sim.host(number).scratch;
            host.engine.merge_supply(&scratch[offset as usize..][..len as usize]);
            host.engine.step();
        }
        while let Some(action) = host.engine.pop_action() {
            let segs = host.engine.segs(&action);
            let meta = host.engine.meta_of(&action);
            if self.trace {
                eprintln!("{}: host {number} does {action:x?} {segs:x?}", self.now);
            }
            self.sim.submit(number, action, segs, meta);
        }
        let mut finished = Vec::new();
        while let Some(end) = host.engine.pop_finished() {
            finished.push(end);
        }
        host.asleep = host.engine.may_sleep();
        for (token, status) in finished {
            self.finish(number, token, status)?;
        }
        self.answer_observer();
        Ok(())
    }

    /// Records outside a store what could not be written to it.
    fn answer_observer(&mut self) {
        for (number, store) in self.stores.iter().enumerate() {
            let lost = (store.name().to_owned(), StoreEvent::InvalidNotWritten);
            if store.state() == StoreState::Invalidating && self.events.list().contains(&lost) {
                self.specs[number].recorded_invalid = true;
                self.workers.wake(store.recorded(true));
            }
        }
    }

    /// The state of a store.
    pub fn state(&self, store: usize) -> StoreState {
        self.stores[store].state()
    }
}
