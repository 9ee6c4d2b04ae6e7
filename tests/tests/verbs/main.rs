//! Random sequences of the monitor's commands on the real program, from a seed.
//!
//! A case serves one or two small disks, plain ones or overlays of golden images. After each command
//! every device is read through an export and compared with a byte array, and the devices and their
//! kinds with those that the model expects. At the end of a case the stores are checked offline, and
//! the files below them are compared as well. A command that the documentation refuses must have
//! changed nothing.
//!
//! Cases are tried for `SNAPBLK_SECONDS` (a few if unset), or `SNAPBLK_SEEDS` of them, from
//! `SNAPBLK_FIRST` on; `SNAPBLK_SEED` repeats one. A failure prints the seed and the commands. The
//! speed of a job depends on the machine, and with it, whether a slow job has ended when the next
//! command comes.

mod case;
mod jobs;
mod layers;
mod look;
mod model;
mod requests;
mod restarts;
mod snapshots;
mod tables;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use case::Case;
use snapblk_tests::rng::Rng;

/// The default duration.
const SECONDS: u64 = 8;
/// Cases after which each kind of command must have been carried out.
const MANY: u64 = 200;

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}={text} is no number")))
}

#[test]
fn every_device_has_the_content_that_the_commands_give_it() {
    let mut done = BTreeMap::new();
    if let Some(seed) = number("SNAPBLK_SEED") {
        Case::new(seed).run(&mut done);
        println!("{done:?}");
        return;
    }
    // Short seeds are easier to pass on.
    let first = number("SNAPBLK_FIRST").unwrap_or_else(|| Rng::fresh_seed() >> 32);
    let (seeds, seconds) = (number("SNAPBLK_SEEDS"), number("SNAPBLK_SECONDS"));
    let until = Instant::now() + Duration::from_secs(seconds.unwrap_or(SECONDS));
    let mut cases = 0;
    while seeds.map_or_else(|| cases == 0 || Instant::now() < until, |seeds| cases < seeds) {
        Case::new(first + cases).run(&mut done);
        cases += 1;
    }
    println!("{cases} cases from SNAPBLK_FIRST={first}: {done:?}");
    let names = case::KINDS.iter().map(|kind| kind.name);
    let never: Vec<_> = names.filter(|name| !done.contains_key(name)).collect();
    assert!(cases < MANY || never.is_empty(), "in {cases} cases never done: {never:?}");
}
