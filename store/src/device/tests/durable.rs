//! What commands make durable, and what they refuse if that is impossible.

use std::sync::Mutex;

use super::*;
use crate::attached::{AttachedWorker, StopError};
use crate::cow::Persistence;
use crate::device::moment::CreateSnapshot;
use crate::device::{Halt, RollbackJob, StateError, Suspend, User};
use crate::exception::ChunkState;
use crate::io::durable::seen;
use crate::request::Status;
use crate::units::Chunk;

mod bases;
mod neighbours;
mod readers;

impl World {
    /// The files that the control plane synced since the last call, by their names here, in order;
    /// `.` is the directory.
    fn made_durable(&self) -> Vec<String> {
        let here = std::fs::canonicalize(self.dir.path()).unwrap();
        let name = |path: PathBuf| match path.strip_prefix(&here).unwrap().to_str().unwrap() {
            "" => String::from("."),
            name => name.to_owned(),
        };
        let mut names: Vec<String> = seen::take().into_iter().map(name).collect();
        names.dedup();
        names
    }

    fn linear(&self, name: &str) -> FileId {
        self.file(name, LEN);
        self.device(name, &[&format!("0 {LEN} linear {{}}/{name} 0")]).unwrap();
        self.synced(name)[0]
    }

    fn fail_flushes(&self, fails: bool) {
        self.flusher.fails.store(fails, Ordering::SeqCst);
    }
}

fn cannot_flush<T: std::fmt::Debug>(done: Result<T, DeviceError>) {
    assert!(matches!(done, Err(DeviceError::FlushFailed(_))), "{done:?}");
}

/// Takes the engine's actions, and completes them with success.
fn answer(engine: &mut Engine) -> Vec<Action> {
    engine.step();
    let actions: Vec<Action> = std::iter::from_fn(|| engine.pop_action()).collect();
    for Action { tag, .. } in &actions {
        engine.complete(Completion { tag: *tag, result: Ok(()) });
    }
    actions
}

fn write(engine: &mut Engine, chunk: u64, durable: bool) {
    let (token, op, sector) = (Token(chunk as u32), Op::Write, Sector(chunk * 8));
    engine.submit(Request { token, op, sector, len: 4096, durable });
}

/// Known bug 21, in the engine.
#[test]
fn a_write_that_is_to_be_durable_ends_behind_a_sync() {
    let world = World::new();
    let file = world.linear("disk");
    let mut engine = world.engine("disk");
    write(&mut engine, 1, true);
    let mut asked = Vec::new();
    while engine.pop_finished().is_none() {
        let actions = answer(&mut engine);
        assert!(!actions.is_empty());
        assert!(!engine.is_quiet(), "I9: another table would have other files synced");
        asked.extend(actions.iter().map(|action| (action.op, action.file)));
    }
    assert_eq!(asked, [(IoOp::Write, file), (IoOp::Sync, file)]);
}

/// As when a guest turns its write cache off.
#[test]
fn a_write_that_is_made_durable_on_its_way_ends_behind_a_sync() {
    let world = World::new();
    let file = world.linear("disk");
    let mut engine = world.engine("disk");
    write(&mut engine, 1, false);
    let read =
        Request { token: Token(2), op: Op::Read, sector: Sector(0), len: 4096, durable: false };
    engine.submit(read);
    engine.step();
    let actions: Vec<Action> = std::iter::from_fn(|| engine.pop_action()).collect();
    write(&mut engine, 3, false);
    engine.make_durable();
    for Action { tag, .. } in actions {
        engine.complete(Completion { tag, result: Ok(()) });
    }
    assert_eq!(engine.pop_finished(), Some((Token(2), Status::Ok)), "the read");
    assert_eq!(engine.pop_finished(), None);
    // The second write begins together with the sync of the first.
    let asked: Vec<_> = answer(&mut engine).iter().map(|it| (it.op, it.file)).collect();
    assert_eq!(asked, [(IoOp::Write, file), (IoOp::Sync, file)]);
    assert_eq!(engine.pop_finished(), Some((Token(1), Status::Ok)));
    assert_eq!(engine.pop_finished(), None);
    let asked: Vec<_> = answer(&mut engine).iter().map(|it| (it.op, it.file)).collect();
    assert_eq!(asked, [(IoOp::Sync, file)]);
    assert_eq!(engine.pop_finished(), Some((Token(3), Status::Ok)));
}

