//! One process per state file: what another one keeps there is neither replaced nor removed.
//!
//! Owns the lock on a file beside the state, which is held as long as the state is this process's,
//! and the comparison before each change of the state with what this process last read or wrote.
//! The state itself cannot carry the lock: it is replaced by another file each time. Never knows
//! what a state means. Keeps: the lock's file is removed by its holder alone, and only if it is empty; a
//! lock counts only on the file that has the name.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::names::lock_of;
use super::{StateError, StateFile, text};
use crate::io::lock::{Lock, LockError};

/// How long a start waits for a process that ends: as long as for its disks.
const WAIT: Duration = Duration::from_secs(3);

/// How often the lock is taken of a file that does not have the name any more. Of holders that remove
/// it, each costs a try; a file system may have other numbers for each opening.
const MOST_TRIES: usize = 100;
/// Between two tries.
const PAUSE: Duration = Duration::from_millis(1);

/// The lock on the state file, until it is dropped.
#[derive(Debug)]
pub(super) struct Sole {
    path: PathBuf,
    file: File,
    // Released when the name is gone.
    _lock: Lock,
}

impl Sole {
    fn of(state: &Path, wait: Duration) -> Result<Sole, StateError> {
        let path = lock_of(state);
        let fail = |source| StateError::Io { what: "lock", path: state.to_owned(), source };
        let deadline = Instant::now() + wait;
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        // Nothing is read or written, so a link is of no use; a pipe would block.
        options.custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK);
        let take = || {
            let file = options.open(&path).map_err(fail)?;
            let left = deadline.saturating_duration_since(Instant::now());
            let lock = Lock::alone(&file, &path, Some(left)).map_err(|error| match error {
                LockError::Held { others, .. } => {
                    StateError::Shared { path: state.to_owned(), others }
                }
                LockError::Io { source, .. } => fail(source),
            })?;
            Ok(Sole { path: path.clone(), file, _lock: lock })
        };
        Sole::named(take)?.ok_or_else(|| {
            let name = path.display();
            fail(std::io::Error::other(format!(
                "{name} is another file each time that it is locked; name a state on another file \
                 system by --state"
            )))
        })
    }

    /// One that `take` makes and that has the name; none if that never happens.
    fn named(
        mut take: impl FnMut() -> Result<Sole, StateError>,
    ) -> Result<Option<Sole>, StateError> {
        for _ in 0..MOST_TRIES {
            let sole = take()?;
            // Its former holder may have removed it in between.
            if sole.has_the_name() {
                return Ok(Some(sole));
            }
            std::thread::sleep(PAUSE);
        }
        Ok(None)
    }

    /// Whether another process would find this file.
    fn has_the_name(&self) -> bool {
        let of = |meta: std::fs::Metadata| (meta.dev(), meta.ino());
        let named = std::fs::symlink_metadata(&self.path).map(of);
        named.is_ok_and(|named| self.file.metadata().map(of).is_ok_and(|held| held == named))
    }
}

