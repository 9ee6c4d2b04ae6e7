//! The users of a device, since when they count, and the refusals meanwhile.

use super::*;
use crate::cow::Persistence;
use crate::device::moment::{CreateSnapshot, OverlaySnapshot};
use crate::device::{RollbackJob, TableKind, User};

/// The plain disk `disk` with its snapshot `snap`, and optionally another writable path to the
/// file.
pub(super) fn world() -> World {
    let world = World::new();
    world.file("disk", LEN);
    world.device("disk", &[&format!("0 {LEN} linear {{}}/disk 0")]).unwrap();
    let snap = CreateSnapshot {
        device: "disk".into(),
        name: "snap".into(),
        cow: world.path("store"),
        chunk: None,
        size: None,
        persistence: Persistence::Persistent,
        existing: false,
    };
    world.devices.take_moment(&[MomentAction::Create(snap)], &|| Ok(())).unwrap();
    world
}

fn refused<T: std::fmt::Debug>(result: Result<T, DeviceError>) -> String {
    result.unwrap_err().to_string()
}

/// Between the check that a device may be exported and the export's first thread, another client's
/// command may come, for as long as the threads take to start.
#[test]
fn a_device_is_in_use_from_when_it_was_found_fit_for_that() {
    let world = world();
    world.devices.prepare("snap", "export", false).unwrap();
    let open = || world.devices.query(Some("snap"), TableKind::Active).unwrap()[0].open_count;
    assert_eq!(open(), 1);
    let job =
        RollbackJob { device: "disk".into(), snapshot: "snap".into(), ..RollbackJob::default() };
    for said in [
        refused(world.devices.delete_snapshot("disk", "snap", true)),
        refused(world.devices.remove("snap", true)),
        refused(world.devices.begin_rollback("job", &job)),
    ] {
        assert!(said.contains("the export 'export'"), "{said}");
    }
    assert!(world.path("store").exists());
    // Its threads arrive: it is still one user.
    let user = User { writable: false, workers: Vec::new() };
    world.devices.attach("snap", "export", user).unwrap();
    assert_eq!(open(), 1);
    // Or they cannot be started.
    world.devices.detach("snap", "export");
    assert_eq!(open(), 0);
    world.devices.delete_snapshot("disk", "snap", true).unwrap();
}

/// Of two writers of the same data, the second is refused before the first has a thread.
#[test]
fn who_is_about_to_write_counts_as_a_writer() {
    let world = World::new();
    world.file("disk", LEN);
    for name in ["a", "b"] {
        world.device(name, &[&format!("0 {LEN} linear {{}}/disk 0")]).unwrap();
    }
    world.devices.prepare("a", "export", true).unwrap();
    let origin = format!("0 {LEN} snapshot-origin {{}}/disk");
    let said = refused(world.load("b", &[&origin]));
    assert!(said.contains("'a'"), "{said}");
    world.devices.clear("b").unwrap();
    world.devices.detach("a", "export");
    world.load("b", &[&origin]).unwrap();
}

/// Neither its guest nor the next start must find another disk.
#[test]
fn what_is_used_is_not_removed_by_force_and_stays_as_it_is() {
    let world = world();
    let user = || User { writable: true, workers: Vec::new() };
    world.devices.attach("disk", "guest", user()).unwrap();
    world.devices.attach("disk", "job merge", user()).unwrap();
    let before = std::fs::read(world.path("state")).unwrap();
    for force in [false, true] {
        let said = refused(world.devices.remove("disk", force));
        for part in ["the export 'guest'", "the job 'merge'", "the device 'snap'", "first"] {
            assert!(said.contains(part), "{said}");
        }
    }
    assert_eq!(std::fs::read(world.path("state")).unwrap(), before);
    assert!(matches!(world.table("disk").lines()[0].target, Target::Origin(_)));
}

/// `force` removes an unused device that cannot be flushed: a failed disk.
#[test]
fn what_cannot_be_flushed_is_removed_by_force_alone() {
    let world = world();
    world.flusher.fails.store(true, Ordering::SeqCst);
    let said = refused(world.devices.remove("snap", false));
    assert!(said.contains("durable"), "{said}");
    world.devices.remove("snap", true).unwrap();
    let gone = world.devices.query(Some("snap"), TableKind::Active);
    assert!(matches!(gone, Err(DeviceError::NotFound(_))));
}

