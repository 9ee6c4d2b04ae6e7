//! Disks that do not answer: no verb waits for them without end, nor does the end of the process.

use super::*;
use crate::device::{Suspend, TableKind};
use crate::io::{FileInfo, Lock, OpenMode};

/// A world with these disks; the next flush hangs until the sender is used, and is given up at once
/// unless `patient`.
fn hanging(disks: &[&str], patient: bool) -> (World, Sender<()>) {
    let mut world = World::new();
    for name in disks {
        world.file(name, LEN);
        world.device(name, &[&format!("0 {LEN} linear {{}}/{name} 0")]).unwrap();
    }
    if !patient {
        world.config().deadline = Duration::from_millis(20);
    }
    let (release, released) = channel();
    *world.flusher.hangs.lock().unwrap() = Some(released);
    (world, release)
}

fn is_suspended(world: &World, name: &str) -> bool {
    world.devices.query(Some(name), TableKind::Active).unwrap()[0].suspended
}

fn refused_late(done: Result<(), DeviceError>) {
    assert!(
        matches!(&done, Err(DeviceError::FlushLate { device, .. }) if device == "a"),
        "{done:?}"
    );
}

#[test]
fn a_suspend_is_given_up_and_its_device_serves_on() {
    let (mut world, release) = hanging(&["a", "b"], false);
    refused_late(world.devices.suspend("a", Suspend::default()));
    assert!(!is_suspended(&world, "a"));
    // Nobody is held up by it: this one waits as long as it takes.
    world.config().deadline = Duration::from_secs(60);
    world.devices.suspend("b", Suspend::default()).unwrap();
    world.devices.remove("b", false).unwrap();
    release.send(()).expect("it is still at work");
    world.devices.suspend("a", Suspend::default()).unwrap();
    assert!(is_suspended(&world, "a"));
}

/// It would go on in a store that somebody else may have opened by then.
#[test]
fn what_is_still_flushed_is_not_removed_by_force_either() {
    let (mut world, release) = hanging(&["a", "b"], false);
    refused_late(world.devices.remove("a", true));
    refused_late(world.devices.remove("a", true));
    assert_eq!(world.flusher.flushes.load(Ordering::SeqCst), 1, "one is at work at a time");
    world.config().deadline = Duration::from_secs(60);
    release.send(()).expect("it is still at work");
    world.devices.remove("a", true).unwrap();
}

#[test]
fn a_resume_is_given_up_and_the_table_stays_loaded() {
    let (mut world, release) = hanging(&["a", "b"], false);
    let line = format!("0 {LEN} linear {}/b 0", world.path("").display());
    world.devices.load("a", parse_table([&*line]).unwrap(), false).unwrap();
    refused_late(world.devices.resume("a").map(drop));
    let status = &world.devices.query(Some("a"), TableKind::Active).unwrap()[0];
    assert!(!status.suspended && status.has_inactive_table);
    drop(release);
    world.config().deadline = Duration::from_secs(60);
    world.devices.clear("a").unwrap();
    world.devices.suspend("a", Suspend::default()).unwrap();
}

/// Whichever hangs, the other one is made durable meanwhile.
#[test]
fn one_disk_that_hangs_keeps_no_other_from_being_durable_at_the_end() {
    let (world, release) = hanging(&["a", "b"], true);
    let (ended, end) = channel();
    *world.flusher.ended.lock().unwrap() = Some(ended);
    std::thread::scope(|scope| {
        let close = scope.spawn(|| world.devices.close(&[]));
        end.recv().unwrap();
        assert!(!close.is_finished());
        release.send(()).expect("the other one hangs");
        assert!(close.join().unwrap());
    });
}

/// Its file stays locked: another process must not take over what is still written.
#[test]
fn an_end_gives_up_what_hangs_and_keeps_its_file() {
    let (world, release) = hanging(&["a"], false);
    assert!(!world.devices.close(&[]));
    let info = FileInfo::open(&world.path("a"), OpenMode::ReadWrite, false).unwrap();
    assert!(Lock::exclusive(&info, None).is_err());
    release.send(()).expect("it is still at work");
}
