//! Verbs that are undone after their state was kept, when the former one cannot be kept again.

use super::*;
use crate::attached::StopError;
use crate::device::{RollbackJob, Suspend, User};

/// A plain disk. An overlay on it was given up at its last step, and nothing can be kept since.
fn undone() -> (World, DeviceError) {
    let world = World::new();
    world.file("disk", LEN);
    world.device("disk", &[&format!("0 {LEN} linear {{}}/disk 0")]).unwrap();
    let new = world.path("state.new");
    let too_late = || {
        std::fs::write(&new, "a user's").unwrap();
        Err(DeviceError::refused("it came too late"))
    };
    let (device, cow) = ("disk".into(), world.path("store"));
    let request = OverlaySnapshot { device, cow, below: None, existing: false };
    let error = world.devices.take_moment(&[MomentAction::Overlay(request)], &too_late);
    let error = error.unwrap_err();
    (world, error)
}

fn is_named(world: &World) -> bool {
    std::fs::read_to_string(world.path("state")).unwrap().contains("/store ")
}

#[test]
fn a_store_stays_while_the_state_names_it() {
    let (world, error) = undone();
    let said = error.to_string();
    assert!(said.contains("it came too late") && said.contains("state.new"), "{said}");
    assert!(is_named(&world) && world.path("store").exists());
    world.devices.create("other", None).unwrap_err();
    assert!(is_named(&world) && world.path("store").exists());
    std::fs::remove_file(world.path("state.new")).unwrap();
    world.devices.create("other", None).unwrap();
    assert!(!is_named(&world) && !world.path("store").exists());
    world.overlay("disk", "store");
}

#[test]
fn an_end_says_that_the_state_could_not_be_written_and_the_next_start_serves_it() {
    let (world, _) = undone();
    assert!(!world.devices.close(&[]));
    std::fs::remove_file(world.path("state.new")).unwrap();
    let World { dir, devices, .. } = world;
    drop(devices);
    let world = World::at(dir);
    world.devices.start(&[], |_| Ok(())).unwrap();
    assert!(world.devices.lock().active("disk").unwrap().whole_snapshot().is_some());
}

#[test]
fn an_end_writes_the_state_that_a_command_could_not() {
    let (world, _) = undone();
    std::fs::remove_file(world.path("state.new")).unwrap();
    assert!(world.devices.close(&[]));
    assert!(!is_named(&world) && !world.path("store").exists());
}

/// A guest's setting is written with the devices as they are, not as the undone command had them.
#[test]
fn a_setting_that_is_kept_first_leaves_no_name_of_a_store_that_goes() {
    let (world, _) = undone();
    std::fs::remove_file(world.path("state.new")).unwrap();
    world.devices.set_write_through("disk", "export", true).unwrap();
    assert!(!is_named(&world) && world.path("store").exists());
    world.devices.create("other", None).unwrap();
    assert!(!is_named(&world) && !world.path("store").exists());
}

/// A job that ends late, for one.
#[test]
fn a_caller_after_the_end_leaves_the_store_that_the_state_names() {
    let (world, _) = undone();
    assert!(!world.devices.close(&[]));
    world.devices.detach("disk", "job");
    assert!(is_named(&world) && world.path("store").exists());
}

/// A worker that stops in time once. Notes which file is at the path of a log when it goes on.
struct Slow {
    log: PathBuf,
    stops: AtomicU32,
    seen: Mutex<Vec<Identity>>,
}

impl AttachedWorker for Slow {
    fn stop(&self) {}

    fn stopped(&self, _: std::time::Instant) -> Result<(), StopError> {
        match self.stops.fetch_add(1, Ordering::SeqCst) {
            0 => Ok(()),
            _ => Err(StopError::Deadline),
        }
    }

    fn commit(&self) {}

    fn go(&self, _: Arc<Table>) {
        self.seen.lock().unwrap().push(Identity::of_path(&self.log).unwrap());
    }
}

