//! Tables, sizes, and commands for several disks or for none.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use snapblk_tests::verify::stamp::SECTOR;

use crate::case::Case;
use crate::model::Job;

/// The most sectors of a disk.
const LARGEST: u64 = 4608;

impl Case {
    /// The names of all devices.
    pub(crate) fn names(&mut self) -> BTreeSet<String> {
        let all = self.quietly("query-devices", &json!({})).expect("the devices");
        let all = all.as_array().expect("an array").iter();
        all.map(|device| device["name"].as_str().expect("a name").to_owned()).collect()
    }

    /// One of the devices that is not held by a job.
    fn any_device(&mut self, of: usize) -> String {
        let devices = self.families[of].devices();
        let free = devices.iter().filter(|(_, wanted)| wanted.image.is_some());
        let names: Vec<String> = free.map(|(name, _)| (*name).to_owned()).collect();
        self.one_of(&names).expect("the disk itself is free")
    }

    pub(crate) fn suspend(&mut self, of: usize) -> bool {
        let name = self.any_device(of);
        let mut arguments = json!({"name": name});
        arguments["noflush"] = json!(self.rng.chance(30));
        self.call("device-suspend", arguments);
        let transient = self.families[of].snaps.get(&name).is_some_and(|snap| snap.transient);
        if !transient && self.rng.chance(15) {
            // It is suspended in the next process, too, whose guests wait.
            self.kill_alone();
            assert_eq!(self.device(&name)["state"], "suspended", "{name}");
        }
        if self.families[of].snaps.contains_key(&name) {
            self.requests(of);
        }
        // A request waits until the device is resumed.
        let waits = name == self.families[of].name;
        if waits {
            let sectors = self.families[of].sectors();
            let first = self.rng.below(sectors - 9);
            let bytes = self.stamped(first, 9);
            let at = first as usize * SECTOR;
            self.note(&format!("to {name}: write {first}+9, which waits"));
            let front = self.fronts[of].as_mut().expect("it is connected");
            front.begin_write(at as u64, &bytes).expect("it is sent");
            self.families[of].top.bytes[at..at + bytes.len()].copy_from_slice(&bytes);
        }
        self.call("device-resume", json!({"name": name}));
        if waits {
            let front = self.fronts[of].as_mut().expect("it is connected");
            let patience = std::time::Duration::from_secs(20);
            front.end(patience).unwrap_or_else(|error| panic!("{name}: {error}"));
        }
        true
    }

    /// Loads a device's own table again.
    pub(crate) fn reload(&mut self, of: usize) -> bool {
        let name = self.any_device(of);
        // A job holds the tables of its disk, and of its layers.
        if self.families[of].job.is_some() && !self.families[of].snaps.contains_key(&name) {
            return false;
        }
        let device = self.device(&name);
        // A layer below others was made read-only.
        let layer = self.families[of].chain.iter().any(|(layer, _)| *layer == name);
        let load = json!({"name": name, "table": device["table"], "read-only": layer});
        self.call("table-load", load);
        if self.rng.chance(25) {
            self.call("table-clear", json!({"name": name}));
        } else if self.rng.chance(50) {
            self.call("device-suspend", json!({"name": name}));
        }
        self.call("device-resume", json!({"name": name}));
        true
    }

    fn load(&mut self, name: &str, table: Value) {
        self.call("table-load", json!({"name": name, "table": table}));
        self.call("device-resume", json!({"name": name}));
    }

    /// Puts a linear device below a disk that is not an origin yet.
    pub(crate) fn stack(&mut self, of: usize) -> bool {
        let family = &self.families[of];
        let (name, sectors) = (family.name.clone(), family.sectors());
        if !family.is_flat() || family.under.len() > 2 {
            return false;
        }
        if family.under.iter().any(|under| under.ends_with("-real")) {
            // A snapshot would need that name again.
            return false;
        }
        let low = format!("{name}-low{}", self.new_number());
        let table = self.table(&name);
        self.call("device-create", json!({"name": low}));
        self.load(&low, table);
        self.load(&name, json!([format!("0 {sectors} linear {low} 0")]));
        self.families[of].under.insert(0, low);
        true
    }

    /// Puts a linear device on top of the disk, through which it is written then, or removes it.
    pub(crate) fn put_on_top(&mut self, of: usize) -> bool {
        let (name, sectors) = (self.families[of].name.clone(), self.families[of].sectors());
        if let Some(over) = self.families[of].over.clone() {
            if self.rng.chance(60) {
                self.call("device-remove", json!({"name": over}));
                self.families[of].over = None;
            } else {
                let mut burst = self.burst();
                let mut bytes = std::mem::take(&mut self.families[of].top.bytes);
                let done = self.exported(&over, true, |disk| Ok(burst.send(disk, &mut bytes)));
                self.note(&format!("to {over}: {}", burst.sent.join(", ")));
                done.unwrap_or_else(|error| panic!("{over}: {error}"));
                self.families[of].top.bytes = bytes;
            }
            return true;
        }
        if matches!(self.families[of].job, Some(Job::Merge { .. })) {
            // Only snapshots may lie on it.
            return false;
        }
        let over = format!("{name}-over{}", self.new_number());
        self.call("device-create", json!({"name": over}));
        self.load(&over, json!([format!("0 {sectors} linear {name} 0")]));
        self.families[of].over = Some(over);
        true
    }

