//! Present and former layers of a chain: who may write to them, and what makes that durable.

use super::*;
use crate::device::guards::on_top;

fn chain() -> World {
    let world = World::new();
    world.file("disk", LEN);
    world.device("disk", &[&format!("0 {LEN} linear {{}}/disk 0")]).unwrap();
    world.overlay("disk", "lower");
    world.overlay("disk", "upper");
    world
}

/// The device of the lower overlay.
const LOWER: &str = "disk.2";

fn lower_line() -> String {
    format!("0 {LEN} snapshot {{}}/disk {{}}/lower PO 8")
}

/// A live snapshot that is undone: the former lower layer serves again.
#[test]
fn what_was_a_layer_is_flushed_when_it_is_written_again() {
    let world = chain();
    world.devices.remove("disk", false).unwrap();
    world.load(LOWER, &[&lower_line()]).unwrap();
    let store = world.table(LOWER).exceptions()[0].store().clone();
    world.carry_out(LOWER, Op::Write, 8);
    let owed = || store.log().next().0 - store.log().committed().0;
    assert_ne!(owed(), 0);
    assert!(world.synced(LOWER).contains(&store.file()));
    assert_eq!(owed(), 0);
    world.carry_out(LOWER, Op::Write, 8);
    assert!(world.synced(LOWER).contains(&store.file()), "what is written in place, too");
}

/// The same for one that is only read, and becomes a snapshot of a written origin.
#[test]
fn what_was_a_layer_takes_copies_and_has_them_committed() {
    for serves in [false, true] {
        let world = chain();
        if serves {
            world.devices.prepare(LOWER, "export", false).unwrap();
        }
        world.devices.remove("disk", false).unwrap();
        let store = world.table(LOWER).exceptions()[0].layers[0].clone();
        world.device("origin", &[&format!("0 {LEN} snapshot-origin {{}}/disk")]).unwrap();
        let synced = world.carry_out("origin", Op::Write, 8);
        assert!(synced.contains(&store.file()), "{serves}");
        assert!(matches!(
            world.table(LOWER).exceptions()[0].table.get(Chunk(0)),
            ChunkState::Mapped(_)
        ));
        assert_ne!(store.log().committed(), DataIndex(0));
    }
}

/// A word of the exception table has 12 bits for the layer.
#[test]
fn a_chain_has_no_more_layers_than_a_table_can_name() {
    let world = chain();
    let live = world.devices.lock().active("disk").unwrap().snaps[&0].live.clone();
    assert_eq!(on_top(&vec![live.clone(); 4094], &live).unwrap().len(), 4095);
    let said = on_top(&vec![live.clone(); 4095], &live).unwrap_err().to_string();
    assert!(said.contains("at most 4095 layers"), "{said}");
}

#[test]
fn what_is_a_layer_is_no_guest_s_to_write() {
    let world = chain();
    world.devices.prepare(LOWER, "export", false).unwrap();
    world.load(LOWER, &[&lower_line()]).unwrap();
    assert!(world.table(LOWER).read_only());
    world.devices.prepare("disk", "export", true).unwrap();
}

/// Loaded anew, as after a failed commit, without an argument to keep it read-only.
#[test]
fn a_chain_whose_layer_was_loaded_again_is_served_by_the_next_start() {
    let world = chain();
    world.load(LOWER, &[&lower_line()]).unwrap();
    let World { dir, devices, .. } = world;
    drop(devices);
    let again = World::at(dir);
    again.devices.start(&[], |_| Ok(())).unwrap();
    assert_eq!(again.table("disk").exceptions()[0].layers.len(), 2);
    // What is no layer any more can be written.
    again.devices.remove("disk", false).unwrap();
    again.load(LOWER, &[&lower_line()]).unwrap();
    assert!(!again.table(LOWER).read_only());
}

/// What a chain shows is what the next start shows.
#[test]
fn the_layers_below_a_store_do_not_change() {
    let world = chain();
    world.file("other", LEN);
    let refused = |name: &str, line: &str| {
        let said = world.load(name, &[line]).unwrap_err().to_string();
        assert!(said.contains("upper of 'disk' keeps changes to other layers"), "{said}");
        world.devices.clear(name).unwrap();
        world.devices.resume(name).unwrap();
    };
    refused(LOWER, &format!("0 {LEN} linear {{}}/disk 0"));
    refused(LOWER, &format!("0 {LEN} snapshot {{}}/disk {{}}/other PO 8"));
    refused("disk", &format!("0 {LEN} snapshot {{}}/disk {{}}/upper PO 8"));
    // Nor does one that lies on a disk.
    let refused = world.devices.take_moment(
        &[MomentAction::Overlay(OverlaySnapshot {
            device: "disk.1".into(),
            cow: world.path("between"),
            below: None,
            existing: false,
        })],
        &|| Ok(()),
    );
    let said = refused.unwrap_err().to_string();
    assert!(said.contains("lower of 'disk.2' keeps changes to other layers"), "{said}");
}

