//! Random requests to devices over simulated disks, against byte arrays.
#![cfg(not(feature = "shuttle"))]

mod world;

use world::run::{Case, sweep};

#[test]
fn random_requests_match_the_model() {
    let coverage = sweep("model", 300, |seed| Case::random(seed, false));
    println!("{:#?}", coverage.0);
}
