//! Chunks that no guest flushes.

use std::sync::mpsc::Sender;
use std::time::Instant;

use super::*;
use crate::attached::{AttachedWorker, StopError};
use crate::device::{Suspend, User};

/// A worker that reports when it is told to commit.
struct Asked(Mutex<Sender<&'static str>>, &'static str);

impl AttachedWorker for Asked {
    fn stop(&self) {}

    fn stopped(&self, _: std::time::Instant) -> Result<(), StopError> {
        Ok(())
    }

    fn commit(&self) {
        self.0.lock().unwrap().send(self.1).unwrap();
    }

    fn go(&self, _: Arc<Table>) {}
}

/// A world with the overlay `disk`, and the receiver of its workers' reports.
fn overlay() -> (World, Receiver<&'static str>) {
    let world = World::new();
    world.file("disk", LEN);
    world.file("store", LEN);
    world.device("disk", &[&format!("0 {LEN} snapshot {{}}/disk {{}}/store PO 8")]).unwrap();
    let (asked, is_asked) = channel();
    let worker =
        |name| -> Arc<dyn AttachedWorker> { Arc::new(Asked(Mutex::new(asked.clone()), name)) };
    for (user, writable, workers) in
        [("a job", false, vec!["its own"]), ("export", true, vec!["queue 0", "queue 1"])]
    {
        let workers = workers.into_iter().map(worker).collect();
        world.devices.attach("disk", user, User { writable, workers }).unwrap();
    }
    (world, is_asked)
}

#[test]
fn one_worker_commits_what_is_owed() {
    let (world, is_asked) = overlay();
    // The worker that is told to commit, and whether another check is due.
    let looks = || {
        world.devices.commit_owed();
        (is_asked.try_iter().collect::<Vec<_>>(), world.devices.overdue.has_begun())
    };
    assert_eq!(looks(), (vec![], false), "nothing is owed");
    world.carry_out("disk", Op::Write, 16);
    assert_eq!(looks(), (vec!["queue 0"], true));
    assert_eq!(looks(), (vec!["queue 0"], true), "it has not done so");
    world.carry_out("disk", Op::Flush, 0);
    assert_eq!(looks(), (vec![], false), "somebody flushed");
    world.carry_out("disk", Op::Write, 32);
    world.devices.suspend("disk", Suspend { noflush: true }).unwrap();
    assert_eq!(looks(), (vec![], true), "nobody serves");
    let _ = world.table("disk").exceptions()[0].store().commit_failed();
    assert_eq!(looks(), (vec![], false), "it will not be committed any more");
}

/// The committing thread sleeps until something is owed, each time, and ends with the devices.
#[test]
fn whatever_is_owed_is_committed_some_time_later() {
    let (world, is_asked) = overlay();
    let overdue = world.devices.overdue.clone();
    world.devices.commit_after(Duration::from_millis(5)).unwrap();
    for chunks in 1..4 {
        world.carry_out("disk", Op::Write, chunks * 8);
        assert_eq!(is_asked.recv_timeout(Duration::from_secs(10)), Ok("queue 0"));
        world.carry_out("disk", Op::Flush, 0);
        until(|| !overdue.has_begun());
        is_asked.try_iter().for_each(drop);
    }
    drop(world);
    until(|| Arc::strong_count(&overdue) == 1);
}

fn until(mut over: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !over() {
        assert!(Instant::now() < deadline, "that never ends");
        std::thread::yield_now();
    }
}