/// Known bug 10: chunks are moved a few at a time, and waiting requests continue by themselves.
#[test]
fn chunks_are_moved_a_few_at_a_time() {
    let world = World::new();
    world.file("disk", LEN);
    world.file("store", LEN);
    world.device("disk", &[&format!("0 {LEN} snapshot {{}}/disk {{}}/store PO 8")]).unwrap();
    let config = EngineConfig { claims: 4, ..EngineConfig::default() };
    let mut engine = Engine::new(world.devices.workers(), Box::new(NoWake), config).unwrap();
    engine.bind(Some(world.table("disk")));
    (0..16).for_each(|chunk| write(&mut engine, chunk, false));
    for _ in 0..4 {
        let bytes: u64 = answer(&mut engine).iter().map(|action| action.len).sum();
        assert_eq!(bytes, 4 * 4096);
    }
    engine.step();
    let ended = std::iter::from_fn(|| engine.pop_finished()).count();
    assert_eq!((ended, engine.requests()), (16, 0));
}

/// The file first: otherwise the name would be that of an empty file.
#[test]
fn the_state_is_durable_and_so_is_its_name() {
    let world = World::new();
    world.devices.create("disk", None).unwrap();
    assert_eq!(world.made_durable(), ["state.new", "."]);
}

/// If the directory cannot be synced, the command fails, and the next start sees the former state.
#[test]
fn a_state_whose_name_cannot_be_synced_is_the_one_before() {
    let world = World::new();
    world.devices.create("first", None).unwrap();
    let before = std::fs::read(world.path("state")).unwrap();
    world.made_durable();
    seen::fail(std::fs::canonicalize(world.dir.path()).unwrap());
    let failed = world.devices.create("second", None);
    assert!(failed.is_err_and(|error| error.to_string().contains("cannot flush")));
    assert_eq!(std::fs::read(world.path("state")).unwrap(), before);
    // The former state is complete after a power cut.
    let whole = seen::take().iter().filter(|name| name.ends_with("state.new")).count();
    assert_eq!(whole, 2);
    world.devices.create("second", None).unwrap();
    assert_ne!(std::fs::read(world.path("state")).unwrap(), before);
}

/// No other code syncs a killed process's unsynced writes to a file.
#[test]
fn a_file_is_synced_when_it_is_opened() {
    let world = World::new();
    world.linear("disk");
    assert!(world.made_durable().contains(&String::from("disk")));
}

/// A store and its name are durable before the state names it.
#[test]
fn a_new_store_is_durable_before_it_is_used() {
    let world = World::new();
    world.linear("disk");
    world.made_durable();
    world.overlay("disk", "store");
    let durable = world.made_durable();
    assert_eq!(durable[..5], ["store", ".", "store", "state.new", "."]);
}

#[test]
fn a_store_that_is_made_by_a_link_is_durable_where_it_lies() {
    let world = World::new();
    world.linear("disk");
    std::fs::create_dir(world.path("data")).unwrap();
    std::os::unix::fs::symlink("data/store", world.path("link")).unwrap();
    world.made_durable();
    world.overlay("disk", "link");
    assert_eq!(world.made_durable()[..2], ["data/store", "data"]);
}

/// The link existed before, and the next try finds no obstacle.
#[test]
fn a_store_that_was_made_by_a_link_in_vain_is_gone() {
    let world = World::new();
    world.linear("disk");
    std::fs::create_dir(world.path("data")).unwrap();
    std::os::unix::fs::symlink("data/store", world.path("link")).unwrap();
    // The state cannot be written.
    std::fs::create_dir(world.path("state.new")).unwrap();
    let (device, cow) = ("disk".into(), world.path("link"));
    let request = OverlaySnapshot { device, cow, below: None, existing: false };
    let taken = world.devices.take_moment(&[MomentAction::Overlay(request)], &|| Ok(()));
    assert!(taken.is_err());
    assert!(world.path("link").is_symlink() && !world.path("data/store").exists());
    std::fs::remove_dir(world.path("state.new")).unwrap();
    world.overlay("disk", "link");
}

