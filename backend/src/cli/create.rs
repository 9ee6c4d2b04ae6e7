//! `snapblk create`: an empty store for the changes to a disk.

use std::fs::OpenOptions;
use std::path::{Path, PathBuf};

use clap::Args;
use serde::Serialize;
use snapblk_store::cow::Geometry;
use snapblk_store::device::{make_empty, refuse_useless};
use snapblk_store::io::{FileInfo, Identity, Lock, OpenMode, Storage};
use snapblk_store::units::ChunkSize;

use super::store_file::{LOCK_WAIT, claim};
use super::{CliError, output, size};

/// The requested size of a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Extent {
    /// Room for every chunk of the origin.
    Full,
    /// That many bytes.
    Bytes(u64),
}

fn extent(text: &str) -> Result<Extent, String> {
    if text == "full" { Ok(Extent::Full) } else { size::parse(text).map(Extent::Bytes) }
}

fn chunk_size(text: &str) -> Result<ChunkSize, String> {
    let bytes = size::parse(text)?;
    u32::try_from(bytes / 512)
        .ok()
        .filter(|_| bytes.is_multiple_of(512))
        .and_then(ChunkSize::from_sectors)
        .ok_or_else(|| format!("a chunk is a power of two from 512 to 1G, and {text} is not"))
}

/// Make an empty store for the changes to a disk
///
/// For example: snapblk create changes.cow --origin disk.raw
///
/// The file takes space only as it fills. A file that is there and not empty is left alone.
#[derive(Debug, Args)]
pub struct Create {
    /// The store to make: a new or empty file, or a block device that starts with zeroes
    store: PathBuf,
    /// The origin: the disk whose changes it will hold
    #[arg(long, value_name = "FILE")]
    origin: PathBuf,
    /// Bytes of a chunk, the unit in which changes are kept (K, M, G)
    #[arg(long, value_name = "SIZE", default_value = "4K", value_parser = chunk_size)]
    chunk_size: ChunkSize,
    /// Bytes of the store (K, M, G, T), or 'full': room for every chunk of the origin
    #[arg(long, value_name = "SIZE", value_parser = extent)]
    size: Option<Extent>,
    /// Answer in JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct Created<'a> {
    #[serde(serialize_with = "output::name")]
    store: &'a Path,
    #[serde(serialize_with = "output::name")]
    origin: &'a Path,
    chunk_size: u64,
    size: u64,
    /// The number of changed chunks that fit.
    capacity: u64,
}

impl Create {
    /// Creates the store.
    ///
    /// # Errors
    /// The store would overwrite data, or a system call failed.
    pub fn run(&self) -> Result<(), CliError> {
        let origin = FileInfo::open(&self.origin, OpenMode::ReadOnly, false)?;
        if Identity::of_path(&self.store).is_ok_and(|store| store == origin.identity) {
            return Err(CliError::Refused(format!(
                "{} and the origin {} are one file; name another for the store",
                self.store.display(),
                self.origin.display()
            )));
        }
        if origin.len < 512 {
            return Err(CliError::Refused(format!(
                "the origin {} has {} bytes; a disk has at least one sector of 512",
                self.origin.display(),
                origin.len
            )));
        }
        self.check_block(&origin)?;
        let made = !self.store.exists();
        if made {
            OpenOptions::new()
                .write(true)
                .create_new(true)
                .open(&self.store)
                .map_err(CliError::io("create", &self.store))?;
        }
        #[cfg(test)]
        tests::made();
        let geometry = self.fill(&origin, made)?;
        let created = Created {
            store: &self.store,
            origin: &self.origin,
            chunk_size: self.chunk_size.bytes(),
            size: geometry.device_chunks * self.chunk_size.bytes(),
            capacity: geometry.capacity(),
        };
        if self.json {
            return output::json(&created);
        }
        output::line(&format!(
            "{}: a store of {} in chunks of {}, for {} of {}",
            self.store.display(),
            size::show(created.size),
            size::show(created.chunk_size),
            self.origin.display(),
            size::show(origin.len)
        ))
    }

    /// Requires chunks of whole blocks of a device.
    fn check_block(&self, file: &FileInfo) -> Result<(), CliError> {
        let block = u64::from(file.logical_block());
        if self.chunk_size.bytes().is_multiple_of(block) {
            return Ok(());
        }
        Err(CliError::Refused(format!(
            "chunks of {} bytes are not whole blocks of {}, which has blocks of {block}; \
             use --chunk-size {block} or more",
            self.chunk_size.bytes(),
            file.path.display()
        )))
    }

    /// Makes the store in the file, or leaves no file where `made` says that there was none.
    fn fill(&self, origin: &FileInfo, made: bool) -> Result<Geometry, CliError> {
        let mut store = FileInfo::open(&self.store, OpenMode::ReadWrite, false)?;
        self.check_block(&store)?;
        let _lock = Lock::exclusive(&store, LOCK_WAIT)?;
        let _claim = claim(&store)?;
        if Identity::of_path(&self.store).ok() != Some(store.identity) {
            return Err(CliError::Refused(format!(
                "{} was replaced by another file just now; try again if that is what is to be used",
                self.store.display()
            )));
        }
        let filled = self.fill_locked(&mut store, origin);
        // Until it was locked, a server may have taken it, or another process made a store in it.
        if made && filled.is_err() && store.current_len().is_ok_and(|len| len == 0) {
            let _ = std::fs::remove_file(&self.store);
        }
        filled
    }

