//! The file of the chunks that a store owes; a killed process's are entered before the store
//! serves again.
//!
//! Owns the file beside a store that holds its log while it is served: its place, its owner, and
//! its end. Never knows tables. Keeps I11: an acknowledged mapping is in that file before any code
//! can know of it, so entering the file's chunks loses nothing; and the death of a process is not
//! a power cut, so a file of another boot is not trusted.
//!
//! Entering is idempotent: the process may be killed in the middle of it, and part of the commit
//! during which an earlier process was killed may have landed.

use std::io::{self, Read};
use std::path::{Path, PathBuf};

use super::adopt::{AdoptError, adopt, view};
pub use super::adopt::{Gaps, tail_of};
use super::error::{ProblemKind, StoreError};
use super::log::{LOG_WORDS, Log, RING, words_for};
use super::open::OpenStore;
use super::words::{Words, WordsHeader};
use crate::io::shared::SharedWords;
use crate::io::storage::Storage;
use crate::io::{FileInfo, Identity, real_path};
use crate::units::{Chunk, DataIndex, SECTOR_SHIFT};

#[cfg(all(test, not(miri)))]
mod tests;

/// Bytes of owed data at which a store on a disk is committed without a request for it: the syncs
/// of a commit take a disk longer than the writes before it (`docs/adr/0003-owed-file.md`).
const OWED: u64 = 512 << 20;
/// Slots of the largest log.
const MOST_SLOTS: u64 = 8 * RING;

/// Why the owed chunks could not be entered.
#[derive(Debug, thiserror::Error)]
pub enum OwedError {
    /// The file cannot be used.
    #[error("cannot use {}, which keeps what the store owes: {source}", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Another program has changed the store since.
    #[error(
        "{} was changed by another program since the process that served it was killed: data \
         chunk {} holds chunk {} there, but {} says chunk {}; acknowledged writes would be lost. \
         Remove that file to go on without them",
        store.display(), index.0, found.0, path.display(), owed.0
    )]
    Changed {
        /// The store.
        store: PathBuf,
        /// The file.
        path: PathBuf,
        /// The chunk where they differ.
        index: DataIndex,
        /// The chunk's entry in the store.
        found: Chunk,
        /// The chunk's owed entry.
        owed: Chunk,
    },
    /// An owed entry is impossible, as one in the store's list would be.
    #[error(
        "{}, which keeps what the process that served {} owed to it when it was killed, has an \
         entry that {kind}; acknowledged writes would be lost. Restore that length, or remove that \
         file to go on without them",
        path.display(), store.display()
    )]
    Misplaced {
        /// The store.
        store: PathBuf,
        /// The file.
        path: PathBuf,
        /// The error.
        kind: ProblemKind,
    },
    /// The file system of the store has another device number than when it was served.
    #[error(
        "{} keeps acknowledged writes that a killed process owed to this store, whose file system \
         has another device number now ({}, and {} before): it was attached again, or is a clone, \
         which may lack the data of these writes. Attach and mount it under its former number to \
         have them, or remove that file to go on without them",
        path.display(), number(*now), number(*before)
    )]
    Moved {
        /// The file.
        path: PathBuf,
        /// The number of the device.
        now: u64,
        /// Its number when the store was served.
        before: u64,
    },
    /// The store could not be written.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The file that keeps a store's log.
#[derive(Clone, Debug)]
pub struct Owed {
    path: PathBuf,
    /// Where an earlier version kept it: beside the symbolic link by which the store was opened,
    /// or under the block device's number alone.
    beside_link: Option<PathBuf>,
    /// Words of a new log.
    words: usize,
    /// The expected header of the file; none if the boot cannot be identified, and nothing is
    /// kept.
    header: Option<WordsHeader>,
    /// The identity of the file that was made, as opposed to one that a later owner made under the
    /// same name.
    made: Option<Identity>,
    /// Whether the file of a previous owner, which still lives, was set aside for it.
    set_aside: bool,
}

impl Owed {
    /// The file for the store `info`: beside it, not beside a link to it; for a block device in
    /// the system's directory for files that last as long as the boot. If the boot's identity
    /// cannot be read (a container without `/proc`), nothing is kept, with a warning.
    pub fn of(info: &FileInfo, chunk_sectors: u32) -> Owed {
        let (path, beside_link) = paths_of(info);
        let header = match boot_id() {
            Ok(boot) => {
                Some(WordsHeader { boot, store: info.identity, chunk_sectors, born: born(info) })
            }
            Err(error) => {
                tracing::warn!(
                    "cannot tell this boot from another ({error}): writes to {} that were not \
                     flushed do not outlive this process. Mount /proc",
                    info.path.display()
                );
                None
            }
        };
        let words = words_for(slots(info, chunk_sectors));
        Owed { path, beside_link, words, header, made: None, set_aside: false }
    }