/// A flush does not sync a file's modification time, and after a power cut the next start would
/// assume that another program changed the base: for example, if the state is on another file
/// system.
#[test]
fn what_is_kept_of_a_base_is_durable_in_it() {
    let world = World::new();
    world.linear("disk");
    world.made_durable();
    world.overlay("disk", "store");
    let durable = world.made_durable();
    assert_eq!(durable[durable.len() - 3..], ["disk", "state.new", "."]);
    // Nothing has changed since.
    world.overlay("disk", "store2");
    assert!(!world.made_durable().contains(&String::from("disk")));
    // Nor apart from guests' syncs, while one of these may fail.
    world.linear("other");
    world.made_durable();
    world.fail_flushes(true);
    world.overlay("other", "store3");
    assert!(!world.made_durable().contains(&String::from("other")));
}

/// Only the size of a transient store matters, but a start looks for the file.
#[test]
fn a_transient_store_is_there_after_a_power_cut() {
    let world = World::new();
    world.linear("disk");
    world.made_durable();
    let action = MomentAction::Create(CreateSnapshot {
        device: "disk".into(),
        name: "snap".into(),
        cow: world.path("store"),
        chunk: None,
        size: None,
        persistence: Persistence::Transient,
        existing: false,
    });
    world.devices.take_moment(&[action], &|| Ok(())).unwrap();
    let durable = world.made_durable();
    assert_eq!(durable[..5], ["store", ".", "store", "state.new", "."]);
}

/// A guest's unflushed writes are the snapshot's too, and are durable when the command has ended.
#[test]
fn a_snapshot_is_durable_with_what_its_origin_has() {
    let world = World::new();
    world.linear("disk");
    let create = |name: &str| {
        world.flusher.flushes.store(0, Ordering::SeqCst);
        let action = MomentAction::Create(CreateSnapshot {
            device: "disk".into(),
            name: name.into(),
            cow: world.path(name),
            chunk: None,
            size: None,
            persistence: Persistence::Persistent,
            existing: false,
        });
        world.devices.take_moment(&[action], &|| Ok(())).unwrap();
        world.flusher.flushes.load(Ordering::SeqCst)
    };
    assert_eq!(create("first"), 1);
    assert_eq!(create("second"), 1);
    // If they cannot be flushed, the guest's flush fails too, and the moment has passed.
    world.fail_flushes(true);
    create("third");
    world.fail_flushes(false);
}

#[test]
fn a_file_that_was_made_longer_stays_so() {
    let world = World::new();
    world.linear("disk");
    let grow = || world.devices.resize("disk", 2 * LEN * 512);
    let sectors = || std::fs::metadata(world.path("disk")).unwrap().len() / 512;
    world.fail_flushes(true);
    grow().unwrap_err();
    assert_eq!(sectors(), LEN);
    world.fail_flushes(false);
    grow().unwrap();
    assert_eq!(sectors(), 2 * LEN);
}

#[test]
fn nothing_ends_whose_writes_cannot_be_made_durable() {
    let world = World::new();
    world.linear("disk");
    world.fail_flushes(true);
    cannot_flush(world.devices.suspend("disk", Suspend::default()));
    cannot_flush(world.devices.remove("disk", false));
    assert!(world.devices.suspend("disk", Suspend { noflush: true }).is_ok());
    cannot_flush(world.devices.remove("disk", false));
    world.devices.resume("disk").unwrap();
    assert!(!world.devices.close(&[]));
}

/// A table that only reads a file written by its predecessor syncs it, even after that failed.
#[test]
fn what_a_table_leaves_behind_is_the_next_one_s_to_sync() {
    let over = |name: &str| format!("0 {LEN} snapshot {{}}/{name} {{}}/{name}.cow PO 8");
    let world = World::new();
    let mut bases = Vec::new();
    for name in ["serves", "suspended"] {
        bases.push(world.linear(name));
        world.file(&format!("{name}.cow"), LEN);
    }
    world.fail_flushes(true);
    world.load("serves", &[&over("serves")]).unwrap();
    world.fail_flushes(false);
    world.devices.suspend("suspended", Suspend { noflush: true }).unwrap();
    world.load("suspended", &[&over("suspended")]).unwrap();
    for (name, base) in ["serves", "suspended"].into_iter().zip(bases) {
        assert!(world.synced(name).contains(&base), "{name}");
    }
}

