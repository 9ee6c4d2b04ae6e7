//! What a state file says to the disks of a start, before one is chosen.
//!
//! Owns how a state stands to disks: whether it knows them, and whether it says more of them than their
//! arguments. Never changes one, and never knows which one is chosen. Keeps: a state that cannot be read
//! counts as one that says more.

use std::path::{Path, PathBuf};

use super::others::seen_from;
use super::{FirstTable, State, StateFile};

/// What a state file is to disks of the arguments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StateSays {
    /// Nothing: there is none, or it has only settings of other disks.
    Nothing,
    /// No more than the arguments that it was made with.
    Given {
        /// Whether it knows one of the disks by its name and first table.
        known: bool,
    },
    /// What commands or guests changed; assumed of one that cannot be read.
    More {
        /// Whether it knows one of the disks by its name and first table.
        known: bool,
    },
    /// That the disks' state is in this other file, which is gone, or says more of them than the arguments.
    KeptIn(PathBuf),
}

/// What the state file `path` says to `disks`, of which it lies beside files of those in `beside`.
pub fn state_says(path: &Path, disks: &[&FirstTable], beside: &[&FirstTable]) -> StateSays {
    let read = |path: &Path| StateFile::new(Some(path.to_owned())).read();
    let state = match read(path) {
        Ok(Some(state)) => state,
        Ok(None) => return StateSays::Nothing,
        Err(_) => return StateSays::More { known: true },
    };
    if let Some(kept_in) = &state.kept_in {
        let there = seen_from(path, kept_in);
        return match read(&there) {
            // Nothing is known of whom it was for.
            _ if beside.is_empty() => StateSays::Given { known: false },
            Ok(Some(other)) if beside.iter().all(|disk| other.leaves(disk)) => {
                StateSays::Given { known: false }
            }
            _ => StateSays::KeptIn(there),
        };
    }
    // Where no device is kept, it may be a guest's write cache.
    let has_setting = |disk: &&&FirstTable| state.has_setting_of(&disk.name);
    let is_same = |disk: &&&FirstTable| StateFile::same_first(&state, disk).unwrap_or(false);
    let only_settings = state.is_given() && state.devices.is_empty();
    match only_settings {
        true if disks.iter().any(|disk| has_setting(&disk)) => StateSays::More { known: true },
        true => StateSays::Nothing,
        false if state.adds() => StateSays::More { known: disks.iter().any(|disk| is_same(&disk)) },
        false => StateSays::Given { known: disks.iter().any(|disk| is_same(&disk)) },
    }
}

impl State {
    /// Whether it says more of its disks than the arguments that it was made with.
    pub(super) fn adds(&self) -> bool {
        !self.is_as_given() || self.has_settings()
    }

    /// Whether it knows `disk`, and leaves it as its arguments made it.
    fn leaves(&self, disk: &FirstTable) -> bool {
        let works = self.jobs.values().map(|job| &job.device);
        let works = works.chain(self.commits.values().map(|job| &job.device));
        self.is_as_first(&disk.name)
            && works.into_iter().all(|device| *device != disk.name)
            && self.invalid.is_empty()
            && !self.has_setting_of(&disk.name)
            && StateFile::same_first(self, disk).unwrap_or(false)
    }
}
