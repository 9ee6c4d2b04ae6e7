//! The scripts, and the observations after each step.
//!
//! In a table, `ORIGIN` and `COW1`… are the disk and the stores, `@name` is another device.

use std::collections::{BTreeMap, BTreeSet};

/// Sectors of the disk.
pub(crate) const SECTORS: u64 = 1024;
/// The generations to write; 1 is the disk's first.
pub(crate) const GENERATIONS: u32 = 10;
/// The most stores of a script.
pub(crate) const STORES: usize = 3;
/// The greatest length of a store in sectors.
pub(crate) const STORE_MOST: u64 = 2048;

/// A step that both execute.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    /// A new device with this table.
    Make(&'static str, String),
    /// Loads another table, suspends and resumes.
    Swap(&'static str, String),
    /// Removes the device.
    Remove(&'static str),
    /// Writes `each` sectors, `times` in a row; the answer is the number that succeeded.
    Write { device: &'static str, first: u64, each: u64, times: u64, generation: u32 },
    /// Extends the store `n` to that many sectors.
    Grow(usize, u64),
    /// The origin's device becomes this snapshot's content, all of which is merged. The table is
    /// the kernel's for that.
    Merge { origin: &'static str, snapshot: &'static str, table: String },
    /// After the merge the origin's device gets this table.
    Finish { origin: &'static str, table: String },
}

/// Steps on one disk.
#[derive(Clone, Debug)]
pub(crate) struct Script {
    pub(crate) name: &'static str,
    /// Sectors of each store.
    pub(crate) stores: Vec<u64>,
    pub(crate) steps: Vec<Step>,
}

/// The observations after a step.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen {
    /// `ok`, `error`, or the number of successful writes.
    pub(crate) answer: String,
    pub(crate) devices: BTreeMap<String, Device>,
}

/// One device after a step.
#[derive(Clone, Debug)]
pub(crate) struct Device {
    pub(crate) status: String,
    /// sha256, or `EIO`.
    pub(crate) content: String,
}

impl Script {
    /// The devices after each step, except the base, which is the same as the origin.
    pub(crate) fn devices(&self) -> Vec<BTreeSet<&'static str>> {
        let mut now = BTreeSet::new();
        let after = |step: &Step| {
            match step {
                Step::Make(name, _) if *name != "base" => {
                    now.insert(*name);
                }
                Step::Remove(name) | Step::Merge { snapshot: name, .. } => {
                    now.remove(name);
                }
                _ => {}
            }
            now.clone()
        };
        self.steps.iter().map(after).collect()
    }
}

fn line(target: &str) -> String {
    format!("0 {SECTORS} {target}")
}

fn snapshot(store: usize, how: &str, chunk: u64) -> String {
    line(&format!("snapshot @base COW{store} {how} {chunk}"))
}

fn write(device: &'static str, first: u64, sectors: u64, generation: u32) -> Step {
    Step::Write { device, first, each: sectors, times: 1, generation }
}

/// A base, the origin over it, and snapshots `a`, `b`, `c` with these kinds and chunk sizes.
fn stack(kinds: &[(&str, u64)]) -> Vec<Step> {
    let mut steps = vec![
        Step::Make("base", line("linear ORIGIN 0")),
        Step::Make("orig", line("snapshot-origin @base")),
    ];
    for (n, (how, chunk)) in kinds.iter().enumerate() {
        steps.push(Step::Make(["a", "b", "c"][n], snapshot(n + 1, how, *chunk)));
    }
    steps
}

fn script(
    name: &'static str,
    stores: &[u64],
    kinds: &[(&str, u64)],
    more: impl IntoIterator<Item = Step>,
) -> Script {
    let mut steps = stack(kinds);
    steps.extend(more);
    Script { name, stores: stores.to_vec(), steps }
}

/// All kinds of writes to an origin and its snapshot `a`.
fn mixed() -> Vec<Step> {
    vec![
        write("orig", 0, 8, 2),
        write("orig", 101, 3, 3),
        write("a", 200, 50, 4),
        write("orig", 190, 30, 5),
        write("a", 101, 1, 6),
        write("orig", SECTORS - 1, 1, 7),
        write("a", 512, 128, 8),
        write("orig", 512, 128, 9),
    ]
}

/// Every script.
pub(crate) fn all() -> Vec<Script> {
    let mut all: Vec<Script> =
        [("P 1", "P", 1), ("PO 8", "PO", 8), ("P 64", "P", 64), ("N 16", "N", 16)]
            .map(|(name, how, chunk)| script(name, &[STORE_MOST], &[(how, chunk)], mixed()))
            .into();
    let swap = |n, how, chunk| Step::Swap("a", snapshot(n, how, chunk));
    let again = |n, how, chunk| [Step::Remove("a"), Step::Make("a", snapshot(n, how, chunk))];
    all.push(script("taken away and made again", &[STORE_MOST], &[("P", 8)], {
        let mut steps = mixed();
        steps.extend(again(1, "P", 8));
        steps.extend([write("orig", 300, 20, 2), swap(1, "P", 8), write("a", 310, 40, 3)]);
        steps
    }));
    all.push(script(
        "three snapshots, three chunk sizes",
        &[STORE_MOST; 3],
        &[("P", 8), ("PO", 64), ("N", 16)],
        [
            write("orig", 5, 1, 2),
            write("b", 0, 8, 3),
            write("orig", 0, 70, 4),
            write("c", 100, 8, 5),
            write("a", 100, 8, 6),
            write("orig", 96, 160, 7),
            Step::Remove("b"),
            write("orig", 600, 9, 8),
            Step::Make("b", snapshot(2, "PO", 64)),
            write("orig", 700, 9, 9),
        ],
    ));
    let fill = |device, first, times| Step::Write { device, first, each: 8, times, generation: 2 };
    for (name, how) in [("P filled by itself", "P"), ("N filled by itself", "N")] {
        let steps = [fill("a", 0, 20), write("orig", 0, 8, 3), write("a", 0, 8, 4)];
        all.push(script(name, &[128], &[(how, 8)], steps));
    }
    for (name, how) in [("P filled by its origin", "P"), ("PO filled by its origin", "PO")] {
        let steps = [fill("orig", 0, 20), write("a", 0, 8, 3), write("orig", 512, 8, 4)];
        all.push(script(name, &[128, STORE_MOST], &[(how, 8), ("P", 16)], steps));
    }
    all.push(script(
        "PO overflows, then its origin wants room",
        &[128],
        &[("PO", 8)],
        [
            fill("a", 0, 20),
            write("a", 0, 8, 3),
            write("orig", 0, 8, 4),
            write("a", 512, 8, 5),
            write("orig", 512, 8, 6),
            write("a", 0, 8, 7),
        ],
    ));
    all.push(script("PO overflows, grows, is made again", &[128], &[("PO", 8)], {
        let mut steps = vec![fill("a", 0, 20), Step::Grow(1, 512)];
        steps.extend(again(1, "PO", 8));
        steps.extend([fill("a", 512, 20), write("orig", 800, 8, 3)]);
        steps
    }));
    all.push(script(
        "PO overflows, grows, is loaded again",
        &[128],
        &[("PO", 8)],
        [fill("a", 0, 20), Step::Grow(1, 512), swap(1, "PO", 8)],
    ));
    all.push(merged());
    all
}

/// A rollback to one of two snapshots, then to the other.
fn merged() -> Script {
    let merge = |snapshot: &'static str, store: usize, how: &str, chunk: u64| Step::Merge {
        origin: "orig",
        snapshot,
        table: line(&format!("snapshot-merge @base COW{store} {how} {chunk}")),
    };
    script(
        "two rollbacks",
        &[STORE_MOST; 2],
        &[("P", 8), ("PO", 32)],
        [
            write("orig", 0, 100, 2),
            write("a", 50, 9, 3),
            write("b", 300, 64, 4),
            merge("a", 1, "P", 8),
            write("orig", 20, 5, 5),
            Step::Finish { origin: "orig", table: line("snapshot-origin @base") },
            write("orig", 500, 100, 6),
            merge("b", 2, "PO", 32),
            Step::Finish { origin: "orig", table: line("linear @base 0") },
            write("orig", 7, 7, 7),
        ],
    )
}