#[test]
fn a_uuid_names_one_device() {
    let world = World::new();
    world.devices.create("a", Some("1-2")).unwrap();
    let said = refused(world.devices.create("b", Some("1-2")));
    assert!(said.contains("'a'") && said.contains("'1-2'"), "{said}");
    world.devices.create("b", Some("3")).unwrap();
    world.devices.create("c", None).unwrap();
    world.devices.create("d", None).unwrap();
    world.devices.remove("a", false).unwrap();
    world.devices.create("e", Some("1-2")).unwrap();
    // An empty one is none.
    world.devices.create("f", Some("")).unwrap();
    world.devices.create("g", Some("")).unwrap();
    for bad in ["a\nb", &"x".repeat(129)] {
        assert!(refused(world.devices.create("h", Some(bad))).contains("UUID"));
    }
}

/// The base of a store with P may be written by others, as with dmsetup; nothing writes below a
/// guest's own disk, which a store with PO is. This also applies to a later table.
#[test]
fn who_writes_below_a_store_keeps_that_from_becoming_a_guest_s_own_disk() {
    let world = World::new();
    world.file("disk", LEN);
    world.file("store", LEN);
    let over = |kept: &str| format!("0 {LEN} snapshot {{}}/disk {{}}/store {kept} 8");
    let store = || world.table("over").exceptions()[0].store().clone();
    world.device("over", &[&over("P")]).unwrap();
    world.device("below", &[&format!("0 {LEN} linear {{}}/disk 0")]).unwrap();
    world.devices.prepare("below", "export", true).unwrap();
    let said = refused(world.load("over", &[&over("PO")]));
    for part in ["'below' would be a second way", "'over'", "below its overlay"] {
        assert!(said.contains(part), "{said}");
    }
    world.devices.clear("over").unwrap();
    world.devices.resume("over").unwrap();
    assert_eq!((store().persistence(), store().is_guest_disk()), (Persistence::Persistent, false));

    world.devices.detach("below", "export");
    world.load("over", &[&over("PO")]).unwrap();
    assert_eq!(
        (store().persistence(), store().is_guest_disk()),
        (Persistence::PersistentOverflow, true)
    );
    let said = refused(world.devices.prepare("below", "export", true));
    assert!(said.contains("below its overlay"), "{said}");
    world.devices.prepare("below", "export", false).unwrap();
    world.devices.detach("below", "export");

    world.load("over", &[&over("P")]).unwrap();
    assert_eq!((store().persistence(), store().is_guest_disk()), (Persistence::Persistent, false));
    world.devices.prepare("below", "export", true).unwrap();
}

/// A file of zeroes can become a store, but not where it is somebody's disk.
#[test]
fn a_disk_never_becomes_a_store() {
    let world = World::new();
    for name in ["base", "store", "other", "free"] {
        world.file(name, LEN);
    }
    world.device("disk", &[&format!("0 {LEN} snapshot {{}}/base {{}}/store PO 8")]).unwrap();
    world.device("other", &[&format!("0 {LEN} linear {{}}/other 0")]).unwrap();
    world.overlay("disk", "top");
    let overlay = |file: &str| {
        let (device, cow) = ("disk".into(), world.path(file));
        let action = OverlaySnapshot { device, cow, below: None, existing: true };
        world.devices.take_moment(&[MomentAction::Overlay(action)], &|| Ok(()))
    };
    let snapshot = |file: &str| {
        let action = CreateSnapshot {
            device: "other".into(),
            name: "snap".into(),
            cow: world.path(file),
            chunk: None,
            size: None,
            persistence: Persistence::Persistent,
            existing: true,
        };
        world.devices.take_moment(&[MomentAction::Create(action)], &|| Ok(()))
    };
    let line = |file: &str| {
        let line = format!("0 {LEN} snapshot {{}}/free {{}}/{file} P 8");
        let name = format!("new-{file}");
        let result = world.device(&name, &[&line]);
        world.devices.clear(&name).unwrap();
        result
    };
    for (said, file) in [
        (refused(overlay("base")), "base"),
        (refused(overlay("other")), "other"),
        (refused(snapshot("base")), "base"),
        (refused(snapshot("other")), "other"),
        (refused(line("base")), "base"),
        (refused(line("other")), "other"),
    ] {
        assert!(said.contains("of its own"), "{said}");
        let bytes = std::fs::read(world.path(file)).unwrap();
        assert!(bytes.iter().all(|&byte| byte == 0), "{file} was written to");
    }
    overlay("free").unwrap();
    for lines in [
        ["0 8 linear {}/other 0", "8 8 snapshot {}/base {}/other P 8"],
        ["0 8 snapshot {}/base {}/other P 8", "8 8 snapshot {}/other {}/free P 8"],
    ] {
        let said = refused(world.load("other", &lines));
        assert!(said.contains("is also the disk of the line"), "{said}");
    }
}

