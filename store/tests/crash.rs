//! Killed processes and power cuts at random moments.
#![cfg(not(feature = "shuttle"))]

mod world;

use world::run::{self, Case, sweep};

const SEEDS: u64 = 300;

/// A sweep that never met one of these proved less than it says.
const MUST_BE_MET: [&str; 12] = [
    "adopted what was owed",
    "area boundary",
    "crash after Invalid",
    "cut between data and commit",
    "full",
    "kill",
    "killed owing",
    "live snapshot",
    "origin write on a volatile exception",
    "power cut",
    "torn area",
    "two chunk sizes",
];

/// Scenarios 15, 16, 19, 30 to 36, 69, 70 and 71, in any mixture.
#[test]
fn what_was_promised_survives() {
    let coverage = sweep("crash", SEEDS, |seed| Case::random(seed, true));
    println!("{:#?}", coverage.0);
    if std::env::var_os("SNAPBLK_SEED").is_some() || run::seeds(SEEDS) < SEEDS {
        return;
    }
    for what in MUST_BE_MET {
        assert!(coverage.0.contains_key(what), "never met: {what}");
    }
}
