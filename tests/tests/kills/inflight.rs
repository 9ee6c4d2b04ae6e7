//! A process that is killed under a load whose front end stays: the next process carries out the
//! requests in flight.

use std::time::Duration;

use snapblk_tests::lasting::Lasting;
use snapblk_tests::rng::Rng;
use snapblk_tests::server::{Place, Scratch, ServerCommand};

use crate::rounds::{Rounds, flush_interval};

const QUEUES: u64 = 2;

/// On an overlay, repeatedly with one front end. Each request ends once and successfully; no write
/// is lost; some requests were in flight when the process was killed.
pub(crate) fn outlives_kills(place: Place) {
    let mut rounds = Rounds::new(&["kill", "in flight"]);
    let scratch = Scratch::new(place).expect("a directory for the test");
    let mut guest = Lasting::new(QUEUES, Rng::new(rounds.rng.next_u64()));
    let base = scratch.sparse("base.raw", guest.disk_len()).expect("an image");
    let command = ServerCommand::snapblk(&scratch).unwrap_or_else(|error| panic!("{error}"));
    let command = command.arg("--flush-interval").arg(flush_interval(place));
    let command = command.arg("--num-queues").arg(QUEUES.to_string()).arg("--blk-file").arg(&base);
    let command = command.arg("--overlay").arg(scratch.path("store.cow"));
    loop {
        let server = command.start().unwrap_or_else(|error| panic!("{error}"));
        guest.connect(server.socket());
        // The requests in flight in the previous process come first.
        let (enough, before) = (rounds.rng.below(3_000), guest.ended);
        while guest.ended - before < enough {
            guest.fill();
            guest.wait();
        }
        if !rounds.another() {
            guest.finish();
            let status = server.terminate().unwrap_or_else(|error| panic!("{error}"));
            assert!(status.success(), "SIGTERM ended it with {status}");
            return rounds.end();
        }
        let moment = rounds.moment(Duration::from_millis(5));
        std::thread::scope(|scope| {
            let killer = scope.spawn(move || {
                std::thread::sleep(moment);
                server.kill().expect("SIGKILL");
            });
            while !killer.is_finished() {
                guest.fill();
                guest.reap();
            }
        });
        rounds.met("kill");
        guest.reap();
        if guest.noted() > 0 {
            rounds.met("in flight");
        }
    }
}
