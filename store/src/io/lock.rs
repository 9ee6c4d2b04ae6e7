//! Locks on files that other programs respect too: QEMU's lock bytes.
//!
//! Owns which bytes of a file stand for which permission, and takes them as open file description
//! locks (as well as the one of a file that is nothing but a lock): these are released when the last
//! I/O of a dead process is over, and two descriptions of one file in one process exclude each other
//! like two processes. Never knows why a file is locked. Keeps I8: of two processes
//! that would write a store, one gets it.
//!
//! QEMU holds byte 100 + p of an image for each permission p that it uses and byte 200 + p for each
//! that it does not share, always as *read* locks. Using p fails if another process holds 200 + p;
//! not sharing p fails if another process holds 100 + p. The values of p are: 0 consistent read,
//! 1 write, 2 write without a change of content, 3 resize.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};

use super::files::FileInfo;

#[cfg(test)]
mod tests;
mod who;

const USED: i64 = 100;
const NOT_SHARED: i64 = 200;

const READ: u8 = 1 << 0;
const WRITE: u8 = 1 << 1;
const WRITE_SAME: u8 = 1 << 2;
const RESIZE: u8 = 1 << 3;
const ALL: u8 = READ | WRITE | WRITE_SAME | RESIZE;

/// The interval between two attempts at a lock that another process holds: there is no event to
/// wait for.
const RETRY: Duration = Duration::from_millis(10);

/// Why a file cannot be locked.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another process uses the file in a way that conflicts with ours.
    #[error(
        "{} is in use: {} has it open{}; stop that first",
        path.display(),
        whoever(others),
        match reason { Reason::Used => "", Reason::NotShared => " and does not share it" }
    )]
    Held {
        /// Which other processes have it open, as far as that can be seen.
        others: Vec<String>,
        /// The file.
        path: PathBuf,
        /// The conflict.
        reason: Reason,
    },
    /// The system refused, for example because the file system has no such locks.
    #[error("cannot lock {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl LockError {
    fn held(file: &File, path: &Path, reason: Reason) -> io::Result<LockError> {
        let meta = file.metadata()?;
        let others = who::others_with((meta.dev(), meta.ino()));
        Ok(LockError::Held { path: path.to_owned(), others, reason })
    }
}

/// The processes `others` in a sentence.
pub(crate) fn whoever(others: &[String]) -> String {
    match others {
        [] => "another process (or another device of this one)".to_owned(),
        [one] => format!("process {one}"),
        several => format!("one of the processes {}", several.join(", ")),
    }
}

/// Why a lock conflicts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// Another process uses the file in a way that this one does not share.
    Used,
    /// Another process does not share a use that this one needs.
    NotShared,
}

/// A lock on a file, held until it is dropped and the file's last descriptor is closed or unlocked.
#[derive(Debug)]
pub struct Lock {
    // With the open file description of the file's I/O: if the process dies, the lock lasts until
    // its last I/O has ended.
    file: File,
}

impl Lock {
    /// Reads, and lets no other process write or resize: for an origin that is only read.
    ///
    /// # Errors
    /// [`LockError::Held`] if another process writes to it or does not let it be read.
    pub fn shared_read(info: &FileInfo, wait: Option<Duration>) -> Result<Lock, LockError> {
        Lock::take(&info.file, &info.path, READ, WRITE | RESIZE, wait)
    }

    /// Reads and writes, and lets no other process do either: for a store, a writable origin and
    /// the target of a merge. With `wait`, tries for that long.
    ///
    /// # Errors
    /// [`LockError::Held`] if another process has it open.
    pub fn exclusive(info: &FileInfo, wait: Option<Duration>) -> Result<Lock, LockError> {
        Lock::take(&info.file, &info.path, ALL, ALL, wait)
    }

    /// For a file that only carries this lock: of several processes that try at a time, one gets it.
    ///
    /// # Errors
    /// [`LockError::Held`] if another process has it.
    pub fn alone(file: &File, path: &Path, wait: Option<Duration>) -> Result<Lock, LockError> {
        let deadline = Instant::now() + wait.unwrap_or_default();
        let fail = |source| LockError::Io { path: path.to_owned(), source };
        loop {
            let lock = Lock { file: file.try_clone().map_err(fail)? };
            match fcntl(file, FcntlArg::F_OFD_SETLK(&range(libc::F_WRLCK, USED, 8))) {
                Ok(_) => return Ok(lock),
                Err(Errno::EAGAIN | Errno::EACCES) if Instant::now() < deadline => {
                    std::thread::sleep(RETRY);
                }
                Err(Errno::EAGAIN | Errno::EACCES) => {
                    return Err(LockError::held(file, path, Reason::NotShared).map_err(fail)?);
                }
                Err(error) => return Err(fail(error.into())),
            }
        }
    }

    fn take(
        file: &File,
        path: &Path,
        used: u8,
        not_shared: u8,
        wait: Option<Duration>,
    ) -> Result<Lock, LockError> {
        let deadline = Instant::now() + wait.unwrap_or_default();
        let fail = |source| LockError::Io { path: path.to_owned(), source };
        loop {
            let lock = Lock { file: file.try_clone().map_err(fail)? };
            lock.set(used, not_shared).map_err(fail)?;
            let Some(reason) = lock.against(used, not_shared).map_err(fail)? else {
                return Ok(lock);
            };
            drop(lock);
            if Instant::now() >= deadline {
                return Err(LockError::held(file, path, reason).map_err(fail)?);
            }
            std::thread::sleep(RETRY);
        }
    }

    fn set(&self, used: u8, not_shared: u8) -> io::Result<()> {
        for (base, bits) in [(USED, used), (NOT_SHARED, not_shared)] {
            for (start, len) in runs(base, bits) {
                fcntl(&self.file, FcntlArg::F_OFD_SETLK(&range(libc::F_RDLCK, start, len)))?;
            }
        }
        Ok(())
    }

    /// The conflicting locks of other processes.
    fn against(&self, used: u8, not_shared: u8) -> io::Result<Option<Reason>> {
        for (base, bits, reason) in
            [(NOT_SHARED, used, Reason::NotShared), (USED, not_shared, Reason::Used)]
        {
            for (start, len) in runs(base, bits) {
                // A write lock would conflict with any read lock; the present open file description
                // is ignored.
                let mut probe = range(libc::F_WRLCK, start, len);
                fcntl(&self.file, FcntlArg::F_OFD_GETLK(&mut probe))?;
                if probe.l_type != libc::F_UNLCK as libc::c_short {
                    return Ok(Some(reason));
                }
            }
        }
        Ok(None)
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        for base in [USED, NOT_SHARED] {
            // It is released with the descriptor at the latest, so an error needs no report.
            let _ = fcntl(&self.file, FcntlArg::F_OFD_SETLK(&range(libc::F_UNLCK, base, 8)));
        }
    }
}

/// The bytes for `bits`, as runs of neighbours: the start and length of each. A guest waits while a
/// store is opened, and each run takes two system calls.
fn runs(base: i64, bits: u8) -> impl Iterator<Item = (i64, i64)> {
    let mut left = bits;
    let mut at = base;
    std::iter::from_fn(move || {
        let gap = left.trailing_zeros();
        let len = left.checked_shr(gap)?.trailing_ones();
        at += i64::from(gap);
        let run = (at, i64::from(len));
        left = left.checked_shr(gap + len).unwrap_or(0);
        at += i64::from(len);
        Some(run)
    })
}

fn range(kind: libc::c_int, start: i64, len: i64) -> libc::flock {
    libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: start,
        l_len: len,
        l_pid: 0,
    }
}
