//! Handover of stores, and its refusals.

use super::*;
use crate::cow::log::Allocation;
use crate::cow::{Entry, MergeMark, Persistence, Store};
use crate::device::{DeviceEvent, Suspend, TableKind};
use crate::units::{Chunk, ChunkSize, DataIndex, StoreChunk};

/// An origin and its snapshot `a`, whose store has few chunks.
fn world_with(persistence: &str) -> World {
    let world = World::new();
    world.file("disk", LEN);
    world.file("store", 8 * 8);
    world.device("disk", &[&format!("0 {LEN} snapshot-origin {{}}/disk")]).unwrap();
    world.device("a", &[&line("snapshot", persistence)]).unwrap();
    world
}

fn line(target: &str, persistence: &str) -> String {
    format!("0 {LEN} {target} {{}}/disk {{}}/store {persistence}")
}

fn store_of(world: &World, device: &str) -> Arc<Store> {
    world.table(device).exceptions()[0].store().clone()
}

/// Suspends `a`, and gives its store to a table of the new device `b`.
fn hand_over(world: &World, to: &str) -> Result<(), DeviceError> {
    world.devices.suspend("a", Suspend::default()).unwrap();
    world.device("b", &[to])
}

fn refused(done: Result<(), DeviceError>, why: &str) {
    let said = done.unwrap_err().to_string();
    assert!(said.contains(why), "{said}");
}

fn fill(store: &Store) {
    let Allocation::Run { first, count } = store.log().allocate(u64::MAX) else {
        panic!("there is room");
    };
    for n in 0..count {
        let _ = store.log().finish(DataIndex(first.0 + n), None);
    }
    let _ = store.overflow();
}

#[test]
fn chunk_size_and_overflow_move_and_the_letters_are_the_new_table_s_own() {
    let world = world_with("PO 8");
    let before = store_of(&world, "a");
    fill(&before);
    hand_over(&world, &line("snapshot", "P 64")).unwrap();
    let store = store_of(&world, "b");
    assert!(Arc::ptr_eq(&before, &store), "nothing is read");
    assert_eq!(store.chunk(), ChunkSize::from_sectors(8).unwrap());
    assert_eq!(store.persistence(), Persistence::Persistent);
    assert_eq!(store.state(), StoreState::Overflow);
    let status = world.devices.query(Some("b"), TableKind::Active).unwrap();
    assert_eq!(status[0].targets[0].params.rsplit_once("/store ").unwrap().1, "P 8");
    assert_eq!(status[0].targets[0].status, "Overflow");
    let decided = world.table("a").decide(Op::Read, 0, 4096);
    assert_eq!(decided, Decision::Fail);
}

/// spec/cow-format.md: a commit is owed at every handover.
#[test]
fn what_a_source_owes_that_was_suspended_without_a_flush_is_committed() {
    let world = world_with("PO 8");
    let store = store_of(&world, "a");
    let Allocation::Run { first, count: 1 } = store.log().allocate(1) else { panic!("no room") };
    let _ = store.log().finish(first, Some(Chunk(3)));
    world.devices.suspend("a", Suspend { noflush: true }).unwrap();
    assert_eq!(store.log().owed_count(), 1);
    world.device("b", &[&line("snapshot", "PO 8")]).unwrap();
    assert!(Arc::ptr_eq(&store, &store_of(&world, "b")), "it has moved");
    assert_eq!(store.log().owed_count(), 0);
}

/// Scenario 25: the same store, longer.
#[test]
fn scenario_25_a_store_that_grew_is_cured_by_a_reload_and_one_that_did_not_is_not() {
    let world = world_with("PO 8");
    fill(&store_of(&world, "a"));
    world.load("a", &[&line("snapshot", "PO 8")]).unwrap();
    assert_eq!(store_of(&world, "a").state(), StoreState::Overflow);
    world.file("store", 8 * 20);
    hand_over(&world, &line("snapshot", "PO 8")).unwrap();
    assert_eq!(store_of(&world, "b").state(), StoreState::Valid);
    assert_eq!(store_of(&world, "b").usage().total, 8 * 20);
}

