//! Devices over real files: the effects of commands on tables, stores and owed chunks.

mod bounds;
mod claims;
mod durable;
mod full;
mod given;
mod handover;
mod hangs;
mod layers;
mod loaded;
mod memory;
mod origins;
mod overdue;
mod owed;
mod replaced;
mod room;
mod settings;
mod suspends;
mod synced;
mod undone;
mod unnamed;
mod uses;
mod within;

use std::fs::File;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::core::{DeviceEvent, Devices, DevicesConfig, Flushed, Flusher};
use super::error::DeviceError;
use super::moment::{MomentAction, OverlaySnapshot};
use super::state::CommitJob;
use crate::attached::AttachedWorker;
use crate::background::{CommitEnd, CommitHandle, CommitSource, FileExecutor, Pacing};
use crate::cow::{Allocation, StoreState};
use crate::engine::{Engine, EngineConfig};
use crate::exception::{Arena, ChunkState, Memory, Place};
use crate::flusher::CallerFlusher;
use crate::io::{
    Action, Completion, FileId, Files, Identity, IoOp, IoOptions, Pages, ScratchConfig,
};
use crate::lines::parse_table;
use crate::request::{Op, Request, Token};
use crate::table::Table;
use crate::target::{Decision, Target};
use crate::units::{Chunk, DataIndex, Sector};
use crate::workers::{Wake, Workers};

/// Sectors of every disk here.
const LEN: u64 = 2048;

/// Flushes really, unless told to fail.
struct Switch {
    flusher: CallerFlusher,
    fails: AtomicBool,
    /// The next flush hangs until a message comes, or a limit has passed.
    hangs: Mutex<Option<Receiver<()>>>,
    /// The number of flushes.
    flushes: AtomicU32,
    /// Is told of each flush that has ended.
    ended: Mutex<Option<Sender<()>>>,
}

impl Flusher for Switch {
    fn may_hang(&self, _: &Table) -> bool {
        true
    }

    fn try_flush(&self, table: &Arc<Table>) -> Flushed {
        self.flushes.fetch_add(1, Ordering::SeqCst);
        let hangs = self.hangs.lock().unwrap().take();
        if let Some(released) = hangs {
            let _ = released.recv_timeout(Duration::from_secs(10));
        }
        let fails = self.fails.load(Ordering::SeqCst);
        let flushed = if fails { Flushed::Failed } else { self.flusher.try_flush(table) };
        let ended = self.ended.lock().unwrap();
        ended.iter().for_each(|ended| _ = ended.send(()));
        flushed
    }

    fn copy(&self, source: CommitSource, table: &Arc<Table>) -> CommitEnd {
        self.flusher.copy(source, table)
    }
}

struct NoWake;

impl Wake for NoWake {
    fn wake(&self) {}
}

struct World {
    dir: tempfile::TempDir,
    devices: Arc<Devices>,
    flusher: Arc<Switch>,
}

impl World {
    fn new() -> World {
        World::at(tempfile::tempdir().unwrap())
    }

    /// A new process in the directory `dir`.
    fn at(dir: tempfile::TempDir) -> World {
        World::with(dir, Memory::Heap)
    }

    fn with(dir: tempfile::TempDir, memory: Memory) -> World {
        let files = Arc::new(Files::default());
        let workers = Arc::new(Workers::default());
        let options = IoOptions { uring: false, ..IoOptions::default() };
        let flusher = CallerFlusher::new(files.clone(), workers.clone(), options);
        let flusher = Arc::new(Switch {
            flusher,
            fails: AtomicBool::new(false),
            hangs: Mutex::new(None),
            flushes: AtomicU32::new(0),
            ended: Mutex::new(None),
        });
        let config = DevicesConfig {
            memory,
            direct: false,
            deadline: Duration::from_secs(5),
            state: Some(dir.path().join("state")),
            force: false,
            events: Arc::new(|_| ()),
            flusher: flusher.clone(),
        };
        World { devices: Arc::new(Devices::new(files, workers, config)), dir, flusher }
    }

    /// Only while nothing else refers to the devices.
    fn config(&mut self) -> &mut DevicesConfig {
        &mut Arc::get_mut(&mut self.devices).unwrap().config
    }