#[test]
fn a_layer_s_new_base_is_that_of_the_layers_above() {
    let world = chain();
    world.file("base", LEN);
    world.load(LOWER, &[&format!("0 {LEN} snapshot {{}}/base {{}}/lower PO 8")]).unwrap();
    for name in [LOWER, "disk"] {
        let Decision::Pass { file, .. } = world.table(name).decide(Op::Read, 0, 4096) else {
            panic!("nothing was written")
        };
        let path = world.devices.files().get(file).unwrap().path.clone();
        assert!(path.ends_with("base"), "{name}: {path:?}");
    }
}

/// I8, and the advice of a commit that is refused.
#[test]
fn a_layer_that_is_opened_again_is_so_for_the_layers_above() {
    let world = World::new();
    world.file("disk", LEN);
    world.device("disk", &[&format!("0 {LEN} linear {{}}/disk 0")]).unwrap();
    for (store, sectors) in [("lower", 24), ("upper", 16), ("uppermost", 8)] {
        world.overlay("disk", store);
        world.carry_out("disk", Op::Write, sectors);
    }
    let layers = || world.table("disk").exceptions()[0].layers.clone();
    let before = layers();
    let _ = before[0].commit_failed();
    assert_ne!(before[2].log().owed_count(), 0);
    world.load(LOWER, &[&lower_line()]).unwrap();
    let opened = world.table(LOWER).exceptions()[0].store().clone();
    assert!(!Arc::ptr_eq(&opened, &before[0]) && Arc::ptr_eq(&opened, &layers()[0]));
    assert!(layers().iter().all(|store| store.state() == StoreState::Valid));
    assert_eq!(
        before[2].log().owed_count(),
        0,
        "it was committed first, as if it was its own table's"
    );
    assert!(!world.path("uppermost.owed.before").exists());
    let table = world.table("disk").exceptions()[0].table.clone();
    let layer_of = |chunk| match table.get(Chunk(chunk)) {
        ChunkState::Mapped(place) => place.layer.0,
        other => panic!("{other:?}"),
    };
    assert_eq!([0, 1, 2].map(layer_of), [3, 2, 1]);
    let own = ["disk.2", "disk.3"].map(|name| world.table(name).exceptions()[0].table.chunks());
    assert_eq!(own, [0, 0], "nobody reads them");
    world.devices.prepare(LOWER, "export", false).unwrap();
    let table = world.table(LOWER).exceptions()[0].table.clone();
    assert!(matches!(table.get(Chunk(2)), ChunkState::Mapped(_)));
}

/// No device needs the rest of a given-up commit in its base, so a guest's flush does not fail with
/// it.
#[test]
fn a_commit_that_is_given_up_leaves_its_base_to_itself() {
    let world = chain();
    world.overlay("disk", "uppermost");
    let store = world.table("disk").exceptions()[0].layers[0].clone();
    assert!(store.is_sealed());
    let named = |name: &str| Some(String::from(name));
    let (top, base) = (named("disk.3"), named(LOWER));
    let job = CommitJob { device: "disk".into(), top, base, ..CommitJob::default() };
    world.devices.begin_commit("c", &job).unwrap();
    assert!(!store.is_sealed(), "until it is over a flush covers what it writes");
    world.devices.forget_commit("c").unwrap();
    assert!(store.is_sealed());
}

/// The layers `low`, `mid`, `high` and `top`, and `beside` over the layer `below`.
fn forked(below: &str) -> World {
    let mut world = World::new();
    world.config().force = true;
    world.file("disk", LEN);
    let disk = world.path("disk").display().to_string();
    for (name, below) in [("low", disk.as_str()), ("mid", "low"), ("high", "mid"), ("top", "high")]
    {
        over(&world, name, below).unwrap();
    }
    over(&world, "beside", below).unwrap();
    world
}

/// A device in the store `name` over `below`.
fn over(world: &World, name: &str, below: &str) -> Result<(), DeviceError> {
    world.file(name, LEN);
    let line = format!("0 {LEN} snapshot {below} {} PO 8", world.path(name).display());
    world.devices.create(name, None)?;
    world.devices.load(name, parse_table([line.as_str()]).unwrap(), true)?;
    world.devices.resume(name).map(|_| ())
}

fn commit_of(top: Option<&str>, base: Option<&str>) -> CommitJob {
    let [top, base] = [top, base].map(|name| name.map(String::from));
    CommitJob { device: "top".into(), top, base, ..CommitJob::default() }
}

