//! What a state file says to the disks of a start, before one is chosen.
//!
//! Owns how a state stands to disks: whether it knows them, and whether it says more of them than their
//! arguments. Never changes one, and never knows which one is chosen. Keeps: a state that cannot be read
//! counts as one that says more.

use std::path::{Path, PathBuf};

use super::others::seen_from;
use super::{FirstTable, State, StateError, StateFile};

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
    says(path, disks, beside, |state| state)
}

/// The same without what disks are only set to: whoever loses that still finds their data.
pub fn state_says_besides_settings(
    path: &Path,
    disks: &[&FirstTable],
    beside: &[&FirstTable],
) -> StateSays {
    says(path, disks, beside, State::without_settings)
}

/// What is left of the state by `of_interest`.
fn says(
    path: &Path,
    disks: &[&FirstTable],
    beside: &[&FirstTable],
    of_interest: fn(State) -> State,
) -> StateSays {
    let read = |path: &Path| -> Result<Option<State>, StateError> {
        Ok(StateFile::new(Some(path.to_owned())).read()?.map(of_interest))
    };
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
    /// The same state as if its disks had never been set to anything. One that is suspended stays so: it was
    /// not to be served.
    fn without_settings(mut self) -> State {
        self.write_through.clear();
        self.on_full.clear();
        self.devices.values_mut().for_each(|device| device.write_threshold = None);
        self.without_given()
    }

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
        let disk = FirstTable { name: "a".into(), lines, read_only: false };
        std::fs::write(&refers, "version = 1\ngeneration = 1\nkept-in = 'state'\n").unwrap();
        let says = |top: &str, of_device: &str, end: &str| {
            let text = format!(
                "version = 1\ngeneration = 1\nescaped = true\n{top}\n[first.a]\ntable = ['{line}']\n\
                 [devices.a]\ntable = ['{line}']\n{of_device}\n{end}\n"
            );
            std::fs::write(&state, text).unwrap();
            let disks = [&disk];
            let all = state_says(&state, &disks, &disks);
            let besides = state_says_besides_settings(&state, &disks, &disks);
            let referred = state_says_besides_settings(&refers, &disks, &disks);
            // One that only names it says as much.
            assert_eq!(
                matches!(referred, StateSays::KeptIn(_)),
                besides != given(),
                "{referred:?}"
            );
            (all, besides)
        };
        fn given() -> StateSays {
            StateSays::Given { known: true }
        }
        let more = || StateSays::More { known: true };
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