/// I11: a start after a kill takes in what is in the log at its path alone.
#[test]
fn a_log_that_was_set_aside_is_back_before_a_guest_writes() {
    let world = World::new();
    world.file("disk", 2 * LEN);
    world.file("store", LEN);
    let line = |len: u64| format!("0 {len} snapshot {{}}/disk {{}}/store PO 8");
    world.device("disk", &[&line(LEN)]).unwrap();
    let log = world.path("store.owed");
    let before = Identity::of_path(&log).unwrap();
    let slow = Slow { log, stops: AtomicU32::new(0), seen: Mutex::default() };
    let slow = Arc::new(slow);
    let export = User { writable: true, workers: vec![slow.clone()] };
    world.devices.attach("disk", "export", export).unwrap();
    let late = world.load("disk", &[&line(2 * LEN)]);
    assert!(matches!(late, Err(DeviceError::Busy(_))), "{late:?}");
    assert!(slow.stops.load(Ordering::SeqCst) > 1, "it was opened again before");
    let seen = slow.seen.lock().unwrap();
    assert!(seen.len() > 1 && seen.iter().all(|log| *log == before), "{seen:?}");
}

/// A worker that stops in time some times, and never again. Notes the state whenever it is told to stop.
struct Stuck {
    state: PathBuf,
    stops: AtomicU32,
    seen: Mutex<Vec<String>>,
    goes: AtomicU32,
}

impl AttachedWorker for Stuck {
    fn stop(&self) {
        self.seen.lock().unwrap().push(std::fs::read_to_string(&self.state).unwrap());
    }

    fn stopped(&self, _: std::time::Instant) -> Result<(), StopError> {
        let left =
            self.stops.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1));
        left.map(|_| ()).map_err(|_| StopError::Deadline)
    }

    fn commit(&self) {}

    fn go(&self, _: Arc<Table>) {
        self.goes.fetch_add(1, Ordering::SeqCst);
    }
}

impl World {
    /// `device` gets a worker that stops `stops` times.
    fn stuck(&self, device: &str, stops: u32) -> Arc<Stuck> {
        let (state, stops, goes) = (self.path("state"), stops.into(), 0.into());
        let stuck = Arc::new(Stuck { state, stops, seen: Mutex::default(), goes });
        let export = User { writable: true, workers: vec![stuck.clone()] };
        self.devices.attach(device, "export", export).unwrap();
        stuck
    }

    fn state(&self) -> String {
        std::fs::read_to_string(self.path("state")).unwrap()
    }

    fn generation(&self) -> u64 {
        let state = self.state();
        let line = state.lines().find_map(|line| line.strip_prefix("generation = "));
        line.unwrap().parse().unwrap()
    }

    /// The disks `disk` and `other`.
    fn two_disks() -> World {
        let world = World::new();
        for name in ["disk", "other"] {
            world.file(name, LEN);
            world.device(name, &[&format!("0 {LEN} linear {{}}/{name} 0")]).unwrap();
        }
        world
    }

    /// `disk`, and its snapshot `snap`.
    fn with_a_snapshot() -> World {
        let world = World::new();
        ["disk", "store"].iter().for_each(|name| world.file(name, LEN));
        world.device("disk", &[&format!("0 {LEN} snapshot-origin {{}}/disk")]).unwrap();
        world.device("snap", &[&format!("0 {LEN} snapshot {{}}/disk {{}}/store P 8")]).unwrap();
        world
    }
}

fn busy<T: std::fmt::Debug>(done: Result<T, DeviceError>) {
    assert!(matches!(done, Err(DeviceError::Busy(_))), "{done:?}");
}

/// The caller waits for it again: a kill meanwhile must not lose the table whose load was acknowledged.
#[test]
fn a_loaded_table_is_in_the_state_while_a_worker_that_hangs_is_waited_for() {
    let world = World::two_disks();
    let stuck = world.stuck("disk", 1);
    busy(world.load("disk", &[&format!("0 {LEN} linear {{}}/other 0")]));
    let seen = stuck.seen.lock().unwrap();
    assert_eq!(seen.len(), 3, "before the stores, before the swap, and for the suspend");
    assert!(seen[2].contains("inactive = ["), "{}", seen[2]);
}

