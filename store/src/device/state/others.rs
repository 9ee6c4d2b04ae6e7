//! States of the arguments' disks besides the one that is used.
//!
//! Owns what becomes of them: they say no more than the arguments, and must not be taken for the present
//! state later, when the one that is used says more. So each is replaced by one that only names it. Never
//! knows how they were found. Keeps: the state that is named is durable before; until all name it, nobody
//! serves the disks.

use std::path::{Component, Path, PathBuf};

use super::{
    BaseState, InitialDevice, State, StateError, StateFile, VERSION, absolute, has_no_header,
};
use crate::cow::Persistence;
use crate::device::core::Devices;
use crate::io::real_path;
use crate::lines::TableLine;

/// Those of a start.
#[derive(Default)]
pub(super) struct Others {
    /// Those that are not used; their locks are held.
    files: Vec<StateFile>,
    /// What they say, and what the states say that files name which only do that.
    states: Vec<State>,
}

impl Others {
    /// Nothing where it is gone.
    fn read(&mut self, path: &Path) -> Result<(), StateError> {
        let mut file = StateFile::new(Some(path.to_owned()));
        file.wait_for_others().map_err(unused)?;
        match file.read().map_err(unused)? {
            None => {}
            // The process that had it was told more since it was looked at.
            Some(state) if state.has_changes() => {
                return Err(StateError::Foreign { path: path.to_owned() });
            }
            Some(state) => {
                self.states.extend(state.followed(path)?);
                self.files.push(file);
            }
        }
        Ok(())
    }

    /// Refuses to make a store of `disks` anew that one of the states knows.
    pub(super) fn refuse_lost_stores(&self, disks: &[&InitialDevice]) -> Result<(), StateError> {
        let known = self.states.iter().flat_map(|state| state.devices.values());
        let known: Vec<TableLine> =
            known.flat_map(|device| &device.table).filter_map(|line| line.parse().ok()).collect();
        let stores = |lines: &[TableLine]| -> Vec<PathBuf> {
            let specs = lines.iter().filter_map(|line| line.target.snapshot());
            let kept = specs.filter(|spec| spec.persistence != Persistence::Transient);
            kept.filter_map(|spec| spec.cow.path()).map(Path::to_owned).collect()
        };
        let known: Vec<PathBuf> = stores(&known).iter().map(|store| absolute(store)).collect();
        for disk in disks {
            let lost = |store: &PathBuf| known.contains(&absolute(store)) && has_no_header(store);
            if let Some(store) = stores(&disk.lines).into_iter().find(lost) {
                return Err(StateError::StoreGone { store, device: disk.name.clone() });
            }
        }
        Ok(())
    }

    /// The files below the stores of `disks`, which the state that is used does not know.
    pub(super) fn bases(&self, disks: &[&InitialDevice]) -> Result<Vec<&BaseState>, StateError> {
        let mut bases = Vec::new();
        for disk in disks {
            let specs = disk.lines.iter().filter_map(|line| line.target.snapshot());
            let place = |path: &Path| absolute(&real_path(path));
            let stores = specs.filter_map(|spec| spec.cow.path()).map(place);
            let stores: Vec<PathBuf> = stores.collect();
            // A store may have got another base since: then nothing is known of that one.
            let params = disk.lines.iter().flat_map(|line| line.target.params());
            let files: Vec<PathBuf> = params.filter_map(|p| p.path()).map(place).collect();
            for state in &self.states {
                // Another error means that it knows other disks, or these by other names.
                if let Err(error @ StateError::Shorter { .. }) = state.knows(disk) {
                    return Err(error);
                }
                let is_of = |base: &&BaseState| {
                    stores.contains(&place(Path::new(&base.store)))
                        && files.contains(&place(&base.path))
                };
                bases.extend(state.bases.iter().filter(is_of));
            }
        }
        Ok(bases)
    }
}

/// The state of the disks of `file` is at `used` from now on.
fn refer(mut file: StateFile, used: &Path) -> Result<(), StateError> {
    let Some(path) = &file.path else { return Ok(()) };
    let place = |path: &Path| path.canonicalize().unwrap_or_else(|_| absolute(path));
    let used = place(used);
    // Both may be moved together.
    let kept_in = from(place(path).parent().unwrap_or(Path::new("/")), &used);
    file.keep(State { version: VERSION, kept_in: Some(kept_in), ..State::default() })
        .map_err(unused)
}

/// What is wrong with a state that nobody asked for needs an explanation.
fn unused(error: StateError) -> StateError {
    match error {
        StateError::Io { what, path, source } => StateError::Unused { what, path, source },
        other => other,
    }
}

/// The path of `there`, as it is seen from the directory `here`; both are absolute.
fn from(here: &Path, there: &Path) -> PathBuf {
    let shared = here.components().zip(there.components()).take_while(|(a, b)| a == b).count();
    let up = here.components().skip(shared).map(|_| Component::ParentDir);
    up.chain(there.components().skip(shared)).collect()
}

impl State {
    /// The state that this one, at `path`, names; itself if it names none.
    pub(super) fn followed(self, path: &Path) -> Result<Option<State>, StateError> {
        match &self.kept_in {
            Some(kept_in) => StateFile::new(Some(seen_from(path, kept_in))).read(),
            None => Ok(Some(self)),
        }
    }
}

/// The path that the state at `path` calls `kept_in`.
pub(super) fn seen_from(path: &Path, kept_in: &Path) -> PathBuf {
    path.parent().unwrap_or(Path::new("")).join(kept_in)
}

impl Devices {
    /// Before a start: the states at `others` say no more than the arguments, and shall name the one that
    /// is used.
    pub fn replaces_states(&self, others: Vec<PathBuf>) {
        self.state_file().others = others;
    }
}

impl StateFile {
    /// The others, where this one says `kept`.
    pub(super) fn read_others(&self, kept: Option<&State>) -> Result<Others, StateError> {
        let mut others = Others::default();
        if let (Some(path), Some(state)) = (&self.path, kept.filter(|kept| kept.kept_in.is_some()))
        {
            others.states.extend(state.clone().followed(path)?);
        }
        self.others.iter().try_for_each(|path| others.read(path))?;
        Ok(others)
    }

    /// Makes `others` name this one, if there is one.
    pub(super) fn replace(&self, others: Others) -> Result<(), StateError> {
        let Some(path) = self.path.as_ref().filter(|_| self.kept.is_some()) else { return Ok(()) };
        others.files.into_iter().try_for_each(|file| refer(file, path))
    }
}