    /// Removes the file of a store that no longer exists: a new store, which owes nothing, is
    /// about to be made in its place. What is owed to a store in another file, which may only have been
    /// moved away, is set aside.
    ///
    /// # Errors
    /// [`OwedError::Io`].
    pub fn forget(info: &FileInfo) -> Result<(), OwedError> {
        let (path, beside_link) = paths_of(info);
        let boot = boot_id().ok();
        let is_past = |found: &WordsHeader| {
            found.store == info.identity || boot.is_some_and(|boot| boot != found.boot)
        };
        for path in [Some(path), beside_link].into_iter().flatten() {
            set_aside(&path, is_past)?;
            match std::fs::remove_file(&path) {
                Ok(()) => tracing::warn!(
                    "removed {}, which kept what a killed process owed the store that was there \
                     before",
                    path.display()
                ),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(source) => return Err(OwedError::Io { path, source }),
            }
        }
        Ok(())
    }

    /// The most chunks that a killed process can owe the store `info`, according to its file,
    /// whichever store the file belongs to.
    pub fn most(info: &FileInfo) -> usize {
        let most = |path: &PathBuf| match SharedWords::open(path).map(Words::Shared) {
            Ok(words) if Log::fits(&words) => Log::most_owed(&words) as usize,
            Ok(_) => 0,
            Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
            // A later attempt to enter it may succeed, or reports the error.
            Err(_) => MOST_SLOTS as usize,
        };
        let (path, beside_link) = paths_of(info);
        most(&path).max(beside_link.as_ref().map_or(0, most))
    }

    /// Syncs the store `info`, to which a killed process may owe something: before what it wrote is
    /// believed. If that fails, no process is to believe what was written to owed chunks; and if this
    /// process is killed meanwhile, the next is to know that it may have failed.
    ///
    /// # Errors
    /// The system's error.
    pub fn sync(info: &FileInfo) -> io::Result<()> {
        let (path, beside_link) = paths_of(info);
        let logs: Vec<Words> = [Some(path), beside_link]
            .into_iter()
            .flatten()
            .filter_map(|path| read(&path).ok().flatten())
            .filter(|(_, header)| header.store == info.identity)
            .map(|(words, _)| words)
            .collect();
        logs.iter().for_each(Log::sync_of_owed_begins);
        let synced = info.sync();
        logs.iter().for_each(match synced {
            Ok(()) => Log::sync_of_owed_ended,
            Err(_) => Log::mark_owed_unsynced,
        });
        synced
    }

    /// Enters the chunks that the file owes into `store`, which is in `storage` and, if
    /// `origin_len` is given in bytes, for a device of that length. True if there were any.
    ///
    /// # Errors
    /// See [`OwedError`]; the file is unchanged then.
    pub fn enter<S: Storage>(
        &self,
        storage: &S,
        store: &mut OpenStore,
        (origin_len, gaps): (Option<u64>, Gaps),
    ) -> Result<bool, OwedError> {
        let Some(words) = self.find()? else { return Ok(false) };
        let entered = adopt(storage, store, &words, (origin_len, gaps));
        let lost = Log::unsynced_owed(&words);
        if lost > 0 && entered.is_ok() {
            tracing::error!(
                "{} was not flushed by the process that served it, because a sync failed; what was \
                 first written to {lost} chunks since the flush before is left out, and they are as \
                 they were then. Check the disk below it, and the guest's file system",
                storage.name()
            );
        }
        entered.map_err(|error| self.named(storage.name(), error))
    }

    /// Adds the chunks that the file owes to `store`, called `name` and for a device of
    /// `origin_len` bytes if that is given, without writing anything.
    ///
    /// # Errors
    /// See [`OwedError`].
    pub fn show(
        &self,
        name: String,
        store: &mut OpenStore,
        origin_len: Option<u64>,
    ) -> Result<(), OwedError> {
        let Some(words) = self.find()? else { return Ok(()) };
        view(store, &words, origin_len).map_err(|error| self.named(name, error))
    }

    fn named(&self, store: String, error: AdoptError) -> OwedError {
        match error {
            AdoptError::Store(error) => OwedError::Store(error),
            AdoptError::Misplaced { kind } => {
                OwedError::Misplaced { store: store.into(), path: self.path.clone(), kind }
            }
            AdoptError::Changed { index, found, owed } => OwedError::Changed {
                store: store.into(),
                path: self.path.clone(),
                index,
                found: found.unwrap_or(Chunk(u64::MAX)),
                owed,
            },
        }
    }

    fn find(&self) -> Result<Option<Words>, OwedError> {
        let beside_link = || self.beside_link.as_deref().map_or(Ok(None), |at| self.find_at(at));
        self.find_at(&self.path)?.map_or_else(beside_link, |words| Ok(Some(words)))
    }