    fn fill_locked(&self, store: &mut FileInfo, origin: &FileInfo) -> Result<Geometry, CliError> {
        // Read only now, under the lock.
        store.len = store.current_len().map_err(CliError::io("look at", &self.store))?;
        let bytes = if store.block_device {
            self.check_device(store)?;
            store.len
        } else {
            self.check_empty(store)?;
            self.bytes_for(origin)
        };
        let geometry = Geometry::of_len(self.chunk_size, bytes);
        refuse_useless(&self.store, geometry, bytes)?;
        if store.block_device {
            make_empty(store, geometry)?;
            return Ok(geometry);
        }
        let sized =
            store.file.set_len(bytes).map_err(CliError::io("give its length to", &self.store));
        let made = sized.and_then(|()| Ok(make_empty(store, geometry)?));
        if made.is_err() {
            // As it was: the next attempt would refuse it otherwise.
            let _ = store.file.set_len(0);
        }
        made.map(|()| geometry)
    }

    fn bytes_for(&self, origin: &FileInfo) -> u64 {
        match self.size {
            Some(Extent::Bytes(bytes)) => bytes,
            Some(Extent::Full) | None => Geometry::full_len(self.chunk_size, origin.len),
        }
    }

    fn check_empty(&self, store: &FileInfo) -> Result<(), CliError> {
        if store.len == 0 {
            return Ok(());
        }
        Err(CliError::Refused(format!(
            "{} is there already and holds {} bytes; remove it or name another file",
            self.store.display(),
            store.len
        )))
    }

    fn check_device(&self, store: &FileInfo) -> Result<(), CliError> {
        if self.size.is_some() {
            return Err(CliError::Usage(format!(
                "{} is a block device and has its size: leave out --size",
                self.store.display()
            )));
        }
        let mut start = vec![0; 4096.min(store.len as usize)];
        store.read_at(&mut start, 0).map_err(CliError::io("read", &self.store))?;
        if start.iter().all(|&byte| byte == 0) {
            return Ok(());
        }
        Err(CliError::Refused(format!(
            "{} does not start with zeroes, so something is stored there; \
             overwrite its first 4096 bytes with zeroes if it is to be lost",
            self.store.display()
        )))
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    type Other = Box<dyn FnOnce()>;

    thread_local! {
        static OTHER: RefCell<Option<Other>> = const { RefCell::new(None) };
    }

    /// Called when the file is there, and nobody has locked it.
    pub(super) fn made() {
        if let Some(other) = OTHER.take() {
            other();
        }
    }

    fn create_in(dir: &Path) -> Create {
        let origin = dir.join("disk.raw");
        std::fs::write(&origin, [1; 1 << 16]).expect("a disk");
        let (store, chunk_size) = (dir.join("new.cow"), ChunkSize::TOOLS);
        Create { store, origin, chunk_size, size: None, json: true }
    }

    /// A server takes the empty file as its overlay.
    #[test]
    fn a_file_that_another_has_locked_by_now_is_not_removed() {
        let dir = tempfile::tempdir().expect("a directory");
        let create = create_in(dir.path());
        let (path, (send, server)) = (create.store.clone(), std::sync::mpsc::channel());
        OTHER.set(Some(Box::new(move || {
            let info = FileInfo::open(&path, OpenMode::ReadWrite, false).expect("it opens");
            let lock = Lock::exclusive(&info, None).expect("it is free");
            send.send((info, lock)).expect("the test goes on");
        })));
        let error = create.run().expect_err("it is served").to_string();
        assert!(error.contains("is in use"), "{error}");
        assert!(create.store.exists());
        drop(server);
    }

    #[test]
    fn of_two_that_make_one_store_the_second_leaves_it_there() {
        let dir = tempfile::tempdir().expect("a directory");
        let (create, second) = (create_in(dir.path()), create_in(dir.path()));
        OTHER.set(Some(Box::new(move || second.run().expect("it is made"))));
        let error = create.run().expect_err("it is there").to_string();
        assert!(error.contains("is there already"), "{error}");
        assert!(std::fs::metadata(&create.store).expect("it is there").len() > 0);
    }

    /// What another took away is not made under its name.
    #[test]
    fn a_file_that_was_replaced_by_now_is_left_alone() {
        let dir = tempfile::tempdir().expect("a directory");
        let create = create_in(dir.path());
        let (path, kept) = (create.store.clone(), dir.path().join("kept.cow"));
        OTHER.set(Some(Box::new(move || {
            std::fs::rename(&path, kept).expect("it is there");
            std::fs::write(&path, b"another").expect("it is written");
        })));
        create.run().expect_err("it is another's");
        assert_eq!(std::fs::read(&create.store).expect("it is there"), b"another");
    }

    #[test]
    fn a_file_that_was_made_in_vain_is_removed() {
        let dir = tempfile::tempdir().expect("a directory");
        let create = Create { size: Some(Extent::Bytes(512)), ..create_in(dir.path()) };
        create.run().expect_err("it is too small");
        assert!(!create.store.exists());
    }
}
