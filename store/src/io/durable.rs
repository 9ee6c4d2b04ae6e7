//! Making files and their names durable by plain system calls, for callers that may block.
//!
//! Owns these calls, so that tests see what was synced: a missing sync loses nothing until a power
//! cut. Never knows the content of a file.

use std::fs::File;
use std::io;
use std::path::Path;

/// Makes the writes to `file`, and its length, durable.
///
/// # Errors
/// The system's error: anything written since the last success may be lost.
pub fn sync_file(file: &File) -> io::Result<()> {
    #[cfg(all(test, not(feature = "shuttle")))]
    seen::note(file)?;
    file.sync_all()
}

/// Makes durable which file `path` names: after it was made, renamed or removed.
///
/// # Errors
/// The system's error.
pub fn sync_name(path: &Path) -> io::Result<()> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    sync_file(&File::open(parent.unwrap_or(Path::new(".")))?)
}

/// What this thread synced, for tests.
#[cfg(all(test, not(feature = "shuttle")))]
pub(crate) mod seen {
    use std::cell::RefCell;
    use std::fs::File;
    use std::io;
    use std::os::fd::AsRawFd;
    use std::path::PathBuf;

    thread_local! {
        static SYNCED: RefCell<Vec<PathBuf>> = const { RefCell::new(Vec::new()) };
        static FAILS: RefCell<Option<PathBuf>> = const { RefCell::new(None) };
    }

    /// `file` is synced, under the name that it has now.
    pub(super) fn note(file: &File) -> io::Result<()> {
        let name = std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd()))?;
        if FAILS.with_borrow_mut(|fails| fails.take_if(|fails| *fails == name)).is_some() {
            return Err(io::Error::other("it was to fail"));
        }
        SYNCED.with_borrow_mut(|synced| synced.push(name));
        Ok(())
    }

    /// The next sync of `name` fails.
    pub(crate) fn fail(name: PathBuf) {
        FAILS.set(Some(name));
    }

    /// The files that were synced since the last call, in order.
    pub(crate) fn take() -> Vec<PathBuf> {
        SYNCED.take()
    }
}