/// A store keeps the layers that it was made over, so they would not leave once all is copied.
#[test]
fn a_commit_is_refused_where_its_layers_are_below_another_device() {
    for (below, top, base, named) in [
        ("high", Some("mid"), Some("low"), "mid"),
        ("high", Some("mid"), None, "mid"),
        ("mid", Some("mid"), Some("low"), "mid"),
        // Its own store leaves the chain of who lies on it, too.
        ("top", None, Some("high"), "top"),
        ("top", None, None, "top"),
        ("top", Some("mid"), Some("low"), "mid"),
    ] {
        let world = forked(below);
        let job = commit_of(top, base);
        let said = world.devices.begin_commit("c", &job).unwrap_err().to_string();
        let why = format!("'{named}' is in use by the device 'beside'; stop that first");
        assert!(said.contains(&why), "{job:?}: {said}");
        world.devices.remove("beside", false).unwrap();
        world.devices.begin_commit("c", &job).unwrap();
    }
    // Who lies below them is in nobody's way.
    let world = forked("low");
    let job = commit_of(Some("high"), Some("mid"));
    let (source, writer) = world.devices.begin_commit("c", &job).unwrap().copy.unwrap();
    assert!(matches!(world.flusher.copy(source, &writer), CommitEnd::Finished));
    assert!(world.devices.drop_layers("c").unwrap());
}

/// The only overlay, which has nothing to copy.
#[test]
fn a_disk_below_another_device_is_not_merged_into_its_base() {
    let mut world = World::new();
    world.config().force = true;
    world.file("disk", LEN);
    over(&world, "top", &world.path("disk").display().to_string()).unwrap();
    over(&world, "beside", "top").unwrap();
    let said = world.devices.begin_commit("c", &commit_of(None, None)).unwrap_err().to_string();
    assert!(said.contains("'top' is in use by the device 'beside'; stop that first"), "{said}");
}

/// Nor does anyone come to lie on them while they are copied.
#[test]
fn nothing_is_stacked_above_layers_that_leave() {
    for (below, top, base) in [
        ("high", Some("mid"), Some("low")),
        ("high", Some("mid"), None),
        ("top", Some("mid"), Some("low")),
        ("top", None, Some("high")),
    ] {
        let world = forked(below);
        world.devices.remove("beside", false).unwrap();
        let job = commit_of(top, base);
        let copy = world.devices.begin_commit("c", &job).unwrap().copy;
        let said = over(&world, "beside", below).unwrap_err().to_string();
        assert!(said.contains("in use by the job 'c'"), "{job:?}: {said}");
        if let Some((source, writer)) = copy {
            assert!(matches!(world.flusher.copy(source, &writer), CommitEnd::Finished));
            world.devices.drop_layers("c").unwrap();
        }
    }
}

/// A device of an odd length over a longer file (scenarios 10 and 11): the bytes past its end are
/// the file's own.
#[test]
fn scenario_11_a_commit_ends_where_the_device_does() {
    const CHUNK: usize = 16 * 512;
    let mut world = World::new();
    world.config().force = true;
    std::fs::write(world.path("disk"), vec![7; 2048 * 512]).unwrap();
    // The device's last chunk, of which it has eight sectors, is the store's first.
    let mut store = vec![0; 8 * CHUNK];
    for (at, word) in [(0, 0x7041_6e53), (4, 1), (8, 1), (12, 16), (CHUNK, 62), (CHUNK + 8, 2)] {
        store[at..at + 4].copy_from_slice(&u32::to_le_bytes(word));
    }
    store[2 * CHUNK..3 * CHUNK].fill(9);
    std::fs::write(world.path("store"), store).unwrap();
    world.file("top", LEN);
    let dir = world.dir.path().to_str().unwrap();
    for (name, line) in [
        ("low", format!("0 1000 snapshot {dir}/disk {dir}/store PO 16")),
        ("top", format!("0 1000 snapshot low {dir}/top PO 16")),
    ] {
        world.devices.create(name, None).unwrap();
        world.devices.load(name, parse_table([line.as_str()]).unwrap(), name == "low").unwrap();
        world.devices.resume(name).unwrap();
    }
    let top = Some(String::from("low"));
    let job = CommitJob { device: "top".into(), top, ..CommitJob::default() };
    let (source, writer) = world.devices.begin_commit("c", &job).unwrap().copy.unwrap();
    assert!(matches!(world.flusher.copy(source, &writer), CommitEnd::Finished));
    let disk = std::fs::read(world.path("disk")).unwrap();
    let is = |range: std::ops::Range<usize>, byte| disk[range].iter().all(|it| *it == byte);
    assert!(is(0..992 * 512, 7) && is(992 * 512..1000 * 512, 9) && is(1000 * 512..disk.len(), 7));
}
