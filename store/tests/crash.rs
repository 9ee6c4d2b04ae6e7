//! Killed processes and power cuts, at random moments and at every step; I/O that fails.
#![cfg(not(feature = "shuttle"))]

mod world;

use world::Coverage;
use world::budget::Budget;
use world::everywhere::{Harm, everywhere};
use world::run::{Case, sweep};

const SEEDS: u64 = 200;
/// A sweep of at least this many seeds must meet all events, not only the frequent ones.
const LONG: u64 = 5000;

/// Events that a sweep must meet; otherwise it proves less than it claims.
const OFTEN: [&str; 19] = [
    "adopted what was owed",
    "area boundary",
    "commit that nobody waits for",
    "crash after Invalid",
    "cut between data and commit",
    "cut in a handover",
    "cut in a merge: copy",
    "full",
    "handover in flight",
    "handover with requests held",
    "kill",
    "killed owing",
    "live snapshot",
    "merge ended",
    "origin write on a volatile exception",
    "power cut",
    "queued in a run",
    "torn area",
    "two chunk sizes",
];

/// The same for a long sweep.
const SELDOM: [&str; 9] = [
    "cut after a merge failed",
    "cut in a merge: between batches",
    "cut in a merge: drain",
    "cut in a merge: erase entries",
    "cut in a merge: protect",
    "cut in a merge: sync origin",
    "cut in a merge: sync store",
    "garbage behind the end",
    "new snapshot in mid-merge",
];

fn report(coverage: &Coverage, must: &[&str], budget: Budget) {
    println!("How often the sweep met");
    for (what, count) in &coverage.0 {
        println!("{count:>10}  {what}");
    }
    let missed: Vec<&&str> = must.iter().filter(|what| !coverage.0.contains_key(**what)).collect();
    if budget.is_full() {
        assert!(missed.is_empty(), "never met: {missed:?}");
    }
}

/// Scenarios 15, 16, 19, 30 to 40, 42, 44, 45, 47, 54, 56, 69 to 71 and 76, in any mixture.
#[test]
fn what_was_promised_survives() {
    let coverage = sweep("what_was_promised_survives", SEEDS, |seed| Case::random(seed, true));
    let long = coverage.0.get("seeds").is_some_and(|&seeds| seeds >= LONG);
    let must = if long { [&OFTEN[..], &SELDOM].concat() } else { OFTEN.to_vec() };
    report(&coverage, &must, Budget::from_env(SEEDS));
}

/// Scenario 37 among others: the power fails after each step of a case's I/O.
#[test]
fn a_power_cut_after_each_step_keeps_what_was_flushed() {
    let name = "a_power_cut_after_each_step_keeps_what_was_flushed";
    let coverage = everywhere(name, 2, Harm::Power);
    report(&coverage, &["cut in a merge: copy", "power cut"], Budget::from_env(2));
}

/// Scenarios 37 and 70: the process is killed after each step of a case's I/O.
#[test]
fn a_kill_after_each_step_keeps_what_was_acknowledged() {
    let name = "a_kill_after_each_step_keeps_what_was_acknowledged";
    let coverage = everywhere(name, 2, Harm::Kill);
    report(&coverage, &["kill"], Budget::from_env(2));
}

/// Scenarios 26 to 28, 45, 73 and 74: each I/O of a case fails in turn.
#[test]
fn each_io_that_fails_costs_no_more_than_it_must() {
    let name = "each_io_that_fails_costs_no_more_than_it_must";
    let coverage = everywhere(name, 2, Harm::Fail);
    let must = ["cut after a merge failed", "opened again after a failed sync"];
    report(&coverage, &must, Budget::from_env(2));
}
