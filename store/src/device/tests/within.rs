//! Lines of one table that do not go together.

use super::*;
use crate::engine::MergeFailure;

const HALF: u64 = LEN / 2;

fn world() -> World {
    let world = World::new();
    world.file("base", LEN);
    world.file("other", LEN);
    world.file("c", LEN + 64);
    world.file("d", LEN + 64);
    world.device("below", &[&format!("0 {LEN} linear {{}}/base 0")]).unwrap();
    world.device("origin", &[&format!("0 {LEN} snapshot-origin below")]).unwrap();
    world.devices.create("disk", None).unwrap();
    world
}

/// Each of the two lines alone is right.
#[test]
fn what_is_below_a_snapshot_is_not_written_by_a_line_beside_it() {
    let lower = ["snapshot-origin {}/base", "snapshot-origin below", "linear origin 0"];
    let lower = lower.iter().chain(&["linear {}/base 0", "snapshot-merge {}/base {}/d P 8"]);
    let upper =
        ["snapshot {}/base {}/c P 8", "snapshot below {}/c PO 8", "snapshot origin {}/c N 8"];
    for (below, snapshot) in lower.flat_map(|below| upper.map(|snapshot| (*below, snapshot))) {
        let world = world();
        let both = [(below, snapshot), (snapshot, below)];
        for (first, second) in both {
            let lines = [format!("0 {HALF} {first}"), format!("{HALF} {HALF} {second}")];
            let loaded = world.load("disk", &[&lines[0], &lines[1]]).unwrap_err().to_string();
            assert!(loaded.contains("of the same table is a snapshot of"), "{lines:?}: {loaded}");
            assert!(
                world.devices.lock().devices["disk"].inactive.is_none(),
                "refused when it was loaded"
            );
        }
    }
}

/// What lies below was another disk when the table was loaded.
#[test]
fn what_is_below_a_snapshot_is_looked_at_again_at_the_resume() {
    let world = world();
    world.device("late", &[&format!("0 {LEN} linear {{}}/other 0")]).unwrap();
    let dir = world.dir.path().to_str().unwrap();
    let lines = [
        format!("0 {HALF} snapshot-origin late"),
        format!("{HALF} {HALF} snapshot {dir}/base {dir}/c P 8"),
    ];
    let lines = parse_table(lines.iter().map(String::as_str)).unwrap();
    world.devices.load("disk", lines, false).unwrap();
    world.load("late", &[&format!("0 {LEN} linear {{}}/base 0")]).unwrap();
    let said = world.devices.resume("disk").unwrap_err().to_string();
    assert!(said.contains("of the same table is a snapshot of"), "{said}");
}

/// Parts of one file that do not overlap, and lines that only read.
#[test]
fn lines_that_go_together_stay() {
    let world = world();
    world.device("second", &[&format!("0 {HALF} linear {{}}/base {HALF}")]).unwrap();
    let apart = [
        format!("0 {HALF} snapshot-origin second"),
        format!("{HALF} {HALF} snapshot below {{}}/c P 8"),
    ];
    world.load("disk", &[&apart[0], &apart[1]]).unwrap();
    let twice = [
        format!("0 {HALF} snapshot {{}}/other {{}}/c P 8"),
        format!("{HALF} {HALF} snapshot {{}}/other {{}}/d P 8"),
    ];
    world.load("disk", &[&twice[0], &twice[1]]).unwrap();
    let halves = [
        format!("0 {HALF} snapshot {{}}/other {{}}/c P 8"),
        format!("{HALF} {HALF} linear {{}}/other {HALF}"),
    ];
    world.load("disk", &[&halves[0], &halves[1]]).unwrap();
}

#[test]
fn a_table_merges_one_store() {
    let world = world();
    world.devices.remove("origin", false).unwrap();
    let lines = [
        format!("0 {HALF} snapshot-merge {{}}/base {{}}/c P 8"),
        format!("{HALF} {HALF} snapshot-merge {{}}/other {{}}/d P 8"),
    ];
    let said = world.load("disk", &[&lines[0], &lines[1]]).unwrap_err().to_string();
    assert!(said.contains("a table merges one store"), "{said}");
}

/// A merge that is not the first line is one all the same.
#[test]
fn a_merge_in_a_later_line_is_opened_again_by_a_resume() {
    let world = world();
    world.devices.remove("origin", false).unwrap();
    let lines = [
        format!("0 {HALF} linear {{}}/other 0"),
        format!("{HALF} {HALF} snapshot-merge {{}}/base {{}}/c P 8"),
    ];
    world.load("disk", &[&lines[0], &lines[1]]).unwrap();
    let store = world.table("disk").exceptions()[0].store().clone();
    let _ = store.commit_failed();
    let start = || world.engine("disk").start_merge();
    assert_eq!(start(), Err(MergeFailure::NotSynced));
    world.devices.suspend("disk", Default::default()).unwrap_err();
    world.devices.resume("disk").unwrap();
    assert_eq!(start(), Ok(()));
}