    fn find_at(&self, path: &Path) -> Result<Option<Words>, OwedError> {
        let (Some(own), Some((words, found))) = (self.header, read(path)?) else {
            return Ok(None);
        };
        if found.is_of_other_device(&own) && Log::most_owed(&words) > 0 {
            let (now, before) = (own.store.dev, found.store.dev);
            return Err(OwedError::Moved { path: path.into(), now, before });
        }
        Ok(found.is_of(&own).then_some(words))
    }

    /// Sets the file aside if it keeps what is owed to another store: this one is a copy, or took
    /// that one's place, and a new file is about to take its file's.
    fn set_aside_another_s(&self) -> Result<(), OwedError> {
        let Some(own) = self.header else { return Ok(()) };
        set_aside(&self.path, |found| found.is_of(&own) || found.boot != own.boot)
    }

    /// The file that an earlier version left beside the link belongs to this store, and was
    /// entered.
    fn settle_beside_link(&self) {
        if let Some(path) = &self.beside_link
            && matches!(self.find_at(path), Ok(Some(_)))
        {
            let _ = std::fs::remove_file(path);
        }
    }

    /// Makes a new file, for a log that owes nothing: the chunks of the old one were entered. With
    /// `set_aside` the existing file is kept for its owner until one of the two is gone.
    ///
    /// # Errors
    /// The system's error.
    pub fn create(&mut self, set_aside: bool) -> Result<Words, OwedError> {
        let Some(header) = self.header else { return Ok(Words::private(LOG_WORDS)) };
        self.settle_beside_link();
        self.set_aside_another_s()?;
        let before = self.before();
        let _ = std::fs::remove_file(&before);
        self.set_aside = set_aside && std::fs::rename(&self.path, &before).is_ok();
        let _ = std::fs::remove_file(&self.path);
        let made =
            SharedWords::create(&self.path, self.words).or_else(|error| match error.kind() {
                // A store without any room left is served, too.
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                    SharedWords::create(&self.path, LOG_WORDS)
                }
                _ => Err(error),
            });
        let words = made.map_err(|source| {
            if std::mem::take(&mut self.set_aside) {
                // Its owner continues, and still owes its chunks.
                let _ = std::fs::rename(&before, &self.path);
            }
            OwedError::Io { path: self.path.clone(), source }
        })?;
        let words = Words::Shared(words);
        words.set_header(header);
        self.made = Identity::of_path(&self.path).ok();
        Ok(words)
    }

    /// Removes the file, whichever process made it: its chunks were entered.
    ///
    /// # Errors
    /// It is another store's, and cannot be set aside.
    pub fn settle(&self) -> Result<(), OwedError> {
        self.settle_beside_link();
        self.set_aside_another_s()?;
        let _ = std::fs::remove_file(&self.path);
        Ok(())
    }

    /// Removes the file that was made here: nothing is owed any more. If a file was set aside for
    /// it, and that file's owner still lives, it is put back in place.
    pub fn remove(&self) {
        if self.made.is_some() && Identity::of_path(&self.path).ok() == self.made {
            let _ = std::fs::remove_file(&self.path);
            if self.set_aside {
                let _ = std::fs::rename(self.before(), &self.path);
            }
        }
    }

    /// Removes the file that was made here from the path where it was set aside: the process that
    /// did that entered its chunks. False if it was not set aside.
    pub fn discard_if_replaced(&self) -> bool {
        let before = self.before();
        let replaced = self.made.is_some() && Identity::of_path(&before).ok() == self.made;
        if replaced {
            let _ = std::fs::remove_file(before);
        }
        replaced
    }

    fn before(&self) -> PathBuf {
        with_suffix(&self.path, ".before")
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Removes the store's file at `store`, if there is one, and its log; if `store` is a link to the
/// file, the link as well.
///
/// # Errors
/// The system's error.
pub fn remove_store(store: &Path) -> io::Result<()> {
    let Ok(meta) = std::fs::metadata(store) else { return Ok(()) };
    if !meta.is_file() {
        // The system's, as a device's node is.
        return Err(io::Error::other("it is not a regular file"));
    }
    let real = real_path(store);
    let _ = std::fs::remove_file(beside(&real));
    if real != store {
        std::fs::remove_file(&real)?;
    }
    std::fs::remove_file(store)
}

/// Slots of the log of the store `info`: twice the number of chunks that may be owed before a
/// commit begins, so that as many can be written meanwhile. Few on tmpfs, where a sync costs
/// nothing, and for block devices, whose logs take memory.
fn slots(info: &FileInfo, chunk_sectors: u32) -> u64 {
    if info.block_device || !info.uring {
        return RING;
    }
    (2 * OWED / (u64::from(chunk_sectors) << SECTOR_SHIFT)).clamp(RING, MOST_SLOTS)
}

/// The path of the file of the store `info`, and the path where an earlier version may have left
/// one.
fn paths_of(info: &FileInfo) -> (PathBuf, Option<PathBuf>) {
    if info.block_device {
        let Identity { dev, ino } = info.identity;
        let before = Path::new("/dev/shm").join(format!("snapblk-{dev:x}-{ino:x}.owed"));
        return match disk_sequence(dev) {
            Some(sequence) => {
                let name = format!("snapblk-{dev:x}-{ino:x}-{sequence}.owed");
                (before.with_file_name(name), Some(before))
            }
            None => (before, None),
        };
    }
    let real = real_path(&info.path);
    let beside_link = (real != info.path).then(|| beside(&info.path));
    (beside(&real), beside_link)
}

/// Refuses to take the place of a file that is no log: a user's, with the name of one.
fn refuse_other(path: &Path) -> Result<(), OwedError> {
    let mut first = [0; 8];
    let read = std::fs::File::open(path).and_then(|mut file| file.read_exact(&mut first));
    if read.is_err() || Words::may_begin(u64::from_ne_bytes(first)) {
        return Ok(());
    }
    let why = "another file has that name; move it away, or name the store differently";
    let source = io::Error::new(io::ErrorKind::AlreadyExists, why);
    Err(OwedError::Io { path: path.into(), source })
}

/// Renames the file at `path` if it keeps what is owed to a store, and is not `done` with.
///
/// # Errors
/// The system's error; or it is another file, whose place nothing may take.
fn set_aside(path: &Path, done: impl Fn(&WordsHeader) -> bool) -> Result<(), OwedError> {
    refuse_other(path)?;
    let Ok(Some((words, found))) = read(path) else { return Ok(()) };
    let most = Log::most_owed(&words);
    if done(&found) || most == 0 {
        return Ok(());
    }
    let numbered = (2..).map(|n| with_suffix(path, &format!(".old-{n}")));
    let mut names = std::iter::once(with_suffix(path, ".old")).chain(numbered);
    let is_free = |name: &PathBuf| name.symlink_metadata().is_err();
    let aside = names.find(is_free).expect("there are more names than files");
    if let Err(source) = std::fs::rename(path, &aside) {
        return Err(OwedError::Io { path: path.into(), source });
    }
    tracing::warn!(
        "{} kept up to {most} chunks that a killed process owed to another store, of which \
         this one may be a copy; what they hold is not in this one, and the file is {} now",
        path.display(),
        aside.display()
    );
    Ok(())
}

fn beside(store: &Path) -> PathBuf {
    with_suffix(store, ".owed")
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut path = path.as_os_str().to_owned();
    path.push(suffix);
    path.into()
}

/// The words of the file at `path` and their header; none if there is no such file, or it is no log.
fn read(path: &Path) -> Result<Option<(Words, WordsHeader)>, OwedError> {
    match SharedWords::open(path).map(Words::Shared) {
        Ok(words) if Log::fits(&words) => Ok(words.header().map(|header| (words, header))),
        Ok(_) => Ok(None),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) if error.kind() == io::ErrorKind::InvalidData => Ok(None),
        Err(source) => Err(OwedError::Io { path: path.into(), source }),
    }
}