/// A merge erases the list, which does not contain owed chunks.
#[test]
fn a_rollback_begins_with_a_snapshot_that_owes_nothing() {
    let world = World::new();
    world.file("disk", LEN);
    world.file("store", LEN);
    world.device("disk", &[&format!("0 {LEN} snapshot-origin {{}}/disk")]).unwrap();
    world.device("snap", &[&format!("0 {LEN} snapshot {{}}/disk {{}}/store P 8")]).unwrap();
    world.fail_flushes(true);
    let job =
        RollbackJob { device: "disk".into(), snapshot: "snap".into(), ..RollbackJob::default() };
    cannot_flush(world.devices.begin_rollback("m", &job));
    world.fail_flushes(false);
    world.devices.begin_rollback("m", &job).unwrap();
}

/// A job's name is free when the job is over, but a stopped rollback is not over.
#[test]
fn a_rollback_that_stopped_outlives_its_job_s_name() {
    let world = World::new();
    let roll_back = |disk: &str| RollbackJob {
        device: disk.into(),
        snapshot: format!("{disk}-snap"),
        ..RollbackJob::default()
    };
    for disk in ["one", "two"] {
        let store = format!("{disk}-store");
        world.file(disk, LEN);
        world.file(&store, LEN);
        world.device(disk, &[&format!("0 {LEN} snapshot-origin {{}}/{disk}")]).unwrap();
        let snapshot = format!("0 {LEN} snapshot {{}}/{disk} {{}}/{store} P 8");
        world.device(&format!("{disk}-snap"), &[&snapshot]).unwrap();
        world.devices.begin_rollback("j", &roll_back(disk)).unwrap();
        let said = world.devices.begin_rollback("k", &roll_back(disk)).unwrap_err().to_string();
        assert!(said.contains("the job 'j'"), "{said}");
        world.devices.halt_rollback("j", Halt::Cancelled).unwrap();
    }
    assert_eq!(world.devices.merging(None), [], "they are jobs, and not anybody's");
    for disk in ["one", "two"] {
        world.devices.begin_rollback(disk, &roll_back(disk)).unwrap();
    }
    let jobs = world.devices.rollback_jobs();
    assert_eq!(jobs.keys().collect::<Vec<_>>(), ["one", "two"]);
    assert!(jobs.values().all(|job| job.halted.is_none() && job.cow.ends_with("-store")));
}

/// A world in which the job `j` rolls `disk` back to a snapshot.
fn rolling_back() -> World {
    let world = World::new();
    world.file("disk", LEN);
    world.file("store", LEN);
    world.device("disk", &[&format!("0 {LEN} snapshot-origin {{}}/disk")]).unwrap();
    world.device("snap", &[&format!("0 {LEN} snapshot {{}}/disk {{}}/store P 8")]).unwrap();
    let job =
        RollbackJob { device: "disk".into(), snapshot: "snap".into(), ..RollbackJob::default() };
    world.devices.begin_rollback("j", &job).unwrap();
    world
}

#[test]
fn a_rollback_whose_last_step_fails_is_not_forgotten() {
    let world = rolling_back();
    let known = || world.devices.rollback_jobs();
    let before = known();
    // The state cannot be written.
    std::fs::create_dir(world.path("state.new")).unwrap();
    world.devices.end_rollback("j", "disk").unwrap_err();
    assert_eq!(known(), before);
    std::fs::remove_dir(world.path("state.new")).unwrap();
    world.devices.end_rollback("j", "disk").unwrap();
    assert!(known().is_empty());
}

/// It ended with the table that merged.
#[test]
fn a_merge_that_is_loaded_after_a_cancelled_rollback_is_another() {
    let world = rolling_back();
    world.devices.halt_rollback("j", Halt::Cancelled).unwrap();
    assert_eq!(world.devices.merging(Some("disk")), []);
    world.load("disk", &[&format!("0 {LEN} snapshot-origin {{}}/disk")]).unwrap();
    world.load("disk", &[&format!("0 {LEN} snapshot-merge {{}}/disk {{}}/store P 8")]).unwrap();
    assert_eq!(world.devices.merging(Some("disk")).len(), 1);
}

