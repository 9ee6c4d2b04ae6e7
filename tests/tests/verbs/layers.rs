//! Chains of overlays: new layers, and commits of layers.

use serde_json::{Value, json};

use crate::case::Case;
use crate::look::job_of;
use crate::model::{Family, Job};

/// The most layers below the active one.
const MOST: usize = 6;

impl Case {
    /// Whether an overlay can be put on the disk.
    pub(crate) fn takes_an_overlay(&self, of: usize) -> bool {
        let family = &self.families[of];
        family.snaps.is_empty() && family.job.is_none() && family.chain.len() < MOST
    }

    /// Arguments of `blockdev-snapshot-sync`, and the name of the layer below.
    pub(crate) fn overlaying(&mut self, of: usize) -> (Value, String) {
        let number = self.new_number();
        let device = self.families[of].name.clone();
        let store = self.scratch.path(&format!("{device}-o{number}.cow"));
        let mut arguments = json!({"device": device, "snapshot-file": store});
        let taken: Vec<&String> = self.families[of].chain.iter().map(|(name, _)| name).collect();
        let free = |number: &u32| !taken.contains(&&format!("{device}.{number}"));
        let number = (1..).find(free).expect("there are enough numbers");
        let mut name = format!("{device}.{number}");
        if self.rng.chance(30) {
            name = format!("{device}-l{}", self.new_number());
            arguments["snapshot-node-name"] = json!(name);
        }
        (arguments, name)
    }

    pub(crate) fn overlay(&mut self, of: usize) -> bool {
        if !self.takes_an_overlay(of) {
            return false;
        }
        let (arguments, name) = self.overlaying(of);
        self.call("blockdev-snapshot-sync", arguments);
        self.families[of].has_overlay(name);
        true
    }

    pub(crate) fn commit(&mut self, of: usize) -> bool {
        self.begin_commit(of, 0) && {
            self.until_job(of, true);
            true
        }
    }

    pub(crate) fn commit_slowly(&mut self, of: usize) -> bool {
        let speed = self.slow();
        self.maybe_suspended(of, |case| case.begin_commit(of, speed))
    }

    fn begin_commit(&mut self, of: usize, speed: u64) -> bool {
        let (device, id) = (self.families[of].name.clone(), job_of(&self.families[of]));
        let (layers, golden) = (self.families[of].chain.len(), self.families[of].golden.is_some());
        if layers == 0 || self.families[of].job.is_some() {
            return false;
        }
        let mut arguments = json!({"device": device, "job-id": id, "speed": speed});
        arguments["auto-finalize"] = json!(self.rng.chance(80));
        let base = self.rng.below(layers as u64) as usize;
        let name = |at: usize| self.families[of].chain[at].0.clone();
        // The golden image is the base if none is given.
        if base > 0 || golden {
            arguments["base-node"] = json!(name(base));
        }
        let above = layers - 1 - base;
        let mut top = None;
        if above > 0 && self.rng.chance(60) {
            let at = base + 1 + self.rng.below(above as u64) as usize;
            arguments["top-node"] = json!(self.families[of].chain[at].0);
            top = Some(at);
        }
        self.call("block-commit", arguments);
        self.families[of].job = Some(Job::Commit { top, base, ready: false });
        true
    }

    pub(crate) fn complete(&mut self, of: usize) -> bool {
        if !matches!(self.families[of].job, Some(Job::Commit { ready: true, .. })) {
            return false;
        }
        let id = job_of(&self.families[of]);
        // After a restart it becomes ready again.
        self.until_job(of, true);
        let family = &self.families[of];
        let into_file = matches!(family.job, Some(Job::Commit { base: 0, .. }));
        if family.over.is_some() && into_file && family.golden.is_none() {
            // What merges into a file has only snapshots on it; the job stays ready.
            let refused = self.ask("job-complete", &json!({"id": id}));
            assert!(refused.is_err_and(|error| error.contains("only snapshots can lie on it")));
            return true;
        }
        self.call("job-complete", json!({"id": id}));
        if self.rng.chance(30) {
            self.requests(of);
        }
        if self.rng.chance(20) {
            // It goes on in the next process.
            self.kill_alone();
        }
        self.until_job(of, false);
        true
    }
}

impl Family {
    /// An overlay was put on it.
    pub(crate) fn has_overlay(&mut self, below: String) {
        self.origin = false;
        self.chain.push((below, self.top.clone()));
    }
}
