//! Killed processes and power cuts at random moments.
#![cfg(not(feature = "shuttle"))]

mod world;

use world::run::{Case, sweep};

/// Scenarios 15, 16, 19, 30 to 36, 69, 70 and 71, in any mixture.
#[test]
fn what_was_promised_survives() {
    let coverage = sweep("crash", 300, |seed| Case::random(seed, true));
    println!("{:#?}", coverage.0);
}