/// A device's number as `stat` and `lsblk` show it.
fn number(dev: u64) -> String {
    format!("{}:{}", rustix::fs::major(dev), rustix::fs::minor(dev))
}

/// The creation time of a file, in nanoseconds; 0 for a block device, and if it is not known.
fn born(info: &FileInfo) -> u64 {
    let born = info.file.metadata().and_then(|meta| meta.created());
    let since = born.ok().filter(|_| !info.block_device);
    let since = since.and_then(|born| born.duration_since(std::time::UNIX_EPOCH).ok());
    since.map_or(0, |since| since.as_nanos() as u64)
}

/// Distinguishes the present disk of a device number from earlier ones: a number that grows since
/// the boot whenever a disk is attached (Linux 5.15). A partition has that of its disk.
fn disk_sequence(dev: u64) -> Option<u64> {
    let (major, minor) = (rustix::fs::major(dev), rustix::fs::minor(dev));
    let device = PathBuf::from(format!("/sys/dev/block/{major}:{minor}"));
    ["diskseq", "../diskseq"]
        .iter()
        .find_map(|name| std::fs::read_to_string(device.join(name)).ok()?.trim().parse().ok())
}

fn boot_id() -> io::Result<u128> {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    uuid::Uuid::parse_str(text.trim())
        .map(|uuid| uuid.as_u128())
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}
