//! SIGTERM and SIGINT, waited for by a thread of their own rather than handled; and SIGXFSZ, which
//! nobody is to be killed by.
//!
//! Owns the mask and the descriptor they are read from.

use std::io;

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

/// Signals that no thread is interrupted by.
pub struct Blocked(SignalFd);

/// Blocks the signals in this thread and those it starts.
///
/// # Errors
/// What the system says.
pub fn block() -> io::Result<Blocked> {
    let mut set = SigSet::empty();
    set.add(Signal::SIGTERM);
    set.add(Signal::SIGINT);
    set.thread_block()?;
    Ok(Blocked(SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC)?))
}

/// Blocks the signal of a file that would get larger than this process may make one, in this thread
/// and those it starts: the system call says so as well, and a request fails instead of the process.
///
/// # Errors
/// What the system says.
pub fn block_file_size() -> io::Result<()> {
    let mut set = SigSet::empty();
    set.add(Signal::SIGXFSZ);
    Ok(set.thread_block()?)
}

impl Blocked {
    /// Waits for the next signal; its number, or none where it cannot be told.
    pub fn wait(&self) -> Option<i32> {
        self.0.read_signal().ok().flatten().and_then(|info| info.ssi_signo.try_into().ok())
    }
}
