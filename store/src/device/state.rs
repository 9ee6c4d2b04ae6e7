//! The state that must survive a restart.
//!
//! Owns the format of the state file (TOML), and what is written to it. Never knows what a table
//! does. A device is kept with its initial table, so that a start with the same arguments is
//! recognised and restores the device's current state. A device that is still as the arguments
//! made it is not kept.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use serde::{Deserialize, Serialize};

use super::build::Active;
use super::core::{Devices, Inner, Loaded};
use super::error::DeviceError;
use super::handover::Lost;
use super::write_cache::Exports;
use crate::io::{FileInfo, OpenMode, real_path};
use crate::lines::{TableLine, TargetSpec, parse_table};
use crate::target::Medium;
use crate::units::Sector;

mod bases;
mod beside;
mod classify;
mod error;
mod file;
mod initial;
mod left_out;
mod names;
mod older;
mod only_read;
mod others;
mod restore;
mod sole;
mod text;

pub(super) use bases::sync_times;
use bases::{BaseState, bases, what_it_is};
use beside::put_back;
pub use classify::{StateContent, classify_state, classify_state_ignoring_settings};
pub use error::StateError;
pub(super) use file::StateFile;
use left_out::LeftOut;
pub use names::{place_of_state, refuse_state_name};
pub use only_read::is_only_read;

/// The version of the format.
const VERSION: u32 = 1;

pub(super) const POISONED: &str = "state file lock poisoned";

/// One device.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct DeviceState {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    uuid: Option<String>,
    #[serde(default)]
    suspended: bool,
    #[serde(default)]
    read_only: bool,
    #[serde(default)]
    table: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    inactive: Option<Vec<String>>,
    #[serde(default)]
    inactive_read_only: bool,
    /// A resume failed with it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    inactive_failed: bool,
    /// Lines of the table whose stores were lost, and why.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    lost: Vec<(usize, Lost)>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    inactive_lost: Vec<(usize, Lost)>,
    /// Bytes in its store beyond which an event is sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    write_threshold: Option<u64>,
    /// It is removed, and only waits for its stores to be taken over.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    removed: bool,
}

/// The content of a state file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct State {
    version: u32,
    /// The number of times that it was written.
    generation: u64,
    /// Paths are escaped in lines.
    #[serde(default)]
    escaped: bool,
    /// The state of its disks is in this other file: as seen from this one's directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    kept_in: Option<PathBuf>,
    /// The tables that the arguments of the program gave to devices.
    #[serde(default, rename = "first")]
    initial: BTreeMap<String, InitialTable>,
    /// Stores that are invalid although their headers, which could not be written, do not say so.
    #[serde(default)]
    invalid: BTreeSet<PathBuf>,
    /// Exports whose guests turned their write cache off, and do not repeat it; by device.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    write_through: Exports,
    /// How long writes that find no room wait, in milliseconds, where a message said so; by device.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    on_full: BTreeMap<String, u64>,
    #[serde(default)]
    devices: BTreeMap<String, DeviceState>,
    #[serde(default, rename = "jobs")]
    rollbacks: BTreeMap<String, RollbackJob>,
    #[serde(default)]
    commits: BTreeMap<String, CommitJob>,
    #[serde(default)]
    bases: Vec<BaseState>,
}

/// How the user wants a job to run and to end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct JobSettings {
    /// The limit in bytes per second; 0 for none.
    pub speed: u64,
    /// Whether the job ends without a command.
    pub auto_finalize: bool,
    /// Whether the job is removed from the list when it has ended.
    pub auto_dismiss: bool,
    /// The user paused it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub paused: bool,
}

/// A rollback that runs as a job, to be started again after a restart.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct RollbackJob {
    /// The device that merges.
    pub device: String,
    /// The name of the snapshot's former device.
    pub snapshot: String,
    /// The path of its store.
    pub cow: String,
    /// Its settings.
    #[serde(flatten)]
    pub settings: JobSettings,
    /// It stopped before its end, and the device still has the merging table.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub halted: Option<Halt>,
}

/// Why a rollback stopped before its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Halt {
    /// The user cancelled its job: it continues only when the command is given again.
    Cancelled,
    /// It failed: it is retried when the device is resumed, at the next start, and when the command
    /// is given again.
    Failed,
}