    fn watch(&mut self, events: impl Fn(DeviceEvent) + Send + Sync + 'static) {
        self.config().events = Arc::new(events);
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn file(&self, name: &str, sectors: u64) {
        File::create(self.path(name)).and_then(|file| file.set_len(sectors * 512)).unwrap();
    }

    /// Loads lines, in which `{}` stands for the directory, and resumes.
    fn load(&self, name: &str, lines: &[&str]) -> Result<(), DeviceError> {
        let dir = self.dir.path().to_str().unwrap();
        let lines: Vec<String> = lines.iter().map(|line| line.replace("{}", dir)).collect();
        let lines = parse_table(lines.iter().map(String::as_str)).unwrap();
        self.devices.load(name, lines, false)?;
        self.devices.resume(name).map(|_| ())
    }

    fn device(&self, name: &str, lines: &[&str]) -> Result<(), DeviceError> {
        self.devices.create(name, None)?;
        self.load(name, lines)
    }

    fn table(&self, name: &str) -> Arc<Table> {
        self.devices.lock().active(name).unwrap().table.clone()
    }

    fn overlay(&self, device: &str, store: &str) {
        let (device, cow) = (device.into(), self.path(store));
        let request = OverlaySnapshot { device, cow, below: None, existing: false };
        let action = MomentAction::Overlay(request);
        self.devices.take_moment(&[action], &|| Ok(())).unwrap();
    }

    fn engine(&self, name: &str) -> Engine {
        let workers = self.devices.workers().clone();
        let mut engine = Engine::new(&workers, Box::new(NoWake), EngineConfig::default()).unwrap();
        engine.bind(Some(self.table(name)));
        engine
    }

    /// The files that a guest's flush of the device syncs.
    fn synced(&self, name: &str) -> Vec<FileId> {
        self.carry_out(name, Op::Flush, 0)
    }

    /// A guest's request for the first sectors of the device, all of whose actions succeed; returns
    /// the files that are synced for it.
    fn carry_out(&self, name: &str, op: Op, sectors: u64) -> Vec<FileId> {
        let mut engine = self.engine(name);
        let (token, sector, len) = (Token(0), Sector(0), sectors * 512);
        engine.submit(Request { token, op, sector, len, durable: false });
        let mut synced = Vec::new();
        while engine.requests() > 0 {
            engine.step();
            while let Some(Action { op, file, tag, .. }) = engine.pop_action() {
                synced.extend((op == IoOp::Sync).then_some(file));
                engine.complete(Completion { tag, result: Ok(()) });
            }
        }
        synced
    }
}

/// Scenario 71, over a plain disk: writes before the overlay, flushed after it.
#[test]
fn a_flush_of_a_new_overlay_covers_the_disk_that_it_was() {
    let world = World::new();
    world.file("disk", LEN);
    world.device("disk", &[&format!("0 {LEN} linear {{}}/disk 0")]).unwrap();
    let base = world.synced("disk")[0];
    world.flusher.fails.store(true, Ordering::SeqCst);
    world.overlay("disk", "store");
    assert!(world.synced("disk").contains(&base), "nobody has synced the disk yet");
    world.flusher.fails.store(false, Ordering::SeqCst);
    world.overlay("disk", "store2");
    assert!(!world.synced("disk").contains(&base), "all was made durable by the second command");
}

/// Scenario 71, over an overlay: a flush of the upper overlay commits the lower store's owed
/// chunks.
#[test]
fn a_flush_of_a_new_overlay_commits_what_the_one_below_owes() {
    let world = World::new();
    world.file("disk", LEN);
    world.device("disk", &[&format!("0 {LEN} linear {{}}/disk 0")]).unwrap();
    world.overlay("disk", "store");
    world.carry_out("disk", Op::Write, 8);
    let below = world.table("disk").exceptions()[0].store().clone();
    let owed = || below.log().next().0 - below.log().committed().0;
    assert_ne!(owed(), 0);
    world.flusher.fails.store(true, Ordering::SeqCst);
    world.overlay("disk", "store2");
    assert_ne!(owed(), 0, "nobody has flushed the disk yet");
    assert!(world.synced("disk").contains(&below.file()));
    assert_eq!(owed(), 0);
}

/// The cost of a read and a flush does not grow with the number of layers, neither in a chain that
/// grew nor in a reopened one.
#[test]
fn a_chain_of_300_layers_costs_what_one_layer_costs() {
    let world = World::new();
    world.file("disk", LEN);
    world.device("disk", &[&format!("0 {LEN} linear {{}}/disk 0")]).unwrap();
    // The places in files that one read of the whole disk uses.
    let places = |world: &World| {
        let table = world.table("disk");
        let (mut at, mut places) = (0, 0);
        while at < LEN * 512 {
            match table.decide(Op::Read, at, LEN * 512 - at) {
                Decision::Pass { len, .. } => at += len,
                other => panic!("{other:?}"),
            }
            places += 1;
        }
        places
    };
    world.overlay("disk", "store0");
    let one = (places(&world), world.synced("disk").len());
    assert_eq!(one.0, 1);
    for layer in 1..300 {
        world.overlay("disk", &format!("store{layer}"));
    }
    assert_eq!((places(&world), world.synced("disk").len()), one);
    let World { dir, devices, .. } = world;
    drop(devices);
    let again = World::at(dir);
    again.devices.start(&[], |_| Ok(())).unwrap();
    assert_eq!((places(&again), again.synced("disk").len()), one);
    let speaks = |name: &str| again.table(name).exceptions()[0].table.chunks();
    assert_eq!(speaks("disk"), LEN / 8);
    assert!((2..300).all(|n| speaks(&format!("disk.{n}")) == 0), "a layer below has a table");
}

/// A store of 4 KiB chunks with these chunks of its origin, each filled with its own number.
fn store_of(chunks: &[u64]) -> Vec<u8> {
    let mut bytes = vec![0; 64 << 12];
    for (at, word) in [0x7041_6e53u32, 1, 1, 8].into_iter().enumerate() {
        bytes[at * 4..][..4].copy_from_slice(&word.to_le_bytes());
    }
    for (at, &old) in chunks.iter().enumerate() {
        let new = at as u64 + 2;
        bytes[4096 + at * 16..][..8].copy_from_slice(&old.to_le_bytes());
        bytes[4096 + at * 16 + 8..][..8].copy_from_slice(&new.to_le_bytes());
        bytes[new as usize * 4096..][..4096].fill(old as u8);
    }
    bytes
}

/// The only visible property of a hint is that it names a chunk within the line's table.
#[test]
fn a_prefetch_is_of_the_chunk_within_its_line() {
    const START: u64 = 1 << 33;
    let world = World::new();
    world.file("disk", LEN);
    std::fs::write(world.path("store"), store_of(&[9, 3])).unwrap();
    let snapshot = format!("{START} {LEN} snapshot {{}}/disk {{}}/store PO 8");
    world.device("snap", &[&format!("0 {START} zero"), &snapshot]).unwrap();
    let table = world.table("snap");
    for sector in [0, START - 1, START, START + LEN - 1] {
        table.prefetch(sector * 512);
    }
}

/// I1 and I4 for commits: when a copy reports that it has finished, the base's entries are on disk.
#[test]
fn a_layer_is_in_its_base_for_good_before_it_leaves_the_chain() {
    let world = World::new();
    world.file("disk", LEN);
    let chunks = [3, 4, 9, 200];
    std::fs::write(world.path("low"), store_of(&[4])).unwrap();
    std::fs::write(world.path("mid"), store_of(&chunks)).unwrap();
    std::fs::write(world.path("top"), store_of(&[9])).unwrap();
    let dir = world.dir.path().to_str().unwrap();
    for (name, below) in
        [("low", format!("{dir}/disk")), ("mid", "low".into()), ("top", "mid".into())]
    {
        let line = format!("0 {LEN} snapshot {below} {dir}/{name} PO 8");
        world.devices.create(name, None).unwrap();
        world.devices.load(name, parse_table([line.as_str()]).unwrap(), name != "top").unwrap();
        world.devices.resume(name).unwrap();
    }
    let named = |name: &str| Some(String::from(name));
    let job = CommitJob {
        device: "top".into(),
        top: named("mid"),
        base: named("low"),
        ..CommitJob::default()
    };
    let copy = world.devices.begin_commit("c", &job).unwrap().copy.unwrap();
    let (files, workers) = (world.devices.files().clone(), world.devices.workers().clone());
    let options = IoOptions { uring: false, ..IoOptions::default() };
    let config = EngineConfig::default();
    let scratch = ScratchConfig::one(config.scratch, Pages::Huge);
    let executor = FileExecutor::copying(files, scratch, options, 2).unwrap();
    let (say, said) = std::sync::mpsc::channel();
    let on_end = move |end| say.send(end).unwrap();
    let table = copy.1.clone();
    let pacing = Pacing::default();
    let commit = CommitHandle::start(workers, executor, config, copy, pacing, on_end).unwrap();
    commit.stop();
    commit.stopped(std::time::Instant::now()).expect("it has not begun");
    commit.go(table);
    assert!(matches!(said.recv().unwrap(), CommitEnd::Finished));
    let low = std::fs::read(world.path("low")).unwrap();
    let word = |at: usize| u64::from_le_bytes(low[at..at + 8].try_into().unwrap());
    let mut entries: Vec<(u64, u64)> =
        (0..4).map(|at| (word(4096 + at * 16), word(4096 + at * 16 + 8))).collect();
    entries.sort_unstable();
    assert_eq!(entries.iter().map(|(old, _)| *old).collect::<Vec<_>>(), chunks);
    for (old, new) in &entries {
        assert!(low[*new as usize * 4096..][..4096].iter().all(|byte| u64::from(*byte) == *old));
    }
    assert!(world.devices.drop_layers("c").unwrap());
    let table = world.table("top");
    let layers = &table.exceptions()[0].layers;
    assert_eq!(layers.len(), 2);
    for (old, new) in entries {
        let own = old == 9;
        let wanted = (layers[usize::from(own)].file(), if own { 2 } else { new } * 4096);
        match table.decide(Op::Read, old * 4096, 4096) {
            Decision::Pass { file, offset, .. } => assert_eq!((file, offset), wanted, "{old}"),
            other => panic!("{old}: {other:?}"),
        }
    }
}

/// Scenario 35, if the header cannot be written: no request waits forever.
#[test]
fn a_store_that_cannot_be_marked_invalid_is_recorded_and_stays_so() {
    let world = World::new();
    world.file("disk", LEN);
    world.file("store", LEN);
    let invalidate = |world: &World| {
        let store = world.table("snap").exceptions()[0].store().clone();
        assert!(store.begin_invalidate());
        let _ = store.invalidated(false);
        world.devices.record_invalid(store.name());
        store.state()
    };
    world.device("disk", &[&format!("0 {LEN} snapshot-origin {{}}/disk")]).unwrap();
    world.device("snap", &[&format!("0 {LEN} snapshot {{}}/disk {{}}/store P 8")]).unwrap();
    assert_eq!(invalidate(&world), StoreState::Invalid);
    let World { dir, devices, .. } = world;
    drop(devices);
    let again = World::at(dir);
    again.devices.start(&[], |_| Ok(())).unwrap();
    assert_eq!(again.table("snap").exceptions()[0].store().state(), StoreState::Invalid);

    // If the state cannot be written, the origin's writes fail.
    again.file("store2", LEN);
    again.load("snap", &[&format!("0 {LEN} snapshot {{}}/disk {{}}/store2 P 8")]).unwrap();
    std::fs::create_dir(again.path("state.new")).unwrap();
    assert_eq!(invalidate(&again), StoreState::Unmarked);
}

/// The process's data is lost with it, and other content of the file never counted.
#[test]
fn scenario_21_a_store_in_memory_is_empty_after_a_restart() {
    let mut world = World::new();
    world.file("disk", LEN);
    let left = store_of(&[3]);
    std::fs::write(world.path("store"), &left).unwrap();
    world.device("snap", &[&format!("0 {LEN} snapshot {{}}/disk {{}}/store N 8")]).unwrap();
    for _ in 0..2 {
        let table = world.table("snap");
        let exceptions = &table.exceptions()[0];
        let mapped =
            (0..LEN / 8).filter(|n| exceptions.table.get(Chunk(*n)) != ChunkState::Unmapped);
        assert_eq!(mapped.count(), 0);
        assert_eq!(exceptions.store().usage().allocated, 0);
        world.carry_out("snap", Op::Write, 8);
        assert!(matches!(exceptions.table.get(Chunk(0)), ChunkState::Mapped(_)));
        assert_eq!(exceptions.store().usage().allocated, 8);
        drop(table);
        let World { dir, devices, .. } = world;
        drop(devices);
        world = World::at(dir);
        world.devices.start(&[], |_| Ok(())).unwrap();
    }
}

/// Scenario 57: the exceptions of a longer device fit in its table.
#[test]
fn a_snapshot_that_is_reloaded_longer_serves_its_new_range() {
    let world = World::new();
    world.file("disk", 1 << 20);
    world.file("store", LEN);
    world.device("snap", &[&format!("0 {LEN} snapshot {{}}/disk {{}}/store PO 8")]).unwrap();
    world.load("snap", &["0 1048576 snapshot {}/disk {}/store PO 8"]).unwrap();
    let decided = world.table("snap").decide(Op::Read, (1048576 - 8) * 512, 4096);
    assert!(matches!(decided, Decision::Pass { len: 4096, .. }), "{decided:?}");
}

/// I8: one live owner per store, also within one table.
#[test]
fn a_store_in_two_lines_of_a_table_is_refused() {
    let world = World::new();
    world.file("disk", LEN);
    world.file("store", LEN);
    let half = LEN / 2;
    let lines = [
        &*format!("0 {half} snapshot {{}}/disk {{}}/store P 8"),
        &*format!("{half} {half} snapshot {{}}/disk {{}}/store P 8"),
    ];
    let refused = |done: Result<(), DeviceError>| {
        let said = done.unwrap_err().to_string();
        assert!(said.contains("named by two lines"), "{said}");
    };
    refused(world.device("snap", &lines));
    world.load("snap", &lines[..1]).unwrap();
    refused(world.load("snap", &lines));
}

/// A store that grew under a live snapshot has its new length, for a merge and in the status.
#[test]
fn a_store_that_grew_is_whole() {
    let world = World::new();
    world.file("disk", LEN);
    world.file("store", 8 * 8);
    world.device("snap", &[&format!("0 {LEN} snapshot {{}}/disk {{}}/store PO 8")]).unwrap();
    world.file("store", 8 * 300);
    world.load("snap", &[&format!("0 {LEN} snapshot {{}}/disk {{}}/store PO 8")]).unwrap();
    let table = world.table("snap");
    let store = table.exceptions()[0].store();
    assert_eq!(store.usage().total, 8 * 300);
    assert_eq!(store.geometry().device_chunks, 300);
}

/// An origin's writes reach its snapshots only: a layer is never written again (I15).
#[test]
fn the_base_of_a_chain_cannot_become_an_origin_nor_the_other_way_round() {
    let world = World::new();
    world.file("disk", LEN);
    world.file("store", LEN);
    world.device("disk", &[&format!("0 {LEN} snapshot {{}}/disk {{}}/store PO 8")]).unwrap();
    world.overlay("disk", "store2");
    let origin = format!("0 {LEN} snapshot-origin {{}}/disk");
    assert!(world.device("origin", &[&origin]).is_err());

    let world = World::new();
    world.file("disk", LEN);
    world.file("store", LEN);
    world.file("store2", LEN);
    world.device("origin", &[&origin]).unwrap();
    world.devices.create("snap", None).unwrap();
    let dir = world.path("");
    let line = format!("0 {LEN} snapshot {0}disk {0}store P 8", dir.display());
    let lines = parse_table([&*line]).unwrap();
    world.devices.load("snap", lines, true).unwrap();
    world.devices.resume("snap").unwrap();
    let stacked = format!("0 {LEN} snapshot snap {{}}/store2 PO 8");
    assert!(world.device("top", &[&stacked]).is_err());
}

/// A device on top of an origin keeps its snapshots' old data too.
#[test]
fn a_write_through_a_device_above_an_origin_is_an_origins() {
    let world = World::new();
    world.file("disk", LEN);
    world.file("store", LEN);
    world.device("disk", &[&format!("0 {LEN} snapshot-origin {{}}/disk")]).unwrap();
    world.device("upper", &[&format!("0 {} linear disk 64", LEN - 64)]).unwrap();
    world.device("snap", &[&format!("0 {LEN} snapshot {{}}/disk {{}}/store P 8")]).unwrap();
    let table = world.table("upper");
    let decided = table.decide(Op::Write, 4096, 4096);
    assert!(matches!(decided, Decision::OriginWrite { .. }), "{decided:?}");
    let Target::Origin(origin) = &table.lines()[0].target else { panic!("it is an origin") };
    assert_eq!((origin.start, origin.snapshots.len()), (64 * 512, 1));
    assert!(matches!(table.decide(Op::Read, 0, 512), Decision::Pass { offset: 32768, .. }));
}

/// A failed resume leaves the old table unchanged, and its owed chunks where a restart finds them.
#[test]
fn a_resume_that_fails_after_a_store_was_opened_again_keeps_what_is_owed() {
    let world = World::new();
    world.file("disk", LEN);
    world.file("store", LEN);
    let first = format!("0 {LEN} snapshot {{}}/disk {{}}/store PO 8");
    world.device("disk", &[&first]).unwrap();
    let owed = world.path("store.owed");
    let before = Identity::of_path(&owed).unwrap();
    let half = LEN / 2;
    let lines = [
        &*format!("0 {half} snapshot {{}}/disk {{}}/store P 8"),
        &*format!("{half} {half} linear {{}}/disk {LEN}"),
    ];
    assert!(world.load("disk", &lines).is_err());
    assert_eq!(Identity::of_path(&owed).unwrap(), before);
    assert!(!world.path("store.owed.before").exists());
    // A successful one leaves one file, its own; the end leaves none.
    world.devices.clear("disk").unwrap();
    world.load("disk", &lines[..1]).unwrap();
    assert_ne!(Identity::of_path(&owed).unwrap(), before);
    assert!(!world.path("store.owed.before").exists());
    let World { dir, devices, .. } = world;
    drop(devices);
    assert!(!owed.exists() && !dir.path().join("store.owed.before").exists());
}

/// A moment can be called off when all devices are stopped: everything continues unchanged.
#[test]
fn a_moment_that_is_called_off_leaves_everything_as_it_was() {
    let world = World::new();
    for name in ["a", "b"] {
        world.file(name, LEN);
        world.device(name, &[&format!("0 {LEN} linear {{}}/{name} 0")]).unwrap();
    }
    let state = || std::fs::read_to_string(world.path("state")).unwrap();
    let without_count = |text: String| -> Vec<String> {
        text.lines().filter(|line| !line.starts_with("generation")).map(str::to_owned).collect()
    };
    let before = without_count(state());
    let overlay = |name: &str| {
        let cow = world.path(&format!("{name}.cow"));
        MomentAction::Overlay(OverlaySnapshot {
            device: name.into(),
            cow,
            below: None,
            existing: false,
        })
    };
    let actions = [overlay("a"), overlay("b")];
    let asked = std::cell::Cell::new(0);
    let refused = world.devices.take_moment(&actions, &|| {
        asked.set(asked.get() + 1);
        // Until now only files have changed; the state already describes the result.
        assert!(world.path("a.cow").exists() && world.path("b.cow").exists());
        assert_ne!(without_count(state()), before);
        Err(DeviceError::Busy("b".into()))
    });
    assert!(matches!(refused, Err(DeviceError::Busy(_))));
    assert_eq!(asked.get(), 1, "one moment");
    assert_eq!(without_count(state()), before);
    let left = std::fs::read_dir(world.dir.path()).unwrap().count();
    assert_eq!(left, 4, "two disks, the state and its lock");
    world.devices.take_moment(&actions, &|| Ok(())).unwrap();
    assert!(world.path("a.cow").exists() && world.path("b.cow").exists());
}
