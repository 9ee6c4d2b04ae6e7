//! Disks of a state that the arguments do not name any more.
//!
//! Owns which devices these are, and that the state goes on to hold them, for a start that names them
//! again. Their files are not opened: they may be gone, changed, or served by another process. Never
//! knows how a device is made. Keeps: what commands put on a disk is not forgotten when its files are
//! given to a disk of another name.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::{BaseState, DeviceState, InitialDevice, InitialTable, State, StateError, absolute};
use crate::device::write_cache::Exports;
use crate::io::real_path;
use crate::lines::{TableLine, TargetSpec};

/// Their records.
#[derive(Debug, Default)]
pub(super) struct LeftOut {
    initial: BTreeMap<String, InitialTable>,
    devices: BTreeMap<String, DeviceState>,
    bases: Vec<BaseState>,
    write_through: Exports,
    on_full: BTreeMap<String, u64>,
}

impl DeviceState {
    fn lines(&self) -> Vec<TableLine> {
        let lines = self.table.iter().chain(self.inactive.iter().flatten());
        lines.filter_map(|line| line.parse().ok()).collect()
    }
}

impl State {
    /// Takes the disks out of it that other arguments made, that `named` lacks and that nothing uses
    /// which stays; with them what lies below them alone.
    pub(super) fn take_unnamed(&mut self, named: &[InitialDevice]) -> LeftOut {
        let goes = self.unnamed(named);
        let mut left = LeftOut::default();
        for name in &goes {
            left.initial.extend(self.initial.remove_entry(name));
            left.devices.extend(self.devices.remove_entry(name));
            left.write_through.extend(self.write_through.remove_entry(name));
            left.on_full.extend(self.on_full.remove_entry(name));
        }
        let (gone, there) = (stores(&left.devices), stores(&self.devices));
        let is_theirs =
            |base: &BaseState| gone.contains(&base.store) && !there.contains(&base.store);
        (left.bases, self.bases) = std::mem::take(&mut self.bases).into_iter().partition(is_theirs);
        for name in left.initial.keys() {
            tracing::warn!(
                "the disk '{name}' of the state file is not among the arguments: it is left out, and kept \
                 there for a start that names it"
            );
        }
        left
    }

    fn unnamed(&self, named: &[InitialDevice]) -> BTreeSet<String> {
        let jobs = self.rollbacks.values().map(|job| &job.device);
        let works: Vec<&String> =
            jobs.chain(self.commits.values().map(|job| &job.device)).collect();
        let may_go = |name: &&String| {
            !named.iter().any(|table| table.name == **name) && !works.contains(name)
        };
        let mut goes: BTreeSet<String> = self.devices.keys().filter(may_go).cloned().collect();
        let users = self.users();
        loop {
            // What a command made, and nothing uses, was made to be there.
            let stays = |name: &&String| match users.get(name.as_str()) {
                None => !self.initial.contains_key(*name),
                Some(users) => users.iter().any(|user| !goes.contains(*user)),
            };
            let Some(name) = goes.iter().find(stays).cloned() else { return goes };
            goes.remove(&name);
        }
    }

    /// By device: those whose tables name it.
    pub(super) fn users(&self) -> BTreeMap<String, Vec<&String>> {
        let mut users: BTreeMap<String, Vec<&String>> = BTreeMap::new();
        for (user, device) in &self.devices {
            let lines = device.lines();
            let params = lines.iter().flat_map(|line| line.target.params());
            for below in params.filter_map(|param| param.device()) {
                users.entry(below.to_owned()).or_default().push(user);
            }
        }
        users
    }

    /// Puts their records into it, but for names that others have by now.
    pub(super) fn with_left_out(mut self, left: &LeftOut) -> State {
        for (name, device) in &left.devices {
            if self.devices.contains_key(name) {
                continue;
            }
            self.devices.insert(name.clone(), device.clone());
            add(&mut self.initial, &left.initial, name);
            add(&mut self.write_through, &left.write_through, name);
            add(&mut self.on_full, &left.on_full, name);
        }
        self.bases.extend(left.bases.iter().cloned());
        self
    }
}

impl LeftOut {
    /// Refuses disks under another name over whose files commands made others: they would be served, and
    /// written, below these.
    pub(super) fn refuse_renamed(&self, new: &[&InitialDevice]) -> Result<(), StateError> {
        let changed = self.devices.iter().filter(|(name, device)| {
            let initial = self.initial.get(*name);
            !initial.is_some_and(|initial| device.equals_initial_but_settings(initial))
        });
        for (name, device) in changed {
            let used: Vec<PathBuf> = files(&device.lines(), |_| true);
            for table in new {
                let written = |target: &TargetSpec| target.snapshot().is_none() && !table.read_only;
                let stores = table.lines.iter().filter_map(|line| line.target.snapshot());
                let stores = stores.filter_map(|spec| spec.cow.path()).map(place);
                let all = files(&table.lines, written).into_iter().chain(stores);
                if let Some(file) = all.into_iter().find(|file| used.contains(file)) {
                    let (device, disk) = (name.clone(), table.name.clone());
                    return Err(StateError::Renamed { file, device, disk });
                }
            }
        }
        Ok(())
    }

    /// The files below the stores of `new`, as they were at their last use under another name.
    pub(super) fn bases(&self, new: &[&InitialDevice]) -> Vec<&BaseState> {
        let stores = |table: &&InitialDevice| -> Vec<PathBuf> {
            let specs = table.lines.iter().filter_map(|line| line.target.snapshot());
            specs.filter_map(|spec| spec.cow.path()).map(place).collect()
        };
        let stores: Vec<PathBuf> = new.iter().flat_map(stores).collect();
        let is_of = |base: &&BaseState| stores.contains(&place(Path::new(&base.store)));
        self.bases.iter().filter(is_of).collect()
    }
}

/// What `from` has of `name`.
fn add<T: Clone>(to: &mut BTreeMap<String, T>, from: &BTreeMap<String, T>, name: &str) {
    to.extend(from.get_key_value(name).map(|(name, value)| (name.clone(), value.clone())));
}

/// The stores of `devices`, as bases name them.
fn stores(devices: &BTreeMap<String, DeviceState>) -> BTreeSet<String> {
    let lines = devices.values().flat_map(DeviceState::lines);
    lines.filter_map(|line| Some(line.target.snapshot()?.cow.to_string())).collect()
}

fn place(path: &Path) -> PathBuf {
    absolute(&real_path(path))
}

/// The files that those of `lines` name whose target is as `wanted`.
fn files(lines: &[TableLine], wanted: impl Fn(&TargetSpec) -> bool) -> Vec<PathBuf> {
    let lines = lines.iter().filter(|line| wanted(&line.target));
    let params = lines.flat_map(|line| line.target.params());
    params.filter_map(|param| param.path()).map(place).collect()
}
