//! Concurrent suspends.

use std::sync::mpsc::Sender;
use std::time::Instant;

use super::*;
use crate::attached::{AttachedWorker, StopError};
use crate::cow::Store;
use crate::cow::log::RING;
use crate::device::serving::TIMES;
use crate::device::{Suspend, TableKind, User};

/// A worker whose disk hangs until it is released.
struct Hanging {
    asked: Sender<()>,
    released: Mutex<Receiver<()>>,
}

impl AttachedWorker for Hanging {
    fn stop(&self) {
        self.asked.send(()).unwrap();
    }

    fn stopped(&self, _: std::time::Instant) -> Result<(), StopError> {
        let released = self.released.lock().unwrap().recv_timeout(Duration::from_secs(10));
        released.map_err(|_| StopError::Deadline)
    }

    fn commit(&self) {}

    fn go(&self, _: Arc<Table>) {}
}

/// A world with the devices `a`, whose worker hangs, and `b`; the receiver of the hang, and the
/// sender that ends it.
fn hanging() -> (World, Receiver<()>, Sender<()>) {
    let world = World::new();
    for name in ["a", "b"] {
        world.file(name, LEN);
        world.device(name, &[&format!("0 {LEN} linear {{}}/{name} 0")]).unwrap();
    }
    let (asked, is_asked) = channel();
    let (release, released) = channel();
    let worker: Arc<dyn AttachedWorker> =
        Arc::new(Hanging { asked, released: Mutex::new(released) });
    let user = User { writable: true, workers: vec![worker] };
    world.devices.attach("a", "export", user).unwrap();
    (world, is_asked, release)
}

/// No suspend waits behind another.
#[test]
fn a_suspend_does_not_wait_for_another_device_s() {
    let (world, is_asked, release) = hanging();
    let how = Suspend::default();
    std::thread::scope(|scope| {
        let slow = scope.spawn(|| world.devices.suspend("a", how));
        is_asked.recv().unwrap();
        // All of this while the first one hangs.
        world.devices.suspend("b", how).unwrap();
        let status = world.devices.query(None, TableKind::Active).unwrap();
        assert_eq!(status.iter().map(|one| one.suspended).collect::<Vec<_>>(), [false, true]);
        assert!(!slow.is_finished());
        release.send(()).unwrap();
        slow.join().unwrap().unwrap();
    });
    let status = world.devices.query(Some("a"), TableKind::Active).unwrap();
    assert!(status[0].suspended);
}

/// Nor do operations that guests wait for, and queries before a suspend of another device.
#[test]
fn what_changes_no_table_does_not_wait_for_a_suspend() {
    let (world, is_asked, release) = hanging();
    let devices = &world.devices;
    std::thread::scope(|scope| {
        let slow = scope.spawn(|| devices.suspend("a", Suspend::default()));
        is_asked.recv().unwrap();
        // All of this while that one hangs.
        assert_eq!(devices.serving_over("b").unwrap(), ["b"]);
        devices.set_write_through("b", "export", true).unwrap();
        assert!(devices.is_write_through("b", "export"));
        assert_eq!(devices.tend_full(Instant::now()), None);
        devices.record_invalid("no such store");
        assert!(!slow.is_finished());
        // A device that would be told to freeze must have its disk for that.
        let its_own = scope.spawn(|| devices.serving_over("a"));
        assert!(!its_own.is_finished());
        release.send(()).unwrap();
        slow.join().unwrap().unwrap();
        assert_eq!(its_own.join().unwrap().unwrap(), [""; 0], "it is suspended by now");
    });
}

/// Nor for a verb that holds all devices while it waits for a disk.
#[test]
fn what_guests_wait_for_does_not_wait_for_a_verb() {
    let (world, is_asked, release) = hanging();
    let devices = &world.devices;
    let line = format!("0 {LEN} linear {}/a 0", world.path("").display());
    devices.load("a", parse_table([&*line]).unwrap(), false).unwrap();
    std::thread::scope(|scope| {
        let slow = scope.spawn(|| devices.resume("a"));
        is_asked.recv().unwrap();
        // All of this while that one hangs.
        devices.set_write_through("b", "export", true).unwrap();
        assert!(devices.is_write_through("b", "export"));
        assert_eq!(devices.tend_full(Instant::now()), None);
        assert_eq!(devices.waiting_for(&world.path("b")), [""; 0]);
        devices.record_invalid("no such store");
        assert!(!slow.is_finished());
        // Once to hold the requests, and once to swap the tables.
        release.send(()).unwrap();
        is_asked.recv().unwrap();
        release.send(()).unwrap();
        slow.join().unwrap().unwrap();
    });
    let state = std::fs::read_to_string(world.path("state")).unwrap();
    assert!(state.contains("export"), "{state}");
}

