//! The real I/O path under a power cut: the static snapblk serves a disk inside an emulated guest,
//! with its origin and its stores on disks whose server logs every write and every flush. Then the
//! power is cut: at any record of the log, keeping any subset of the unflushed sectors. Flushed
//! writes must be there, every snapshot exactly as it was taken, and every store valid (scenario
//! 69).
//!
//! Cuts are tried for `SNAPBLK_SECONDS` (a few if unset).

mod guest;
mod judge;
mod replay;
mod store;

use std::time::{Duration, Instant};

use snapblk_tests::rng::Rng;

use guest::{Mode, SECTORS, Setup};
use judge::Judge;
use replay::Replay;

/// The default duration.
const SECONDS: u64 = 10;
/// Cuts after which snapblk opens the stores too.
const SERVED: u64 = 4;

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}={text} is no number")))
}

#[test]
fn an_overlay_keeps_what_was_flushed_over_a_power_cut() {
    cut_power(Mode::Overlay);
}

#[test]
fn scenario_69_snapshots_and_a_rollback_are_exact_over_a_power_cut() {
    cut_power(Mode::Origin);
}

fn cut_power(mode: Mode) {
    let seed = number("SNAPBLK_SEED").unwrap_or_else(Rng::fresh_seed);
    let setup = Setup { mode, seed };
    let log = guest::run(&setup);
    let until = Instant::now() + Duration::from_secs(number("SNAPBLK_SECONDS").unwrap_or(SECONDS));
    let mut rng = Rng::new(seed);
    let (mut cuts, mut open, mut rounds) = (0, 0, 0);
    // The first pass covers the whole log, so that no budget leaves its end untested.
    while rounds == 0 || Instant::now() < until {
        rounds += 1;
        let mut replay = Replay::new(setup.disks());
        let mut judge = Judge::new(mode, SECTORS);
        for (at, record) in log.iter().enumerate() {
            // Most data can be lost directly before a flush.
            let likely = if replay.is_owed_at(record) { 30 } else { 3 };
            if rng.chance(likely) {
                let disks = replay.cut(&mut rng);
                cuts += 1;
                open += u64::from(replay.owed() > 0);
                let wrong =
                    |why| panic!("SNAPBLK_SEED={seed}: cut at {at} of {}: {why}", log.len());
                judge.judge(&disks).unwrap_or_else(wrong);
                if cuts % 40 == 1 && cuts < 40 * SERVED {
                    judge.serve_again(&disks).unwrap_or_else(wrong);
                }
            }
            replay.carry_out(record);
            judge.see(record);
        }
    }
    println!("SNAPBLK_SEED={seed}: {} records, {cuts} cuts, {open} with writes to lose", log.len());
    assert!(open > 50, "hardly anything could be lost");
}