#[test]
fn scenario_25_a_store_that_grew_is_cured_by_a_suspend_and_a_resume() {
    let world = world_with("PO 8");
    let store = store_of(&world, "a");
    fill(&store);
    let again = || {
        world.devices.suspend("a", Suspend::default()).unwrap();
        world.devices.resume("a").unwrap();
        store.state()
    };
    assert_eq!(again(), StoreState::Overflow);
    world.file("store", 8 * 20);
    assert_eq!(again(), StoreState::Valid);
}

/// In memory it would be written over what is on disk; on disk nothing is of what was in memory.
#[test]
fn a_store_on_disk_does_not_become_one_in_memory_nor_the_other_way_round() {
    for (now, next) in [("P 8", "N 8"), ("N 8", "P 8")] {
        let world = world_with(now);
        let before = store_of(&world, "a");
        refused(world.load("a", &[&line("snapshot", next)]), "takes it over as it is");
        assert!(Arc::ptr_eq(&before, &store_of(&world, "a")), "{now}");
    }
}

#[test]
fn a_store_is_not_merged_into_an_origin_that_is_not_its_own() {
    let world = World::new();
    for file in ["disk", "other", "store"] {
        world.file(file, LEN);
    }
    world.device("a", &[&line("snapshot", "P 8")]).unwrap();
    let merge = line("snapshot-merge", "P 8");
    let other = merge.replace("/disk ", "/other ");
    refused(world.load("a", &[&other]), "a store belongs to one origin");
    world.load("a", &[&merge]).unwrap();
}

/// Requests that wait for room continue when a new table is applied, and not before: if it is not,
/// nothing would wake them.
#[test]
fn scenario_78_a_resume_that_fails_leaves_a_full_store_to_who_tends_it() {
    let world = world_with("PO 8");
    world.devices.set_patience("a", Duration::from_secs(60));
    let store = store_of(&world, "a");
    let Allocation::Run { first, count } = store.log().allocate(u64::MAX) else { panic!("no") };
    (0..count).for_each(|n| _ = store.log().finish(DataIndex(first.0 + n), None));
    assert!(store.wait_for_room());
    let dir = world.dir.path().to_str().unwrap();
    let lines = parse_table([&*line("snapshot", "PO 8").replace("{}", dir)]).unwrap();
    world.devices.load("a", lines, false).unwrap();
    File::options().write(true).open(world.path("store")).unwrap().set_len(8 << 20).unwrap();
    std::fs::create_dir(world.path("state.new")).unwrap();
    assert!(world.devices.resume("a").is_err());
    assert_eq!(store.state(), StoreState::Full);
    std::fs::remove_dir(world.path("state.new")).unwrap();
    world.devices.resume("a").unwrap();
    assert!(Arc::ptr_eq(&store, &store_of(&world, "a")), "it is the same");
    assert_eq!(store.state(), StoreState::Valid);
}

#[test]
fn an_invalid_source_gives_an_invalid_destination_and_an_error() {
    let (happened, events) = std::sync::mpsc::channel();
    let happened = std::sync::Mutex::new(happened);
    for persistence in ["P 8", "N 8"] {
        let mut world = world_with("P 8");
        let happened = happened.lock().unwrap().clone();
        world.watch(move |event| happened.send(event).unwrap());
        if persistence == "N 8" {
            world.devices.remove("a", false).unwrap();
            world.device("a", &[&line("snapshot", persistence)]).unwrap();
        }
        let store = store_of(&world, "a");
        assert!(store.begin_invalidate());
        // The header stays unchanged: the state in memory is what moves.
        let _ = store.recorded(true);
        while events.try_recv().is_ok() {}
        hand_over(&world, &line("snapshot", persistence)).unwrap();
        assert_eq!(store_of(&world, "b").state(), StoreState::Invalid, "{persistence}");
        let said = || {
            let is_it = |event| matches!(event, DeviceEvent::ResumedInvalid { device, .. } if device == "b");
            events.try_iter().any(is_it)
        };
        assert!(said(), "{persistence}");
        world.devices.resize("b", LEN * 512).unwrap();
        assert!(!said(), "{persistence}: a resize says nothing new");
        assert_eq!(world.table("b").decide(Op::Read, 0, 4096), Decision::Fail);
    }
}