/// A verb for the same device finds it at rest, or serving again, never between.
#[test]
fn a_resume_waits_for_the_suspend_of_its_device_and_a_failed_one_serves_on() {
    let (world, is_asked, release) = hanging();
    std::thread::scope(|scope| {
        let suspend = scope.spawn(|| world.devices.suspend("a", Suspend::default()));
        is_asked.recv().unwrap();
        let second = scope.spawn(|| world.devices.suspend("a", Suspend::default()));
        let resume = scope.spawn(|| world.devices.resume("a"));
        assert!(!second.is_finished() && !resume.is_finished());
        drop(release);
        assert!(matches!(suspend.join().unwrap(), Err(DeviceError::Busy(_))));
        // A disk that hung once does so again.
        assert!(second.join().unwrap().is_err());
        resume.join().unwrap().unwrap();
    });
    let status = world.devices.query(Some("a"), TableKind::Active).unwrap();
    assert!(!status[0].suspended);
}

/// Records how often the command had yielded when it stopped the worker, and when it released it.
struct Noting(Arc<Mutex<Vec<usize>>>);

impl AttachedWorker for Noting {
    fn stop(&self) {
        self.0.lock().unwrap().push(TIMES.get());
    }

    fn stopped(&self, _: std::time::Instant) -> Result<(), StopError> {
        Ok(())
    }

    fn commit(&self) {}

    fn go(&self, _: Arc<Table>) {
        self.0.lock().unwrap().push(TIMES.get());
    }
}

/// A live snapshot yields to the guest's worker between its steps, before and after the swap, and
/// never while the guest is stopped.
#[test]
fn a_moment_gives_way_between_its_steps_but_not_in_its_middle() {
    let world = World::new();
    world.file("disk", LEN);
    world.device("disk", &[&format!("0 {LEN} linear {{}}/disk 0")]).unwrap();
    let begin = TIMES.get();
    world.overlay("disk", "first.cow");
    assert_eq!(TIMES.get(), begin, "nobody serves");
    let seen = Arc::new(Mutex::new(Vec::new()));
    let worker: Arc<dyn AttachedWorker> = Arc::new(Noting(seen.clone()));
    let user = User { writable: true, workers: vec![worker] };
    world.devices.attach("disk", "export", user).unwrap();
    seen.lock().unwrap().clear();
    world.overlay("disk", "second.cow");
    let seen = seen.lock().unwrap();
    let [stopped, went] = seen[..] else { panic!("one pause: {seen:?}") };
    assert!(stopped >= begin + 6, "{stopped} times before the swap");
    assert_eq!(stopped, went, "not while the worker stands still");
    assert!(TIMES.get() >= went + 2, "after the swap");
}

/// A device with `owed` first writes of its guest, none of them flushed.
fn owing(owed: u64) -> (World, Arc<Store>) {
    let world = World::new();
    world.file("disk", LEN);
    world.file("store", 2 * owed * 8);
    world.device("a", &[&format!("0 {LEN} snapshot {{}}/disk {{}}/store PO 8")]).unwrap();
    let store = world.table("a").exceptions()[0].layers[0].clone();
    let Allocation::Run { first, count } = store.log().allocate(owed) else { panic!("full") };
    assert_eq!(count, owed);
    (first.0..first.0 + count).for_each(|at| _ = store.log().finish(DataIndex(at), None));
    world.flusher.flushes.store(0, Ordering::SeqCst);
    (world, store)
}

/// The guest would have to be stopped for that long.
#[test]
fn much_is_flushed_ahead_of_a_verb_and_little_is_not() {
    for (owed, flushes) in [(RING / 2, 0), (RING / 2 + 1, 1)] {
        let (world, store) = owing(owed);
        world.devices.flush_ahead(["a", "unknown"]);
        assert_eq!(world.flusher.flushes.load(Ordering::SeqCst), flushes, "{owed} are owed");
        assert_eq!(store.log().owed_count(), if flushes == 0 { owed } else { 0 });
    }
    let (world, _store) = owing(RING);
    world.devices.suspend("a", Suspend { noflush: true }).unwrap();
    world.devices.flush_ahead(["a"]);
    assert_eq!(world.flusher.flushes.load(Ordering::SeqCst), 0, "nobody goes on meanwhile");
}

/// The first one did not flush.
#[test]
fn a_second_suspend_flushes_what_the_first_left_owed() {
    let (world, store) = owing(3);
    let suspend = |noflush| world.devices.suspend("a", Suspend { noflush });
    suspend(true).unwrap();
    suspend(true).unwrap();
    assert_eq!(store.log().owed_count(), 3);
    world.flusher.fails.store(true, Ordering::SeqCst);
    assert!(matches!(suspend(false), Err(DeviceError::FlushFailed(_))));
    let device = || world.devices.query(Some("a"), TableKind::Active).unwrap().remove(0);
    assert!(device().suspended, "it was before");
    world.flusher.fails.store(false, Ordering::SeqCst);
    suspend(false).unwrap();
    assert_eq!(store.log().owed_count(), 0);
    assert!(device().suspended);
}

/// A wait for a disk that hangs is given up, and the verb can report that.
#[test]
fn a_flush_ahead_ends_at_the_deadline_whatever_the_disk_does() {
    let (mut world, store) = owing(RING);
    world.config().deadline = Duration::from_millis(20);
    let (release, released) = channel();
    *world.flusher.hangs.lock().unwrap() = Some(released);
    world.devices.flush_ahead(["a"]);
    assert_eq!(store.log().owed_count(), RING);
    // The continuing flush holds no lock.
    world.devices.query(None, TableKind::Active).unwrap();
    release.send(()).expect("it waited for the disk");
}