/// A job may end while the process does.
#[test]
fn what_comes_after_the_end_of_all_devices_is_not_kept() {
    let world = rolling_back();
    let state = || std::fs::read_to_string(world.path("state")).unwrap();
    let before = state();
    assert!(world.devices.close(&[]));
    let _ = world.devices.end_rollback("j", "disk");
    let _ = world.devices.halt_rollback("j", Halt::Failed);
    assert_eq!(state(), before);
}

#[test]
fn a_commit_takes_no_layer_that_owes_something() {
    let world = World::new();
    world.file("disk", LEN);
    world.file("store0", LEN);
    world.device("disk", &[&format!("0 {LEN} snapshot {{}}/disk {{}}/store0 PO 8")]).unwrap();
    for layer in 1..3 {
        world.overlay("disk", &format!("store{layer}"));
    }
    // disk over disk.2 over disk.1: into a layer, which is read again.
    let named = |name: &str| Some(String::from(name));
    let (top, base) = (named("disk.2"), named("disk.1"));
    let into_layer = CommitJob { device: "disk".into(), top, base, ..CommitJob::default() };
    world.fail_flushes(true);
    cannot_flush(world.devices.begin_commit("c", &into_layer));
    world.fail_flushes(false);
    world.devices.begin_commit("c", &into_layer).unwrap();
}

/// The device's own store becomes the merging one, and must owe nothing.
#[test]
fn a_pivot_waits_for_what_the_device_owes() {
    let world = World::new();
    world.file("disk", LEN);
    world.file("store", LEN);
    world.device("disk", &[&format!("0 {LEN} linear {{}}/disk 0")]).unwrap();
    world.overlay("disk", "store2");
    let job = CommitJob { device: "disk".into(), ..CommitJob::default() };
    assert!(world.devices.begin_commit("c", &job).unwrap().activates);
    world.fail_flushes(true);
    cannot_flush(world.devices.pivot("c"));
    world.fail_flushes(false);
    world.devices.pivot("c").unwrap();
}

/// The search for merges without a job must not find it, even before its job runs again.
#[test]
fn scenario_37_what_a_commit_merges_is_its_job_s() {
    let world = World::new();
    world.file("disk", LEN);
    world.device("disk", &[&format!("0 {LEN} linear {{}}/disk 0")]).unwrap();
    world.overlay("disk", "store");
    let mut engine = world.engine("disk");
    write(&mut engine, 5, false);
    while engine.pop_finished().is_none() {
        answer(&mut engine);
    }
    engine.bind(None);
    let job = CommitJob { device: "disk".into(), ..CommitJob::default() };
    world.devices.begin_commit("c", &job).unwrap();
    world.devices.pivot("c").unwrap();
    assert_eq!(world.devices.merging(None), []);
    assert_eq!(world.devices.merging(Some("disk")), []);
    world.devices.lock().state.commits.clear();
    let found = world.devices.merging(None);
    assert_eq!(found.len(), 1, "without its job it is anybody's: {found:?}");
}

/// The layers of a reopened chain are at rest only once they owe nothing.
#[test]
fn layers_rest_only_where_that_is_sure() {
    for fails in [true, false] {
        let world = World::new();
        world.file("disk", LEN);
        world.device("disk", &[&format!("0 {LEN} linear {{}}/disk 0")]).unwrap();
        world.overlay("disk", "store1");
        world.overlay("disk", "store2");
        let World { dir, devices, .. } = world;
        drop(devices);
        let again = World::at(dir);
        again.fail_flushes(fails);
        again.devices.start(&[], |_| Ok(())).unwrap();
        let table = again.table("disk");
        let lower = &table.exceptions()[0].layers[0];
        assert_eq!(lower.is_sealed(), !fails);
    }
}

/// A worker that still has I/O in flight when it is told to stop.
struct Late(Mutex<Option<Box<dyn FnOnce() + Send>>>);

impl AttachedWorker for Late {
    fn stop(&self) {
        if let Some(in_flight) = self.0.lock().unwrap().take() {
            in_flight();
        }
    }

    fn stopped(&self, _: std::time::Instant) -> Result<(), StopError> {
        Ok(())
    }

    fn commit(&self) {}

