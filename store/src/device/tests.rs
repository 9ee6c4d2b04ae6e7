//! Devices over real files: what commands do to tables, stores and what is owed.

use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::core::{Devices, DevicesConfig, Flusher};
use super::error::DeviceError;
use super::snapshots::OverlaySnapshot;
use crate::cow::StoreState;
use crate::engine::{Engine, EngineConfig};
use crate::flusher::CallerFlusher;
use crate::io::{Action, Completion, FileId, Files, IoOp, IoOptions};
use crate::lines::parse_table;
use crate::request::{Op, Request, Token};
use crate::table::Table;
use crate::units::Sector;
use crate::workers::{Wake, Workers};

/// Sectors of every disk here.
const LEN: u64 = 2048;

/// Flushes for real, unless it is told to fail.
struct Switch {
    flusher: CallerFlusher,
    fails: AtomicBool,
}

impl Flusher for Switch {
    fn flush(&self, table: &Arc<Table>) -> bool {
        !self.fails.load(Ordering::SeqCst) && self.flusher.flush(table)
    }
}

struct NoWake;

impl Wake for NoWake {
    fn wake(&self) {}
}

struct World {
    dir: tempfile::TempDir,
    devices: Devices,
    flusher: Arc<Switch>,
}

impl World {
    fn new() -> World {
        World::at(tempfile::tempdir().unwrap())
    }

    /// As a process that is started anew sees `dir`.
    fn at(dir: tempfile::TempDir) -> World {
        let files = Arc::new(Files::default());
        let workers = Arc::new(Workers::default());
        let options = IoOptions { uring: false, ..IoOptions::default() };
        let flusher = CallerFlusher::new(files.clone(), workers.clone(), options);
        let flusher = Arc::new(Switch { flusher, fails: AtomicBool::new(false) });
        let config = DevicesConfig {
            direct: false,
            deadline: Duration::from_secs(5),
            state: Some(dir.path().join("state")),
            force: false,
            events: Arc::new(|_| ()),
            flusher: flusher.clone(),
        };
        World { devices: Devices::new(files, workers, config), dir, flusher }
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
        self.devices.resume(name)
    }

    fn device(&self, name: &str, lines: &[&str]) -> Result<(), DeviceError> {
        self.devices.create(name, None)?;
        self.load(name, lines)
    }

    fn table(&self, name: &str) -> Arc<Table> {
        self.devices.table(name).unwrap()
    }

    fn overlay(&self, device: &str, store: &str) {
        let (device, cow) = (device.into(), self.path(store));
        let request = OverlaySnapshot { device, cow, below: None, existing: false };
        self.devices.overlay_snapshot(&request).unwrap();
    }

    fn engine(&self, name: &str) -> Engine {
        let workers = self.devices.workers().clone();
        let mut engine = Engine::new(workers, Box::new(NoWake), EngineConfig::default());
        engine.bind(Some(self.table(name)));
        engine
    }

    /// The files that a guest's flush of the device syncs.
    fn synced(&self, name: &str) -> Vec<FileId> {
        let mut engine = self.engine(name);
        let (token, op, sector) = (Token(0), Op::Flush, Sector(0));
        engine.submit(Request { token, op, sector, len: 0, durable: false });
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

/// Scenario 71, over a plain disk: what was written before the overlay, flushed after it.
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

/// Scenario 35, where the header cannot be written: nobody waits for ever.
#[test]
fn a_store_that_cannot_be_marked_invalid_is_recorded_and_stays_so() {
    let world = World::new();
    world.file("disk", LEN);
    world.file("store", LEN);
    let invalidate = |world: &World| {
        let store = world.table("snap").exceptions()[0].store().clone();
        assert!(store.begin_invalidate());
        store.invalidated(false);
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

    // Where the state cannot be kept, the origin's writes fail.
    again.file("store2", LEN);
    again.load("snap", &[&format!("0 {LEN} snapshot {{}}/disk {{}}/store2 P 8")]).unwrap();
    std::fs::create_dir(again.path("state.new")).unwrap();
    assert_eq!(invalidate(&again), StoreState::Unmarked);
}