/// A commit that runs as a job, to be started again after a restart.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct CommitJob {
    /// The device whose chain it is.
    pub device: String,
    /// The highest layer that is committed; the device itself if missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub top: Option<String>,
    /// The layer that receives the data; the lowest if missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base: Option<String>,
    /// The user has completed it: the device's own store is committed into the base, too.
    #[serde(default)]
    pub pivoted: bool,
    /// Its settings.
    #[serde(flatten)]
    pub settings: JobSettings,
    /// The files that it writes below all stores: they change while it runs. Set when it begins.
    #[serde(default)]
    pub writes: Vec<PathBuf>,
    /// The stores of overlays that it put on top, to be removed once they have left the chain.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub overlays: Vec<PathBuf>,
    /// It stopped after the user had completed it: the store that its device still merges into the
    /// base. It goes on when the device is resumed, at the next start, and when the command is given
    /// again.
    #[serde(default, rename = "halted", skip_serializing_if = "Option::is_none")]
    pub halted_merging: Option<String>,
}

/// A device as the program's arguments made it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct InitialTable {
    table: Vec<String>,
    #[serde(default)]
    read_only: bool,
}

impl InitialTable {
    fn of(table: &InitialDevice) -> InitialTable {
        InitialTable { table: texts(&table.lines), read_only: table.read_only }
    }

    /// Whether this and `other` differ only in the length of the last line.
    fn differs_in_length(&self, other: &InitialTable) -> bool {
        let lengthless = |lines: &[String]| -> Option<Vec<TableLine>> {
            let mut lines = parse_table(lines.iter().map(String::as_str)).ok()?;
            lines.last_mut()?.len = Sector(0);
            Some(lines)
        };
        let same = lengthless(&self.table) == lengthless(&other.table);
        same && self.read_only == other.read_only
    }
}

/// The file of the last line, if it is shorter than that line needs: its path, the needed size, and
/// its size, in bytes.
fn too_short(initial: &InitialTable) -> Option<(PathBuf, u64, u64)> {
    let line: TableLine = initial.table.last()?.parse().ok()?;
    let (below, offset) = match &line.target {
        TargetSpec::Linear { dev, offset } => (dev, offset.bytes()),
        TargetSpec::Snapshot(spec) | TargetSpec::Merge(spec) => (&spec.origin, 0),
        TargetSpec::Origin { origin } => (origin, 0),
        TargetSpec::Zero | TargetSpec::Error => return None,
    };
    let path = below.path()?;
    let has = FileInfo::open(path, OpenMode::ReadOnly, false).ok()?.len;
    let needs = offset + line.len.bytes();
    (has < needs).then(|| (path.to_owned(), needs, has))
}

impl std::fmt::Display for InitialTable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.table.join("; "))?;
        f.write_str(if self.read_only { " (read-only)" } else { "" })
    }
}

fn texts(lines: &[TableLine]) -> Vec<String> {
    lines.iter().map(TableLine::to_string).collect()
}

fn size_of(lines: &[TableLine]) -> Sector {
    lines.last().map_or(Sector(0), |line| Sector(line.start.0 + line.len.0))
}

fn pairs(lost: &BTreeMap<usize, Lost>) -> Vec<(usize, Lost)> {
    lost.iter().map(|(line, lost)| (*line, *lost)).collect()
}

impl DeviceState {
    fn active(&self) -> Result<Option<Loaded>, DeviceError> {
        if self.table.is_empty() {
            return Ok(None);
        }
        Self::loaded(&self.table, self.read_only, &self.lost).map(Some)
    }

    fn inactive(&self) -> Result<Option<Loaded>, DeviceError> {
        let Some(lines) = &self.inactive else { return Ok(None) };
        let loaded = Self::loaded(lines, self.inactive_read_only, &self.inactive_lost)?;
        Ok(Some(Loaded { failed: self.inactive_failed, ..loaded }))
    }

    fn loaded(
        lines: &[String],
        read_only: bool,
        lost: &[(usize, Lost)],
    ) -> Result<Loaded, DeviceError> {
        let lines = parse_table(lines.iter().map(String::as_str))?;
        let lost = lost.iter().copied().collect();
        Ok(Loaded { lost, ..Loaded::of(lines, read_only) })
    }
}