#[test]
fn a_store_does_not_move_to_another_origin_nor_out_of_memory() {
    let world = world_with("N 8");
    refused(hand_over(&world, &line("snapshot", "P 8")), "in memory (N)");
    world.file("disk2", LEN);
    let other = format!("0 {LEN} snapshot {{}}/disk2 {{}}/store N 8");
    refused(world.load("b", &[&other]), "belongs to one origin");
    // Nothing has changed, and a correct table takes the store over.
    assert_eq!(store_of(&world, "a").persistence(), Persistence::Transient);
    let before = store_of(&world, "a");
    world.load("b", &[&line("snapshot", "N 8")]).unwrap();
    assert!(Arc::ptr_eq(&before, &store_of(&world, "b")));
}

/// Scenario 8, known bug 13: nothing is written to it either.
#[test]
fn scenario_8_a_store_that_is_its_own_origin_is_refused() {
    let world = World::new();
    world.file("disk", LEN);
    let own = format!("0 {LEN} snapshot {{}}/disk {{}}/disk P 8");
    refused(world.device("snap", &[&own]), "is the origin itself");
    // By way of a device, which only a resume looks through.
    world.device("whole", &[&format!("0 {LEN} linear {{}}/disk 0")]).unwrap();
    let own = format!("0 {LEN} snapshot whole {{}}/disk P 8");
    refused(world.load("snap", &[&own]), "is the origin itself");
    assert!(std::fs::read(world.path("disk")).unwrap().iter().all(|byte| *byte == 0));
}

/// I8: a store that other layers use stays with its device.
#[test]
fn a_layer_is_not_handed_over() {
    let world = World::new();
    world.file("disk", LEN);
    world.file("store", LEN);
    world.device("a", &[&line("snapshot", "PO 8")]).unwrap();
    world.overlay("a", "store2");
    world.devices.suspend("a.1", Suspend::default()).unwrap();
    refused(world.device("b", &[&line("snapshot", "PO 8")]), "which lies on its store");
}

/// Leaving half a merge for a snapshot: it takes exceptions again, after the newest remaining one
/// (scenario 76); but not while it is unknown which entries are left.
#[test]
fn a_merge_that_becomes_a_snapshot_is_none_any_more_and_one_in_doubt_cannot() {
    let world = World::new();
    world.file("disk", LEN);
    world.file("store", LEN);
    world.device("a", &[&line("snapshot-merge", "P 8")]).unwrap();
    let store = store_of(&world, "a");
    store.set_merge_mark(MergeMark::Merging);
    let _ = store.set_unerased(vec![Entry { old: Chunk(1), new: StoreChunk(2) }]);
    refused(world.load("a", &[&line("snapshot", "P 8")]), "resume it as 'snapshot-merge' first");
    world.devices.clear("a").unwrap();
    world.load("a", &[&line("snapshot-merge", "P 8")]).unwrap();
    assert_eq!(store_of(&world, "a").merge_mark(), MergeMark::Unerased);
    store.clear_unerased();
    store.set_merge_mark(MergeMark::Merging);
    for mark in [MergeMark::Merging, MergeMark::Failed] {
        let store = store_of(&world, "a");
        // A chunk was allocated that is not among the remaining ones.
        let Allocation::Run { first, .. } = store.log().allocate(1) else {
            panic!("there is room")
        };
        let _ = store.log().finish(first, None);
        store.set_merge_mark(mark);
        world.load("a", &[&line("snapshot", "P 8")]).unwrap();
        let store = store_of(&world, "a");
        assert_eq!((store.merge_mark(), store.log().next()), (MergeMark::None, DataIndex(0)));
        world.load("a", &[&line("snapshot-merge", "P 8")]).unwrap();
    }
}