/// Of another device, which its table needs to stop.
#[test]
fn a_suspended_device_rests_while_another_does_not_stop() {
    let world = World::with_a_snapshot();
    let rests = world.stuck("snap", u32::MAX);
    world.devices.suspend("snap", Suspend::default()).unwrap();
    let goes = rests.goes.load(Ordering::SeqCst);
    world.file("store2", LEN);
    world.stuck("disk", 0);
    busy(world.load("snap", &[&format!("0 {LEN} snapshot {{}}/disk {{}}/store2 P 8")]));
    assert_eq!(rests.goes.load(Ordering::SeqCst), goes);
    assert!(world.state().contains("suspended = true"));
}

#[test]
fn a_rollback_that_cannot_begin_or_end_writes_the_state_back_at_once() {
    let world = World::with_a_snapshot();
    let job =
        RollbackJob { device: "disk".into(), snapshot: "snap".into(), ..RollbackJob::default() };
    let stuck = world.stuck("disk", 0);
    let before = world.generation();
    busy(world.devices.begin_rollback("j", &job));
    assert_eq!(world.generation(), before + 2, "it is not written without the snapshot");
    assert!(world.state().contains("[devices.snap]") && !world.state().contains("[jobs.j]"));
    stuck.stops.store(1, Ordering::SeqCst);
    world.devices.begin_rollback("j", &job).unwrap();
    let before = world.generation();
    busy(world.devices.end_rollback("j", "disk"));
    assert_eq!(world.generation(), before + 2, "it is not written without the job");
    assert!(world.state().contains("[jobs.j]"));
}

/// There is nothing to be taken back.
#[test]
fn a_rollback_whose_state_cannot_be_written_says_that_alone() {
    let world = World::with_a_snapshot();
    let job =
        RollbackJob { device: "disk".into(), snapshot: "snap".into(), ..RollbackJob::default() };
    let refused = |done: Result<(), DeviceError>| {
        assert!(matches!(done, Err(DeviceError::State(_))), "{done:?}");
        assert!(!world.devices.state_file().is_stale());
    };
    let new = world.path("state.new");
    std::fs::create_dir(&new).unwrap();
    refused(world.devices.begin_rollback("j", &job));
    std::fs::remove_dir(&new).unwrap();
    world.devices.begin_rollback("j", &job).unwrap();
    std::fs::create_dir(&new).unwrap();
    refused(world.devices.end_rollback("j", "disk"));
}

#[test]
fn a_commit_that_does_not_get_on_stays_in_the_state_as_it_was() {
    let world = World::two_disks();
    world.overlay("disk", "store");
    world.overlay("disk", "store2");
    world.stuck("disk", 0);
    let top = Some("disk.2".into());
    let layer = CommitJob { device: "disk".into(), top, ..CommitJob::default() };
    world.devices.begin_commit("c", &layer).unwrap();
    busy(world.devices.drop_layers("c"));
    assert!(world.state().contains("[commits.c]"), "{}", world.state());
    world.devices.forget_commit("c").unwrap();
    world.overlay("other", "store3");
    let whole = CommitJob { device: "other".into(), ..CommitJob::default() };
    world.devices.begin_commit("d", &whole).unwrap();
    let other = world.stuck("other", 0);
    busy(world.devices.pivot("d"));
    assert!(world.state().contains("pivoted = false"), "{}", world.state());
    other.stops.store(1, Ordering::SeqCst);
    world.devices.pivot("d").unwrap();
    busy(world.devices.end_pivot("d"));
    assert!(world.state().contains("[commits.d]"), "{}", world.state());
}

/// Neither a later command nor the next start could read it.
#[test]
fn a_state_that_is_too_long_is_not_written() {
    let world = World::two_disks();
    // As much of a table is written as is loaded.
    let lines = |count: u64| -> Vec<String> {
        (0..count).map(|at| format!("{at} 1 linear {} 0", world.path("other").display())).collect()
    };
    let load = |count| {
        let lines = lines(count);
        let lines = parse_table(lines.iter().map(String::as_str)).unwrap();
        world.devices.load("disk", lines, false)
    };
    load(100).unwrap();
    let before = world.state();
    let said = load(40_000).unwrap_err().to_string();
    assert!(said.contains("would have") && said.contains("more than"), "{said}");
    assert_eq!(world.state(), before);
    load(101).unwrap();
    let World { dir, devices, .. } = world;
    drop(devices);
    World::at(dir).devices.start(&[], |_| Ok(())).unwrap();
}