/// Of its jobs, only one that nobody but the device has to do with is stopped for a removal, and only
/// if that is all that is in its way.
#[test]
fn the_job_that_a_removal_stops_is_that_of_a_loaded_table() {
    let world = world();
    let attach = |device: &str, user: &str| {
        let user_of_it = User { writable: false, workers: Vec::new() };
        world.devices.attach(device, user, user_of_it).unwrap();
    };
    let stops = |device: &str| world.devices.job_of_removed(device);
    assert_eq!(stops("snap").unwrap(), None);
    attach("snap", "job own");
    assert_eq!(stops("snap").unwrap().as_deref(), Some("own"));
    attach("snap", "export");
    let said = refused(stops("snap"));
    assert!(said.contains("the export 'export'") && !said.contains("'own'"), "{said}");
    world.devices.detach("snap", "export");
    world.devices.detach("snap", "job own");
    world.devices.wait_for_detach("snap", "job own").unwrap();
    // A command's goes on after a restart, and is for its user to end.
    let job =
        RollbackJob { device: "disk".into(), snapshot: "snap".into(), ..RollbackJob::default() };
    world.devices.begin_rollback("rollback", &job).unwrap();
    attach("disk", "job rollback");
    let said = refused(stops("disk"));
    assert!(said.contains("the job 'rollback'"), "{said}");
}

/// Its guest would overwrite what another's consists of.
#[test]
fn a_store_in_use_is_nobody_s_writable_disk() {
    let world = world();
    world.device("raw", &["0 8 linear {}/store 0"]).unwrap();
    let said = refused(world.devices.prepare("raw", "export", true));
    assert!(said.contains("'raw' would write into a store of 'snap'"), "{said}");
    world.devices.prepare("raw", "export", false).unwrap();
    world.devices.detach("raw", "export");
    // Nor does a merge write there, with or without a guest.
    world.file("from", LEN);
    let merge = "0 8 snapshot-merge {}/store {}/from P 8";
    let said = refused(world.device("merge", &[merge]));
    assert!(said.contains("'merge' would write into a store of 'snap'"), "{said}");
    // Nor do discards that a snapshot passes down.
    world.file("above", LEN);
    let passes = "0 8 snapshot {}/store {}/above P 8 2 discard_zeroes_cow discard_passdown_origin";
    world.device("passes", &[passes]).unwrap();
    world.device("over", &["0 8 linear passes 0"]).unwrap();
    for name in ["over", "passes"] {
        let said = refused(world.devices.prepare(name, "export", true));
        assert!(said.contains(&format!("'{name}' would write into a store of 'snap'")), "{said}");
        world.devices.remove(name, false).unwrap();
    }
    // What was accepted comes back, in whatever order.
    let World { dir, devices, .. } = world;
    drop(devices);
    let world = World::at(dir);
    world.devices.start(&[], |_| Ok(())).unwrap();
    let said = refused(world.devices.prepare("raw", "export", true));
    assert!(said.contains("'raw' would write into a store of 'snap'"), "{said}");
    world.devices.delete_snapshot("disk", "snap", false).unwrap();
    world.devices.prepare("raw", "export", true).unwrap();
}

/// A file's name without a '/' is taken for a device's: whoever meant the file is told.
#[test]
fn a_line_that_names_no_device_may_mean_a_file() {
    let world = World::new();
    world.file("disk.img", LEN);
    let said = refused(world.device("d", &[&format!("0 {LEN} linear disk.img 0")]));
    assert_eq!(
        said,
        "there is no device 'disk.img'; if that is a file, name it with a '/', as in './disk.img'"
    );
}

/// What is in flight behind that could not be told from what is elsewhere.
#[test]
fn a_device_has_8_pib_at_most() {
    let world = World::new();
    world.device("zero", &["0 8 zero"]).unwrap();
    let said = world.devices.resize("zero", (8 << 50) + 512).unwrap_err().to_string();
    assert!(said.contains("8 PiB"), "{said}");
    world.devices.resize("zero", 8 << 50).unwrap();
}
