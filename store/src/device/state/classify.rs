//! What a state file says to the disks of a start, before one is chosen.
//!
//! Owns how a state stands to disks: whether it knows them, and whether it says more of them than their
//! arguments. Never changes one, and never knows which one is chosen. Keeps: a state that cannot be read
//! counts as one that was changed.
//!
//! All comparisons with what the arguments made, which the initial tables in the state say. "Jobs" stands
//! for jobs and stores that are known to be invalid; settings of a device's record are its threshold and
//! whether it is suspended, those besides are write caches and time limits.
//!
//! | predicate | of | jobs | settings in records | settings besides |
//! | --- | --- | --- | --- | --- |
//! | `is_initial` | one disk | allowed | none | allowed |
//! | `is_initial_but_settings` | one disk | allowed | allowed | allowed |
//! | `leaves_unchanged` | one disk | none | none | none |
//! | `all_initial` | all disks | none | none | allowed |
//! | `has_changes`, negated | all disks | none | none | none |
//! | `is_reproducible`: no stores, either | all disks | none | none | allowed |

use std::path::{Path, PathBuf};

use super::others::seen_from;
use super::{InitialDevice, State, StateError, StateFile};

/// What a state file is to disks of the arguments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StateContent {
    /// Nothing about them: there is none, or it has only settings of other disks.
    Unrelated,
    /// No more than the arguments that it was made with.
    Redundant {
        /// Whether it knows one of the disks by its name and initial table.
        names_disk: bool,
    },
    /// What commands or guests changed; assumed of one that cannot be read.
    Changed {
        /// Whether it knows one of the disks by its name and initial table.
        names_disk: bool,
    },
    /// Their state is in this other file, which is gone, or says more of them than the arguments.
    Elsewhere(PathBuf),
}

/// What the state file `path` is to `disks`, of which it lies beside files of those in `beside`.
pub fn classify_state(
    path: &Path,
    disks: &[&InitialDevice],
    beside: &[&InitialDevice],
) -> StateContent {
    classify(path, disks, beside, |state| state)
}

/// The same without what disks are only set to: whoever loses that still finds their data.
pub fn classify_state_ignoring_settings(
    path: &Path,
    disks: &[&InitialDevice],
    beside: &[&InitialDevice],
) -> StateContent {
    classify(path, disks, beside, State::without_settings)
}

/// What is left of the state by `of_interest`.
fn classify(
    path: &Path,
    disks: &[&InitialDevice],
    beside: &[&InitialDevice],
    of_interest: fn(State) -> State,
) -> StateContent {
    let read = |path: &Path| -> Result<Option<State>, StateError> {
        Ok(StateFile::new(Some(path.to_owned())).read()?.map(of_interest))
    };
    let state = match read(path) {
        Ok(Some(state)) => state,
        Ok(None) => return StateContent::Unrelated,
        Err(_) => return StateContent::Changed { names_disk: true },
    };
    if let Some(kept_in) = &state.kept_in {
        let there = seen_from(path, kept_in);
        return match read(&there) {
            // Nothing is known of whom it was for.
            _ if beside.is_empty() => StateContent::Redundant { names_disk: false },
            Ok(Some(other)) if beside.iter().all(|disk| other.leaves_unchanged(disk)) => {
                StateContent::Redundant { names_disk: false }
            }
            _ => StateContent::Elsewhere(there),
        };
    }
    // Where no device is kept, it may be a guest's write cache.
    if state.is_reproducible() && state.devices.is_empty() {
        return match disks.iter().any(|disk| state.has_setting_of(&disk.name)) {
            true => StateContent::Changed { names_disk: true },
            false => StateContent::Unrelated,
        };
    }
    let names_disk = disks.iter().any(|disk| state.knows(disk).unwrap_or(false));
    match state.has_changes() {
        true => StateContent::Changed { names_disk },
        false => StateContent::Redundant { names_disk },
    }
}

impl State {
    /// The same state as if its disks had never been set to anything. One that is suspended stays so: it was
    /// not to be served.
    fn without_settings(mut self) -> State {
        self.write_through.clear();
        self.on_full.clear();
        self.devices.values_mut().for_each(|device| device.write_threshold = None);
        self.without_reproducible()
    }

    /// Whether it says more of its disks than the arguments that it was made with.
    pub(super) fn has_changes(&self) -> bool {
        !self.all_initial() || self.has_settings()
    }

    /// Whether it knows `disk`, and leaves it as its arguments made it.
    fn leaves_unchanged(&self, disk: &InitialDevice) -> bool {
        let works = self.rollbacks.values().map(|job| &job.device);
        let works = works.chain(self.commits.values().map(|job| &job.device));
        self.is_initial(&disk.name)
            && works.into_iter().all(|device| *device != disk.name)
            && self.invalid.is_empty()
            && !self.has_setting_of(&disk.name)
            && self.knows(disk).unwrap_or(false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lines::parse_table;

    #[test]
    fn what_a_disk_is_set_to_is_told_from_what_it_was_made() {
        let dir = tempfile::tempdir().unwrap();
        let [state, refers] = ["state", "refers"].map(|name| dir.path().join(name));
        let line = "0 8 snapshot ./golden ./a.cow PO 8";
        let lines = parse_table([line]).unwrap();
        let disk = InitialDevice { name: "a".into(), lines, read_only: false };
        std::fs::write(&refers, "version = 1\ngeneration = 1\nkept-in = 'state'\n").unwrap();
        let says = |top: &str, of_device: &str, end: &str| {
            let text = format!(
                "version = 1\ngeneration = 1\nescaped = true\n{top}\n[first.a]\ntable = ['{line}']\n\
                 [devices.a]\ntable = ['{line}']\n{of_device}\n{end}\n"
            );
            std::fs::write(&state, text).unwrap();
            let disks = [&disk];
            let all = classify_state(&state, &disks, &disks);
            let besides = classify_state_ignoring_settings(&state, &disks, &disks);
            let referred = classify_state_ignoring_settings(&refers, &disks, &disks);
            // One that only names it says as much.
            assert_eq!(
                matches!(referred, StateContent::Elsewhere(_)),
                besides != given(),
                "{referred:?}"
            );
            (all, besides)
        };
        fn given() -> StateContent {
            StateContent::Redundant { names_disk: true }
        }
        let more = || StateContent::Changed { names_disk: true };
        assert_eq!(says("", "", ""), (given(), given()));
        for (of_device, end) in [
            ("", "[on-full]\na = 1000"),
            ("", "[write-through]\na = ['guest']"),
            ("write-threshold = 4096", ""),
            ("write-threshold = 4096", "[on-full]\na = 1000\n[write-through]\na = ['guest']"),
        ] {
            assert_eq!(says("", of_device, end), (more(), given()), "{of_device} {end}");
        }
        let job = "[jobs.j]\ndevice = 'a'\nsnapshot = 's'\ncow = './a.cow'\nspeed = 0\n\
                   auto-finalize = true\nauto-dismiss = true";
        for (top, of_device, end) in [
            ("invalid = ['/a.cow']", "", ""),
            ("", "suspended = true", ""),
            ("", "inactive = ['0 8 zero']", ""),
            ("", "", job),
        ] {
            let end = format!("{end}\n[on-full]\na = 1000");
            assert_eq!(says(top, of_device, &end), (more(), more()), "{top} {of_device} {end}");
        }
    }
}
