//! An overlay that is killed: alone, during a commit, while its tables are swapped, and while it
//! gets another layer.

use std::fs;
use std::process::Command;
use std::sync::Mutex;

use serde_json::json;
use snapblk_tests::server::{Place, Scratch, ServerCommand, find_snapblk, output};
use snapblk_tests::verify::{Ledger, Mix};

use crate::rounds::*;

/// Layers at which the overlay is created anew, so that a long run stays fast.
const LAYERS: u64 = 8;

pub(crate) fn outlives_kills(place: Place) {
    let mut rounds = Rounds::new(&["load", "commits", "swaps", "layer made", "layer cut off"]);
    let image = Ledger::image(SECTORS);
    while rounds.another() {
        let scratch = Scratch::new(place).expect("a directory for the test");
        let base = scratch.file("golden.raw", &image).expect("a golden image");
        let command = ServerCommand::snapblk(&scratch).unwrap_or_else(|error| panic!("{error}"));
        let command = command.arg("--flush-interval").arg(flush_interval(place));
        let command = command.arg("--num-queues").arg("2").arg("--blk-file").arg(&base);
        let store = scratch.path("store.cow");
        // Exactly as large as the disk may ever need: a kill costs no room.
        let mut create = Command::new(find_snapblk().unwrap_or_else(|error| panic!("{error}")));
        create.arg("create").arg(&store).arg("--origin").arg(&base);
        let made = output(&mut create).expect("snapblk runs");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let command = command.arg("--overlay").arg(store);
        live_and_die(&command, &mut rounds);
        assert!(fs::read(&base).expect("the image") == image, "the golden image was written to");
    }
    rounds.end();
}

/// Rounds on one overlay, until it has many layers.
fn live_and_die(command: &ServerCommand, rounds: &mut Rounds) {
    let ledger = Mutex::new(Ledger::stamped(SECTORS));
    let mut layers = 0;
    loop {
        let world = World::start(command, &ledger, rounds);
        world.check_disk();
        if layers == LAYERS || !rounds.another() {
            return;
        }
        // Either no flush at all, or commits all the time.
        let quiet = Mix { flush: 0, ..Mix::default() };
        let commits = Mix { flush: 25, ..Mix::default() };
        match rounds.rng.below(4) {
            0 => {
                world.kill_in_load(rounds, quiet, |_| ());
                rounds.met("load");
            }
            1 => {
                world.kill_in_load(rounds, commits, |_| ());
                rounds.met("commits");
            }
            2 => {
                if world.kill_in_load(rounds, quiet, |qmp| reload_until_killed(qmp, "disk0")) > 0 {
                    rounds.met("swaps");
                }
            }
            _ => {
                // A name that an interrupted command has not used.
                let file = format!("layer-{}.cow", rounds.rng.next_u64());
                let layer = json!({"device": "disk0", "snapshot-file": file});
                let told = world.kill_in_load(rounds, commits, |qmp| {
                    tell(qmp, "blockdev-snapshot-sync", layer)
                });
                layers += 1;
                rounds.met(match told {
                    Told::Done => "layer made",
                    Told::Nothing => "layer cut off",
                });
            }
        }
    }
}