impl State {
    /// Whether the device's present table fits into `table`: arguments that use a file's whole
    /// length give another table once the disk, or only the file, has grown. A device that was
    /// removed, or made anew, has none.
    fn is_within(&self, table: &InitialDevice) -> bool {
        let device = self.devices.get(&table.name);
        let Some(device) = device.filter(|device| !device.table.is_empty()) else { return true };
        let lines = parse_table(device.table.iter().map(String::as_str));
        let (now, given) = (lines.map(|lines| size_of(&lines)), size_of(&table.lines));
        if now.as_ref().is_ok_and(|now| *now < given) {
            let name = &table.name;
            tracing::warn!(
                "there is room for {given} sectors below '{name}', which stays as large as it was \
                 until 'block_resize'"
            );
        }
        now.is_ok_and(|now| now <= given)
    }

    /// The state to be kept for `inner`, with the tables of `next` in place of those that they
    /// replace.
    pub(super) fn of(
        devices: &Devices,
        inner: &Inner,
        next: &BTreeMap<String, Option<Active>>,
    ) -> State {
        let mut state = State { version: VERSION, escaped: true, ..State::default() };
        let names = inner.devices.keys().chain(next.keys());
        // The layers of a chain have one base, and a guest may wait.
        let mut seen = BTreeMap::new();
        // Their files are looked at: nobody who keeps something else waits for that.
        let known = inner.state.file().bases().to_vec();
        let flusher = &*devices.config.flusher;
        let look = |info: &FileInfo, medium: &Arc<Medium>| {
            *seen.entry(medium.file).or_insert_with(|| what_it_is(info, medium, &known, flusher))
        };
        let mut merging = BTreeSet::new();
        for name in names {
            let active = match next.get(name) {
                Some(None) => continue,
                Some(next) => next.as_ref(),
                None => inner.devices.get(name).and_then(|device| device.active.as_ref()),
            };
            let device = inner.devices.get(name);
            let inactive = device.and_then(|device| device.inactive.as_ref());
            state.devices.insert(
                name.clone(),
                DeviceState {
                    uuid: device.and_then(|device| device.uuid.clone()),
                    suspended: device.is_some_and(|device| device.suspended),
                    read_only: active.is_some_and(|active| active.read_only),
                    table: active.map(|active| texts(&active.lines)).unwrap_or_default(),
                    inactive: inactive.map(|loaded| texts(&loaded.lines)),
                    inactive_read_only: inactive.is_some_and(|loaded| loaded.read_only),
                    inactive_failed: inactive.is_some_and(|loaded| loaded.failed),
                    lost: active.map(|active| pairs(&active.lost)).unwrap_or_default(),
                    inactive_lost: inactive.map(|loaded| pairs(&loaded.lost)).unwrap_or_default(),
                    write_threshold: active
                        .and_then(Active::only_store)
                        .and_then(|live| live.store.write_threshold()),
                    removed: device.is_some_and(|device| device.removed),
                },
            );
            if active.is_some_and(Active::is_merging) {
                merging.insert(name.as_str());
            }
        }
        state.bases = bases(devices, inner, next, look);
        state.initial = inner.state.initial.clone();
        state.rollbacks = inner.state.rollbacks.clone();
        // If another table was loaded, there is no merge to continue.
        state.rollbacks.retain(|_, job| merging.contains(job.device.as_str()));
        state.commits = inner.state.commits.clone();
        let merges = |job: &CommitJob| merging.contains(job.device.as_str());
        state.commits.retain(|_, job| job.halted_merging.is_none() || merges(job));
        state.with_left_out(&inner.state.left_out)
    }

    /// Whether the state that was kept last lacks a file that has become a base: guests wrote it until
    /// the tables changed.
    pub(super) fn lacks_a_base(devices: &Devices, inner: &Inner) -> bool {
        let file = inner.state.file();
        if !file.is_kept() {
            return false;
        }
        let known = file.kept_bases();
        let is_new = |base: &BaseState| !known.contains(&(&*base.store, &*base.path));
        bases(devices, inner, &BTreeMap::new(), |_, _| Some((0, 0))).iter().any(is_new)
    }

    /// The same state with the devices `names` not suspended.
    pub(super) fn serving(mut self, names: &[String]) -> State {
        for name in names {
            if let Some(device) = self.devices.get_mut(name) {
                device.suspended = false;
            }
        }
        self
    }
}

