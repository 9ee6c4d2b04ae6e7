//! Snapshots of origins: their creation, deletion, handover, and rollbacks.

use serde_json::{Value, json};

use crate::case::Case;
use crate::look::job_of;
use crate::model::{Family, Job, Snap};

/// The most snapshots of a disk.
const MOST: usize = 4;

impl Case {
    /// Whether a snapshot of the disk can be taken.
    pub(crate) fn takes_a_snapshot(&self, of: usize) -> bool {
        let family = &self.families[of];
        (family.is_flat() || family.is_quiet_origin()) && family.snaps.len() < MOST
    }

    /// Arguments of `snapshot-create`, and the snapshot in the model.
    pub(crate) fn creation(&mut self, of: usize) -> (Value, String, Snap) {
        let number = self.new_number();
        let family = &self.families[of];
        let (device, name) = (family.name.clone(), format!("{}-s{number}", family.name));
        let image = family.top.clone();
        let persistent = ["P", "PO", "PO", "N"][self.rng.below(4) as usize];
        let arguments = json!({
            "device": device, "name": name, "cow": format!("{name}.cow"),
            "chunk-size": self.chunk(), "persistent": persistent,
        });
        if persistent == "N" {
            self.in_memory.push(self.scratch.path(&format!("{name}.cow")));
        }
        (arguments, name, Snap { image, transient: persistent == "N" })
    }

    pub(crate) fn create(&mut self, of: usize) -> bool {
        if !self.takes_a_snapshot(of) {
            return false;
        }
        let (arguments, name, snap) = self.creation(of);
        self.call("snapshot-create", arguments);
        self.families[of].has_snapshot(name, snap);
        true
    }

    pub(crate) fn delete(&mut self, of: usize) -> bool {
        let Some(name) = self.snapshot(of, true) else { return false };
        let device = self.families[of].name.clone();
        let delete_store = self.rng.chance(50);
        let arguments = json!({"device": device, "snapshot": name, "delete-store": delete_store});
        self.call("snapshot-delete", arguments);
        self.families[of].snaps.remove(&name);
        assert!(!delete_store || !self.scratch.path(&format!("{name}.cow")).exists());
        true
    }

    pub(crate) fn merge(&mut self, of: usize) -> bool {
        self.begin_merge(of, 0) && {
            self.until_job(of, false);
            true
        }
    }

    pub(crate) fn merge_slowly(&mut self, of: usize) -> bool {
        // Nothing waits for its end.
        let speed = self.slow() / 4;
        self.maybe_suspended(of, |case| case.begin_merge(of, speed))
    }

    fn begin_merge(&mut self, of: usize, speed: u64) -> bool {
        if !self.families[of].is_quiet_origin() {
            return false;
        }
        let Some(name) = self.snapshot(of, false) else { return false };
        let (device, id) = (self.families[of].name.clone(), job_of(&self.families[of]));
        let finalize = self.rng.chance(80);
        let arguments = json!({
            "device": device, "snapshot": name, "job-id": id, "speed": speed,
            "auto-finalize": finalize,
        });
        if self.families[of].over.is_some() {
            let refused = self.ask("snapshot-merge", &arguments);
            assert!(refused.is_err_and(|error| error.contains("only snapshots can lie on it")));
            return true;
        }
        self.call("snapshot-merge", arguments);
        let family = &mut self.families[of];
        family.top = family.snaps.remove(&name).expect("it is there").image;
        family.job = Some(Job::Merge { snapshot: name, runs: true });
        true
    }

    /// Continues a rollback that was cancelled.
    pub(crate) fn merge_again(&mut self, of: usize) -> bool {
        let (device, id) = (self.families[of].name.clone(), job_of(&self.families[of]));
        let Some(Job::Merge { snapshot, runs: false }) = self.families[of].job.clone() else {
            return false;
        };
        let speed = if self.rng.chance(30) { self.slow() } else { 0 };
        let arguments =
            json!({"device": device, "snapshot": snapshot, "job-id": id, "speed": speed});
        self.call("snapshot-merge", arguments);
        self.families[of].job = Some(Job::Merge { snapshot, runs: true });
        if speed == 0 {
            self.until_job(of, false);
        }
        true
    }

    /// Moves a snapshot's store to a new device.
    pub(crate) fn hand_over(&mut self, of: usize) -> bool {
        let Some(old) = self.snapshot(of, true) else { return false };
        let number = self.new_number();
        let new = format!("{}-h{number}", self.families[of].name);
        let table = self.table(&old);
        self.call("device-create", json!({"name": new}));
        self.call("table-load", json!({"name": new, "table": table}));
        self.call("device-suspend", json!({"name": old}));
        // Whether the origin is written meanwhile, and whether the old device is removed first.
        let (writes, first) = (self.rng.chance(50), self.rng.chance(30));
        if first {
            self.call("device-remove", json!({"name": old}));
        }
        if writes {
            self.requests(of);
        }
        self.call("device-resume", json!({"name": new}));
        let snap = self.families[of].snaps.remove(&old).expect("it is there");
        let transient = snap.transient;
        self.families[of].snaps.insert(new, snap);
        if !transient && self.rng.chance(20) {
            self.kill_alone();
        }
        if !first {
            self.call("device-remove", json!({"name": old}));
        }
        true
    }
}

impl Family {
    /// A snapshot of it was taken.
    pub(crate) fn has_snapshot(&mut self, name: String, snap: Snap) {
        let real = format!("{}-real", self.name);
        if !self.origin && !self.under.contains(&real) {
            self.under.insert(0, real);
        }
        self.origin = true;
        self.snaps.insert(name, snap);
    }
}
