//! What the paths of a table mean: the files that they named when a user loaded it.
//!
//! Owns that meaning for as long as the table serves, and passes it on to tables that a command
//! makes of it: a file that has taken another's name since must not take its place below a guest.
//! Never opens a file.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::core::Loaded;
use super::error::DeviceError;
use crate::io::Identity;
use crate::lines::SnapshotSpec;

/// By path, as it is written in the table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Paths(BTreeMap<PathBuf, Identity>);

impl Paths {
    pub(super) fn get(&self, path: &Path) -> Option<Identity> {
        self.0.get(path).copied()
    }

    pub(super) fn note(&mut self, path: &Path, identity: Identity) {
        self.0.insert(path.to_owned(), identity);
    }

    /// With what only `other` knows, too.
    pub(super) fn and(&self, other: &Paths) -> Paths {
        let mut all = other.clone();
        all.0.extend(self.0.iter().map(|(path, identity)| (path.clone(), *identity)));
        all
    }
}

impl Loaded {
    /// The same table, made by a command of tables that serve: its paths mean what they mean there.
    pub(super) fn meaning(self, paths: &Paths) -> Loaded {
        Loaded { paths: paths.clone(), ..self }
    }
}

/// The same while a table is built.
#[derive(Debug, Default)]
pub(super) struct Meanings {
    /// In the tables that it is made of.
    given: Paths,
    /// In itself, so far.
    pub(super) found: Paths,
}

impl Meanings {
    pub(super) fn given(given: &Paths) -> Meanings {
        Meanings { given: given.clone(), found: Paths::default() }
    }

    /// The file that `path` means; none if that is what it names now.
    pub(super) fn meant(&self, path: &Path) -> Option<Identity> {
        self.found.get(path).or_else(|| self.given.get(path))
    }

    /// The store of `spec`, if its file exists.
    pub(super) fn identity(&self, spec: &SnapshotSpec) -> Option<Identity> {
        let path = spec.cow.path()?;
        self.meant(path).or_else(|| Identity::of_path(path).ok())
    }

    /// Refuses to open a store again whose name another file has taken.
    pub(super) fn refuse_replaced(&self, spec: &SnapshotSpec) -> Result<(), DeviceError> {
        let Some(path) = spec.cow.path() else { return Ok(()) };
        match (self.given.get(path), Identity::of_path(path)) {
            (Some(meant), Ok(now)) if meant != now => Err(replaced(path)),
            _ => Ok(()),
        }
    }
}

/// The refusal to open the file that has the name of a served one now.
pub(super) fn replaced(path: &Path) -> DeviceError {
    DeviceError::refused(format!(
        "{} is another file by now than the one that is served, which must be opened again; give \
         that its name back",
        path.display()
    ))
}
