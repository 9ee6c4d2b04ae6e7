//! Random requests to devices over simulated disks, compared with byte arrays.
#![cfg(not(feature = "shuttle"))]

mod world;

use world::run::{Case, sweep};

/// Scenarios 1 to 3, 5, 9 to 11, 13, 18, 28 and 75, in any mixture.
#[test]
fn random_requests_match_the_model() {
    let coverage = sweep("model", 200, |seed| Case::random(seed, false));
    println!("{:#?}", coverage.0);
}
