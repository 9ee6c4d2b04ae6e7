//! Whether an overlay is a guest's own disk.

use super::*;
use crate::cow::Persistence;
use crate::device::moment::CreateSnapshot;

/// Whether the store of `disk` is a guest's own disk, whose requests fail when a snapshot would
/// become Invalid; and whether its reads of the base are tracked, for writers of the base.
fn is_own(world: &World) -> bool {
    let table = world.table("disk");
    let Target::Snapshot(snapshot) = &table.lines()[0].target else { panic!("it is a snapshot") };
    let own = table.exceptions()[0].store().is_guest_disk();
    assert_eq!(own, snapshot.tracked.is_none());
    own
}

fn world() -> World {
    let world = World::new();
    world.file("base", LEN);
    world.file("store", LEN);
    world.device("disk", &[&overlay("PO")]).unwrap();
    world
}

fn overlay(persistence: &str) -> String {
    format!("0 {LEN} snapshot {{}}/base {{}}/store {persistence} 8")
}

#[test]
fn an_overlay_is_a_guest_s_own_disk_while_no_origin_is_below_it() {
    let world = world();
    assert!(is_own(&world));
    // That fails: the state cannot be written.
    world.devices.create("origin", None).unwrap();
    let base = world.path("base");
    let lines = parse_table([&*format!("0 {LEN} snapshot-origin {}", base.display())]).unwrap();
    world.devices.load("origin", lines, false).unwrap();
    std::fs::create_dir(world.path("state.new")).unwrap();
    assert!(world.devices.resume("origin").is_err());
    assert!(is_own(&world));
    std::fs::remove_dir(world.path("state.new")).unwrap();
    world.devices.resume("origin").unwrap();
    assert!(!is_own(&world));
    world.devices.remove("origin", false).unwrap();
    assert!(is_own(&world));
}

#[test]
fn an_overlay_is_what_its_newest_table_says() {
    let world = world();
    world.load("disk", &[&overlay("P")]).unwrap();
    assert!(!is_own(&world));
    world.load("disk", &[&overlay("PO")]).unwrap();
    assert!(is_own(&world));
}

/// Each command says what it is and what helps, and that helps.
#[test]
fn what_cannot_be_a_layer_is_told_what_it_is() {
    let said = |world: &World| {
        let (device, cow) = (String::from("disk"), world.path("new"));
        let over = OverlaySnapshot { device, cow, below: None, existing: false };
        let (device, name, cow) = ("disk".into(), "snap".into(), world.path("new"));
        let (persistence, chunk, size) = (Persistence::PersistentOverflow, None, None);
        let snapshot =
            CreateSnapshot { device, name, cow, chunk, size, persistence, existing: false };
        let job = CommitJob { device: "disk".into(), ..CommitJob::default() };
        let taken =
            |action: MomentAction| world.devices.take_moment(&[action], &|| Ok(())).unwrap_err();
        let all = [taken(MomentAction::Overlay(over)), taken(MomentAction::Create(snapshot))];
        let commit = world.devices.begin_commit("job", &job).unwrap_err();
        (all.map(|error| error.to_string()), commit.to_string())
    };
    let world = world();
    for (persistence, what) in [("P", "with 'PO' in place of 'P'"), ("N", "in memory alone (N)")] {
        let store = format!("{{}}/{persistence}");
        world.file(persistence, LEN);
        let line = format!("0 {LEN} snapshot {{}}/base {store} {persistence} 8");
        world.load("disk", &[&line]).unwrap();
        let (moments, commit) = said(&world);
        assert!(moments.iter().chain([&commit]).all(|said| said.contains(what)), "{moments:?}");
    }
    world.device("origin", &[&format!("0 {LEN} snapshot-origin {{}}/base")]).unwrap();
    for persistence in ["P", "PO"] {
        world.load("disk", &[&overlay(persistence)]).unwrap();
        let (moments, commit) = said(&world);
        assert!(moments.iter().all(|said| said.contains("nothing can be stacked")), "{moments:?}");
        assert!(commit.contains("'snapshot-merge' takes the origin back"), "{commit}");
    }
    world.devices.remove("origin", false).unwrap();
    world.load("disk", &[&overlay("P")]).unwrap();
    world.load("disk", &[&overlay("PO")]).unwrap();
    world.overlay("disk", "over");
}
