//! A disk with snapshots of several chunk sizes that is killed: under load, and during creation,
//! deletion and rollback.

use std::collections::BTreeMap;
use std::sync::Mutex;

use serde_json::{Value, json};
use snapblk_tests::disk::Disk;
use snapblk_tests::server::{Place, Scratch, ServerCommand};
use snapblk_tests::verify::{Ledger, Mix};

use crate::rounds::*;

const CHUNKS: [u64; 4] = [512, 4096, 16384, 65536];
/// The most snapshots at a time.
const MOST: usize = 3;
/// Snapshots after which the disk is created anew.
const ALL: u64 = 24;

/// Rounds, and the events that they must meet.
pub(crate) fn outlive_kills(place: Place) {
    let mut rounds = Rounds::new(&[
        "load",
        "commits",
        "swaps",
        "create",
        "create cut off",
        "create under load",
        "delete",
        "delete cut off",
        "merge",
        "merge cut off: before",
        "merge cut off: begun",
        "killed in mid-merge",
    ]);
    while rounds.another() {
        let scratch = Scratch::new(place).expect("a directory for the test");
        let file = scratch.file("disk.raw", &Ledger::image(SECTORS)).expect("a disk");
        let command = ServerCommand::snapblk(&scratch).unwrap_or_else(|error| panic!("{error}"));
        let command = command.arg("--flush-interval").arg(flush_interval(place));
        let command = command.arg("--num-queues").arg("2").arg("--blk-file").arg(file);
        let ledger = Mutex::new(Ledger::stamped(SECTORS));
        Family { scratch, command, ledger: &ledger, snapshots: BTreeMap::new(), made: 0 }
            .live_and_die(&mut rounds);
    }
    rounds.end();
}

/// The objects under test, and their expected content.
struct Family<'a> {
    scratch: Scratch,
    command: ServerCommand,
    ledger: &'a Mutex<Ledger>,
    snapshots: BTreeMap<String, Mutex<Ledger>>,
    made: u64,
}

/// Writes and flushes: so a sector identifies its write.
const fn mix(flush: u64) -> Mix {
    Mix { write: 60, flush, discard: 0, write_zeroes: 0 }
}