    fn go(&self, _: Arc<Table>) {}
}

/// Known bug 15: a store is read for its next table only when the former one is quiet.
#[test]
fn a_store_is_not_read_while_its_old_table_is_live() {
    let world = World::new();
    world.file("disk", 2 * LEN);
    world.file("store", LEN);
    world.device("disk", &[&format!("0 {LEN} snapshot {{}}/disk {{}}/store PO 8")]).unwrap();
    let (workers, table) = (world.devices.workers().clone(), world.table("disk"));
    let in_flight = move || {
        let mut engine = Engine::new(&workers, Box::new(NoWake), EngineConfig::default()).unwrap();
        engine.bind(Some(table));
        write(&mut engine, 5, false);
        while engine.pop_finished().is_none() {
            answer(&mut engine);
        }
        engine.bind(None);
    };
    let late: Arc<dyn AttachedWorker> = Arc::new(Late(Mutex::new(Some(Box::new(in_flight)))));
    world.devices.attach("disk", "guest", User { writable: true, workers: vec![late] }).unwrap();
    world.load("disk", &[&format!("0 {} snapshot {{}}/disk {{}}/store PO 8", 2 * LEN)]).unwrap();
    let entry = world.table("disk").exceptions()[0].table.get(Chunk(5));
    assert!(matches!(entry, ChunkState::Mapped(_)), "{entry:?}");
}

/// A guest that turned its write cache off does not flush any more, whichever process serves it.
#[test]
fn a_write_cache_that_is_off_is_off_after_a_restart() {
    let world = World::new();
    world.file("disk", LEN);
    for name in ["disk", "other"] {
        world.device(name, &[&format!("0 {LEN} linear {{}}/disk 0")]).unwrap();
        world.devices.set_write_through(name, "guest", true).unwrap();
    }
    world.devices.set_write_through("other", "guest", false).unwrap();
    assert!(world.devices.set_write_through("none", "guest", true).is_err());
    let World { dir, devices, .. } = world;
    drop(devices);
    let again = World::at(dir);
    again.devices.start(&[], |_| Ok(())).unwrap();
    assert!(again.devices.is_write_through("disk", "guest"));
    assert!(!again.devices.is_write_through("disk", "another guest"));
    assert!(!again.devices.is_write_through("other", "guest"));
    again.devices.remove("disk", false).unwrap();
    again.device("disk", &[&format!("0 {LEN} linear {{}}/disk 0")]).unwrap();
    assert!(!again.devices.is_write_through("disk", "guest"), "it is another disk");
}

/// The system reports it once to each open file: a guest's flush would succeed afterwards.
#[test]
fn a_sync_that_fails_in_a_command_fails_the_guest_s_flush() {
    let fails = |world: &World, name: &str| seen::fail(world.path(name).canonicalize().unwrap());
    // A base, whose time is kept.
    let world = World::new();
    world.linear("disk");
    fails(&world, "disk");
    world.overlay("disk", "over");
    cannot_flush(world.devices.suspend("disk", Suspend::default()));
    // A store that its own device opens again.
    world.file("disk2", 2 * LEN);
    world.file("store", LEN);
    let line = |len: u64| format!("0 {len} snapshot {{}}/disk2 {{}}/store PO 8");
    world.device("two", &[&line(LEN)]).unwrap();
    fails(&world, "store");
    world.load("two", &[&line(2 * LEN)]).unwrap_err();
    cannot_flush(world.devices.remove("two", false));
}

/// The same for a chain whose lists are read for a commit.
#[test]
fn a_sync_that_fails_when_a_commit_begins_fails_the_guest_s_flush() {
    let world = World::new();
    world.linear("disk");
    (1..4).for_each(|layer| world.overlay("disk", &format!("store{layer}")));
    let named = |name: &str| Some(String::from(name));
    let (top, base) = (named("disk.3"), named("disk.2"));
    let job = CommitJob { device: "disk".into(), top, base, ..CommitJob::default() };
    let store = world.table("disk").exceptions()[0].layers[1].clone();
    seen::fail(world.path("store2").canonicalize().unwrap());
    world.devices.begin_commit("c", &job).unwrap_err();
    assert_eq!(store.state(), StoreState::CommitFailed);
}