    /// Makes an origin without snapshots linear again.
    pub(crate) fn flatten(&mut self, of: usize) -> bool {
        let family = &self.families[of];
        if !family.is_quiet_origin() || !family.snaps.is_empty() {
            return false;
        }
        let (name, sectors) = (family.name.clone(), family.sectors());
        self.load(&name, json!([format!("0 {sectors} linear {name}-real 0")]));
        self.families[of].origin = false;
        true
    }

    pub(crate) fn resize(&mut self, of: usize) -> bool {
        let family = &self.families[of];
        let grows = family.is_flat() || family.is_quiet_origin() && family.snaps.is_empty();
        let (name, before) = (family.name.clone(), family.sectors());
        let more = 1 + self.rng.below(200);
        // The device on top stays as long as it is.
        if !grows || family.over.is_some() || before + more > LARGEST {
            return false;
        }
        let size = (before + more) as usize * SECTOR;
        self.call("block_resize", json!({"device": name, "size": size}));
        self.families[of].top.bytes.resize(size, 0);
        true
    }

    /// An action on each disk on which one is possible; sometimes given up.
    pub(crate) fn transaction(&mut self, _: usize) -> bool {
        let aborts = self.rng.chance(30);
        let (mut actions, mut effects) = (Vec::new(), Vec::new());
        for of in 0..self.families.len() {
            let (snapshot, overlay) = (self.takes_a_snapshot(of), self.takes_an_overlay(of));
            if snapshot && (!overlay || self.rng.chance(50)) {
                let (data, name, snap) = self.creation(of);
                actions.push(json!({"type": "snapshot-create", "data": data}));
                effects.push((of, name, Some(snap)));
            } else if overlay {
                let (data, name) = self.overlaying(of);
                actions.push(json!({"type": "blockdev-snapshot-sync", "data": data}));
                effects.push((of, name, None));
            }
        }
        if actions.is_empty() {
            return false;
        }
        if aborts {
            let at = self.rng.below(actions.len() as u64 + 1) as usize;
            actions.insert(at, json!({"type": "abort", "data": {}}));
            let refused = self.ask("transaction", &json!({"actions": actions}));
            assert!(refused.is_err(), "it was not given up");
            return true;
        }
        self.call("transaction", json!({"actions": actions}));
        for (of, name, snap) in effects {
            match snap {
                Some(snap) => self.families[of].has_snapshot(name, snap),
                None => self.families[of].has_overlay(name),
            }
        }
        true
    }

    /// A command that is refused: the comparison that follows shows that nothing has changed.
    pub(crate) fn refused(&mut self, of: usize) -> bool {
        let family = self.families[of].clone();
        let name = family.name.as_str();
        let new = format!("{name}-x{}", self.new_number());
        let cow = format!("{new}.cow");
        let create = |device: &str| json!({"device": device, "name": new, "cow": cow});
        let overlay = |device: &str| json!({"device": device, "snapshot-file": cow});
        let mut all = vec![
            ("snapshot-create", json!({"device": name, "name": name, "cow": cow})),
            ("snapshot-delete", json!({"device": name, "snapshot": name})),
            ("device-remove", json!({"name": name, "force": true})),
            ("block_resize", json!({"device": name, "size": 512})),
            ("table-load", json!({"name": name, "table": ["0 8 linear ./none.raw 0"]})),
        ];
        if family.is_overlay() || family.job.is_some() {
            all.push(("snapshot-create", create(name)));
            let larger = (family.sectors() + 8) * SECTOR as u64;
            all.push(("block_resize", json!({"device": name, "size": larger})));
        }
        if family.origin {
            all.push(("block-commit", json!({"device": name})));
        }
        if !family.snaps.is_empty() {
            all.push(("blockdev-snapshot-sync", overlay(name)));
        }
        for snap in family.snaps.keys() {
            all.push(("snapshot-create", create(snap)));
            all.push(("blockdev-snapshot-sync", overlay(snap)));
            all.push(("block-commit", json!({"device": snap})));
        }
        for below in family.under.iter().chain(family.chain.iter().map(|(below, _)| below)) {
            all.push(("device-remove", json!({"name": below})));
            all.push(("snapshot-delete", json!({"device": name, "snapshot": below})));
        }
        let (command, arguments) = self.one_of(&all).expect("there are some");
        let done = self.ask(command, &arguments);
        assert!(done.is_err(), "{command} {arguments} is not refused");
        assert!(!self.scratch.path(&cow).exists(), "{command} {arguments} made a store");
        true
    }
}
