//! States of the arguments' disks besides the one that is used.
//!
//! Owns what becomes of them: they say no more than the arguments, and must not be taken for the present
//! state later, when the one that is used says more. So each is replaced by one that only names it. Never
//! knows how they were found. Keeps: the state that is named is durable before; until all name it, nobody
//! serves the disks.

use std::path::{Path, PathBuf};

use super::{State, StateError, StateFile, VERSION, absolute};
use crate::device::core::Devices;

/// One that is not used; its lock is held.
pub(super) struct Other {
    file: StateFile,
}

impl Other {
    /// None where it is gone.
    fn read(path: &Path) -> Result<Option<Other>, StateError> {
        let mut file = StateFile::new(Some(path.to_owned()));
        file.wait_for_others()?;
        match file.read()? {
            None => Ok(None),
            // The process that had it was told more since it was looked at.
            Some(state) if state.adds() => Err(StateError::Foreign { path: path.to_owned() }),
            Some(_) => Ok(Some(Other { file })),
        }
    }

    /// The state of its disks is at `used` from now on.
    fn refer_to(mut self, used: &Path) -> Result<(), StateError> {
        let Some(path) = &self.file.path else { return Ok(()) };
        let place = |path: &Path| path.canonicalize().unwrap_or_else(|_| absolute(path));
        let used = place(used);
        // Both may be moved together.
        let kept_in = match used.file_name() {
            Some(name) if place(path).parent() == used.parent() => name.into(),
            _ => used,
        };
        self.file.keep(State { version: VERSION, kept_in: Some(kept_in), ..State::default() })
    }
}

impl Devices {
    /// Before a start: the states at `others` say no more than the arguments, and shall name the one that
    /// is used.
    pub fn replaces_states(&self, others: Vec<PathBuf>) {
        self.lock().state.others = others;
    }
}

impl StateFile {
    pub(super) fn read_others(&self) -> Result<Vec<Other>, StateError> {
        let read = self.others.iter().map(|path| Other::read(path));
        Ok(read.collect::<Result<Vec<_>, _>>()?.into_iter().flatten().collect())
    }

    /// Makes `others` name this one, if there is one.
    pub(super) fn replace(&self, others: Vec<Other>) -> Result<(), StateError> {
        let Some(path) = self.path.as_ref().filter(|_| self.kept.is_some()) else { return Ok(()) };
        others.into_iter().try_for_each(|other| other.refer_to(path))
    }
}
