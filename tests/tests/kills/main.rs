//! SIGKILL of the whole process under a verified load, over and over: whatever moment it comes at,
//! the process started again with its first arguments has every acknowledged write, and every
//! snapshot is as it was taken (scenarios 70 and 72). Where the front end keeps what is in flight, the next process does
//! the rest of it.
//!
//! A test goes on for `SNAPBLK_SECONDS` (a few where it is not set) and prints what it met. What a
//! seed repeats are the choices; at which instruction a kill hits is the machine's.

mod inflight;
mod log;
mod overlay;
mod rounds;
mod snapshots;

use snapblk_tests::server::Place;

#[test]
fn scenario_70_an_overlay_outlives_kills() {
    overlay::outlives_kills(Place::Memory);
}

#[test]
fn scenario_70_an_overlay_outlives_kills_on_disk() {
    overlay::outlives_kills(Place::Disk);
}

#[test]
fn scenario_70_an_overlay_outlives_a_kill_however_much_it_owes() {
    log::outlives_a_kill_however_much_is_owed();
}

#[test]
fn what_nobody_flushes_is_durable_some_time_later() {
    log::is_durable_some_time_later();
}

#[test]
fn scenario_72_snapshots_and_rollbacks_outlive_kills() {
    snapshots::outlive_kills(Place::Memory);
}

#[test]
fn scenario_72_snapshots_and_rollbacks_outlive_kills_on_disk() {
    snapshots::outlive_kills(Place::Disk);
}

#[test]
fn requests_in_flight_outlive_kills() {
    inflight::outlives_kills(Place::Memory);
}

#[test]
fn requests_in_flight_outlive_kills_on_disk() {
    inflight::outlives_kills(Place::Disk);
}
