//! SIGKILL of the whole process under a verified load, repeatedly: at whatever moment, the process
//! started again with its first arguments has every acknowledged write, and every snapshot is as it
//! was taken (scenarios 70 and 72). If the front end keeps the inflight memory, the next process
//! completes the requests in flight.
//!
//! A test runs for `SNAPBLK_SECONDS` (a few if unset) and prints the events that it met. A seed
//! repeats the choices; the instruction that a kill hits depends on the machine.

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