/// What is kept besides the devices, and where.
#[derive(Debug)]
pub(super) struct Kept {
    initial: BTreeMap<String, InitialTable>,
    pub(super) rollbacks: BTreeMap<String, RollbackJob>,
    pub(super) commits: BTreeMap<String, CommitJob>,
    left_out: LeftOut,
    /// Locked last, and for no other I/O than its own.
    file: Arc<Mutex<StateFile>>,
}

impl Kept {
    pub(super) fn at(path: Option<PathBuf>) -> Kept {
        let file = Arc::new(Mutex::new(StateFile::new(path)));
        let (initial, rollbacks, commits) = Default::default();
        Kept { initial, rollbacks, commits, left_out: LeftOut::default(), file }
    }

    /// The file, for those who do not hold the devices.
    pub(super) fn shared_file(&self) -> Arc<Mutex<StateFile>> {
        self.file.clone()
    }

    /// The file.
    pub(super) fn file(&self) -> MutexGuard<'_, StateFile> {
        self.file.lock().expect(POISONED)
    }

    /// Whether the program's arguments gave `path` to a device as a plain file that it may write.
    pub(super) fn gave_to_write(&self, path: &Path) -> bool {
        let lines =
            self.initial.values().filter(|initial| !initial.read_only).flat_map(|f| &f.table);
        lines.filter_map(|line| line.parse::<TableLine>().ok()).any(|line| match &line.target {
            TargetSpec::Linear { dev, .. } => {
                dev.path().is_some_and(|given| absolute(given) == absolute(path))
            }
            _ => false,
        })
    }

    /// Whether a command began the job `id`, and a restart goes on with it.
    pub(super) fn has_job(&self, id: &str) -> bool {
        self.rollbacks.contains_key(id) || self.commits.contains_key(id)
    }

    /// The settings of the job `id`, if it has not halted: the record of one that has may be that of another
    /// job, which had the name before.
    pub(super) fn settings_mut(&mut self, id: &str) -> Option<&mut JobSettings> {
        let rollback = self.rollbacks.get_mut(id).filter(|job| job.halted.is_none());
        let commit = self.commits.get_mut(id).filter(|job| job.halted_merging.is_none());
        rollback.map(|job| &mut job.settings).or(commit.map(|job| &mut job.settings))
    }
}

/// A device as the program's arguments define it.
#[derive(Clone, Debug)]
pub struct InitialDevice {
    /// Its name.
    pub name: String,
    /// Its lines.
    pub lines: Vec<TableLine>,
    /// Whether it refuses writes.
    pub read_only: bool,
}

/// The store's path as given, and the path that it links to.
fn names_of(path: &Path) -> [PathBuf; 2] {
    [absolute(path), absolute(&real_path(path))]
}

fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

/// Whether there is no header at `path`.
fn has_no_header(path: &Path) -> bool {
    use std::io::Read;
    let mut magic = [0; 4];
    let read = std::fs::File::open(path).and_then(|mut file| file.read_exact(&mut magic));
    read.is_err() || magic == [0; 4]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As every version has written it, and must read it.
    #[test]
    fn jobs_are_written_as_they_were_by_earlier_versions() {
        let text = r#"version = 1
generation = 2
escaped = true
invalid = []
bases = []

[first]

[devices]

[jobs.back]
device = "disk"
snapshot = "snap"
cow = "/store"
speed = 5
auto-finalize = true
auto-dismiss = false
paused = true
halted = "failed"

[commits.down]
device = "other"
top = "upper"
base = "lower"
pivoted = true
speed = 0
auto-finalize = false
auto-dismiss = true
writes = ["/base"]
halted = "/merged"
"#;
        let state: State = toml::from_str(text).unwrap();
        let (back, down) = (&state.rollbacks["back"], &state.commits["down"]);
        let settings =
            JobSettings { speed: 5, auto_finalize: true, auto_dismiss: false, paused: true };
        assert_eq!((back.settings, back.halted), (settings, Some(Halt::Failed)));
        assert_eq!(down.settings, JobSettings { auto_dismiss: true, ..JobSettings::default() });
        assert_eq!(down.halted_merging.as_deref(), Some("/merged"));
        assert_eq!(toml::to_string_pretty(&state).unwrap(), text);
    }
}