impl Drop for Sole {
    fn drop(&mut self) {
        // A user's file of that name has content.
        let is_empty = self.file.metadata().is_ok_and(|meta| meta.len() == 0);
        if is_empty && self.has_the_name() {
            // One that stays is taken by the next process.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

impl StateFile {
    /// Before the state is read: waits for a process that ends and keeps it. Where there is no file,
    /// none is made: many servers never keep anything.
    pub(super) fn wait_for_others(&mut self) -> Result<(), StateError> {
        // A start that failed may be tried again.
        self.sole = None;
        if let Some(path) = self.path.as_ref().filter(|path| path.exists()) {
            self.sole = Some(Sole::of(path, WAIT)?);
        }
        Ok(())
    }

    /// Before the file is replaced: it is this process's to change.
    pub(super) fn claim(&mut self) -> Result<(), StateError> {
        let Some(path) = &self.path else { return Ok(()) };
        if !self.sole.as_ref().is_some_and(Sole::has_the_name) {
            // Of two, the first is dropped before the second is made.
            self.sole = None;
            self.sole = Some(Sole::of(path, Duration::ZERO)?);
        }
        let checked = self.refuse_foreign();
        if self.kept.is_none() && checked.is_err() {
            // The process whose state this is may start again.
            self.sole = None;
        }
        checked
    }

    /// Refuses a file that holds something else than this process last read or wrote. One that is
    /// gone may be written again.
    pub(super) fn refuse_foreign(&self) -> Result<(), StateError> {
        let Some(path) = &self.path else { return Ok(()) };
        match text::read(path)? {
            Some(there) if self.kept.as_ref() != Some(&there) => {
                Err(StateError::Foreign { path: path.clone() })
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(path: &Path) -> (StateFile, Result<(), StateError>) {
        let mut file = StateFile::new(Some(path.to_owned()));
        let read = file.wait_for_others().and_then(|()| file.read().map(drop));
        (file, read)
    }

    /// What is kept whatever the devices: this has no meaning.
    fn some(file: &mut StateFile) -> Result<(), StateError> {
        file.keep(super::super::State {
            version: super::super::VERSION,
            write_through: [("disk".to_owned(), ["guest".to_owned()].into())].into(),
            ..Default::default()
        })
    }

    #[test]
    fn a_lock_lies_beside_a_state_while_a_process_has_it() {
        let dir = tempfile::tempdir().unwrap();
        let [path, lock] = ["state", "state.lock"].map(|name| dir.path().join(name));
        let (mut one, _) = read(&path);
        one.keep(Default::default()).unwrap();
        assert!(!path.exists() && !lock.exists(), "nothing is made for nothing");
        some(&mut one).unwrap();
        assert!(path.exists() && lock.exists());
        // Removed by hand: it is made again, and still excludes others.
        std::fs::remove_file(&lock).unwrap();
        some(&mut one).unwrap();
        let mut two = StateFile::new(Some(path.clone()));
        assert!(matches!(some(&mut two), Err(StateError::Shared { .. })));
        assert!(lock.exists(), "it is the other's");
        one.keep(Default::default()).unwrap();
        assert!(!path.exists() && !lock.exists());
        some(&mut two).unwrap();
        two.close();
        assert!(path.exists() && !lock.exists());
    }

    #[test]
    fn a_state_of_another_is_neither_replaced_nor_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        let ([mut one, mut two], other) = ([(); 2].map(|()| read(&path).0), "other = 1\n");
        std::fs::write(&path, other).unwrap();
        assert!(matches!(some(&mut one), Err(StateError::Foreign { .. })));
        one.keep(Default::default()).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), other);
        // The same for one that was this process's before.
        std::fs::remove_file(&path).unwrap();
        some(&mut two).unwrap();
        std::fs::write(&path, other).unwrap();
        for state in [false, true] {
            let kept = if state { some(&mut two) } else { two.keep(Default::default()) };
            assert!(matches!(kept, Err(StateError::Foreign { .. })));
            assert_eq!(std::fs::read_to_string(&path).unwrap(), other);
        }
        // One that is gone is made again.
        std::fs::remove_file(&path).unwrap();
        some(&mut two).unwrap();
        assert!(path.exists());
    }

    #[test]
    fn a_file_of_a_user_with_the_name_of_the_lock_stays() {
        let dir = tempfile::tempdir().unwrap();
        let [path, lock] = ["state", "state.lock"].map(|name| dir.path().join(name));
        std::fs::write(&lock, "a user's").unwrap();
        let (mut one, _) = read(&path);
        some(&mut one).unwrap();
        one.keep(Default::default()).unwrap();
        assert_eq!(std::fs::read_to_string(&lock).unwrap(), "a user's");
    }

    #[test]
    fn a_lock_on_files_that_never_have_the_name_is_given_up() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.lock");
        let mut taken = 0;
        let named = Sole::named(|| {
            taken += 1;
            assert!(taken < 10_000, "it is tried for ever");
            let file = File::create(&path).unwrap();
            let _lock = Lock::alone(&file, &path, None).unwrap();
            std::fs::remove_file(&path).unwrap();
            Ok(Sole { path: path.clone(), file, _lock })
        });
        assert!(named.unwrap().is_none());
    }

    /// A process that ends may remove the file of the lock between the other's opening and locking.
    #[test]
    fn a_start_waits_for_the_process_before_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        let (mut one, _) = read(&path);
        some(&mut one).unwrap();
        std::thread::scope(|scope| {
            let next = scope.spawn(|| read(&path));
            one.close();
            let (mut two, waited) = next.join().unwrap();
            waited.unwrap();
            some(&mut two).unwrap();
            assert!(two.sole.is_some_and(|sole| sole.has_the_name()));
        });
    }
}