impl Family<'_> {
    fn live_and_die(&mut self, rounds: &mut Rounds) {
        loop {
            let world = World::start(&self.command, self.ledger, rounds);
            let merging = self.is_merging(&world);
            self.check(&world);
            if merging {
                rounds.met("killed in mid-merge");
            }
            if self.made == ALL || !rounds.another() {
                return;
            }
            if merging && rounds.rng.chance(50) {
                self.finish_merge(&world);
            }
            self.round(world, rounds);
        }
    }

    /// Checks that the disk and all snapshots have their content, and that there are no others.
    fn check(&self, world: &World<'_>) {
        world.check_disk();
        let mut names: Vec<_> = self.snapshots.keys().cloned().collect();
        assert_eq!(self.names(world), names, "the snapshots");
        names.retain(|name| !self.is_being_merged(world, name));
        for name in names {
            let socket = self.scratch.socket("look.sock");
            world.exported(&name, &socket, |socket| {
                world.check(&name, socket, &self.snapshots[&name]);
            });
        }
    }

    /// The devices that are snapshots.
    fn names(&self, world: &World<'_>) -> Vec<String> {
        let devices = world.call(&mut world.monitor(), "query-devices", json!({}));
        let names = devices.as_array().expect("an array").iter();
        let mut names: Vec<String> =
            names.map(|device| device["name"].as_str().expect("a name").to_owned()).collect();
        names.retain(|name| !name.starts_with("disk0"));
        names.sort();
        names
    }

    fn is_being_merged(&self, world: &World<'_>, name: &str) -> bool {
        let table = self.table(world);
        table.contains("snapshot-merge") && table.contains(&format!("/{name}.cow "))
    }

    fn table(&self, world: &World<'_>) -> String {
        let named = json!({"name": "disk0"});
        world.call(&mut world.monitor(), "query-devices", named)[0]["table"][0]
            .as_str()
            .expect("a line")
            .to_owned()
    }

    fn is_merging(&self, world: &World<'_>) -> bool {
        self.table(world).contains("snapshot-merge")
    }

    /// Waits for the running rollback.
    fn finish_merge(&self, world: &World<'_>) {
        let mut qmp = world.monitor();
        while world.call(&mut qmp, "query-jobs", json!({})) != json!([]) {
            while qmp.event(None).expect("the monitor lives").expect("an event")["event"]
                != "JOB_STATUS_CHANGE"
            {}
        }
        assert!(!self.is_merging(world));
        world.check_disk();
    }

    fn round(&mut self, world: World<'_>, rounds: &mut Rounds) {
        let merging = self.is_merging(&world);
        let full = self.snapshots.len() == MOST;
        match rounds.rng.below(8) {
            0 => {
                world.kill_in_load(rounds, mix(0), |_| ());
                rounds.met("load");
            }
            1 => {
                world.kill_in_load(rounds, mix(25), |_| ());
                rounds.met("commits");
            }
            2 => {
                if world.kill_in_load(rounds, mix(2), |qmp| reload_until_killed(qmp, "disk0")) > 0 {
                    rounds.met("swaps");
                }
            }
            3 | 4 if !full && !merging => self.create(world, rounds),
            5 if !full && !merging => self.create_under_load(world, rounds),
            6 if !self.snapshots.is_empty() && !merging => self.delete(world, rounds),
            7 if !self.snapshots.is_empty() && !merging => self.merge(world, rounds),
            _ => world.kill_in_load(rounds, mix(1), |_| ()),
        }
    }

    fn creation(&mut self, rounds: &mut Rounds) -> (String, Value) {
        self.made += 1;
        let name = format!("snap-{:02}", self.made);
        let chunk = CHUNKS[rounds.rng.below(CHUNKS.len() as u64) as usize];
        let persistent = if rounds.rng.chance(50) { "P" } else { "PO" };
        let create = json!({
            "device": "disk0", "name": name, "cow": format!("{name}.cow"), "chunk-size": chunk,
            "persistent": persistent,
        });
        (name, create)
    }

    /// Killed during creation, after writes without a flush: the snapshot has this moment's
    /// content, or does not exist.
    fn create(&mut self, world: World<'_>, rounds: &mut Rounds) {
        world.write(rounds, mix(0));
        let (name, create) = self.creation(rounds);
        let moment = lock(self.ledger).clone();
        let told = world.kill_in(rounds, |qmp| tell(qmp, "snapshot-create", create));
        rounds.met(if told == Told::Done { "create" } else { "create cut off" });
        let world = World::start(&self.command, self.ledger, rounds);
        if told == Told::Done || self.names(&world).contains(&name) {
            self.snapshots.insert(name, Mutex::new(moment));
        }
        self.check(&world);
        world.kill_in_load(rounds, mix(2), |_| ());
    }

    /// Killed some time after a creation under load: the snapshot has the content at its request,
    /// or newer writes; and never changes from then on.
    fn create_under_load(&mut self, world: World<'_>, rounds: &mut Rounds) {
        let (name, create) = self.creation(rounds);
        let before = lock(self.ledger).clone();
        let told = world.kill_in_load(rounds, mix(2), |qmp| tell(qmp, "snapshot-create", create));
        if told == Told::Done {
            rounds.met("create under load");
        }
        let world = World::start(&self.command, self.ledger, rounds);
        if told == Told::Done || self.names(&world).contains(&name) {
            let socket = self.scratch.socket("look.sock");
            let content = world.exported(&name, &socket, |socket| {
                let mut disk = Disk::connect(socket).unwrap_or_else(|error| panic!("{error}"));
                disk.read_all().unwrap_or_else(|error| panic!("{name}: {error}"))
            });
            let moment = before.later(&content);
            let moment = moment.unwrap_or_else(|error| panic!("{rounds}: {name}: {error}"));
            self.snapshots.insert(name, Mutex::new(moment));
        }
        world.kill_in_load(rounds, mix(2), |_| ());
    }

    fn any(&self, rounds: &mut Rounds) -> String {
        let nth = rounds.rng.below(self.snapshots.len() as u64) as usize;
        self.snapshots.keys().nth(nth).expect("there are as many").clone()
    }

    fn delete(&mut self, world: World<'_>, rounds: &mut Rounds) {
        let name = self.any(rounds);
        let delete = json!({"device": "disk0", "snapshot": name, "delete-store": true});
        let told = world.kill_in_load(rounds, mix(2), |qmp| tell(qmp, "snapshot-delete", delete));
        rounds.met(if told == Told::Done { "delete" } else { "delete cut off" });
        let world = World::start(&self.command, self.ledger, rounds);
        if told == Told::Done || !self.names(&world).contains(&name) {
            self.snapshots.remove(&name);
        }
        self.check(&world);
    }

    /// Killed during the command that begins a rollback, or under load after it: the disk is the
    /// snapshot, or unchanged if the command was not answered.
    fn merge(&mut self, world: World<'_>, rounds: &mut Rounds) {
        world.write(rounds, mix(2));
        let name = self.any(rounds);
        let snapshot = lock(&self.snapshots[&name]).clone();
        let merge = json!({
            "device": "disk0", "snapshot": name, "job-id": format!("merge-{name}"),
            "speed": 2 << 20,
        });
        if rounds.rng.chance(50) {
            world.call(&mut world.monitor(), "snapshot-merge", merge);
            lock(self.ledger).roll_back(&snapshot);
            world.kill_in_load(rounds, mix(2), |_| ());
            rounds.met("merge");
            self.snapshots.remove(&name);
            return;
        }
        let told = world.kill_in(rounds, |qmp| tell(qmp, "snapshot-merge", merge));
        let world = World::start(&self.command, self.ledger, rounds);
        let begun = !self.names(&world).contains(&name);
        assert!(begun || told == Told::Nothing, "{rounds}: a rollback that was begun is not there");
        rounds.met(if begun { "merge cut off: begun" } else { "merge cut off: before" });
        if begun {
            lock(self.ledger).roll_back(&snapshot);
            self.snapshots.remove(&name);
        }
        world.check(&name, world.socket(), self.ledger);
    }
}
