//! Verbs that are undone after their state was kept, when the former one cannot be kept again.

use super::*;
use crate::attached::StopError;
use crate::device::User;

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
