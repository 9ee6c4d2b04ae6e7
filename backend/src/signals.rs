//! SIGTERM, SIGINT and SIGHUP, which a separate thread waits for, without handlers; and SIGXFSZ,
//! which must not kill the process.
//!
//! Owns the mask and the descriptor that they are read from.

use std::io;

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

/// The number of SIGHUP.
pub const HANGUP: i32 = Signal::SIGHUP as i32;

/// Signals that no thread is interrupted by.
pub struct Blocked(SignalFd);

/// Blocks the signals in this thread and those it starts.
///
/// # Errors
/// The system's error.
pub fn block() -> io::Result<Blocked> {
    let mut set = SigSet::empty();
    set.add(Signal::SIGTERM);
    set.add(Signal::SIGINT);
    if !is_ignored(Signal::SIGHUP) {
        set.add(Signal::SIGHUP);
    }
    set.thread_block()?;
    Ok(Blocked(SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC)?))
}

/// Blocks the signal of a file that would get larger than this process may make one, in this thread
/// and those it starts: the system call says so as well, and a request fails instead of the process.
///
/// # Errors
/// The system's error.
pub fn block_file_size() -> io::Result<()> {
    let mut set = SigSet::empty();
    set.add(Signal::SIGXFSZ);
    Ok(set.thread_block()?)
}

/// Whether the signal was ignored when this process started, as under `nohup`: a blocked signal
/// would arrive nevertheless.
fn is_ignored(signal: Signal) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    mask.is_some_and(|mask| mask >> (signal as i32 - 1) & 1 == 1)
}

impl Blocked {
    /// Waits for the next signal; its number, or none if that cannot be determined.
    pub fn wait(&self) -> Option<i32> {
        self.0.read_signal().ok().flatten().and_then(|info| info.ssi_signo.try_into().ok())
    }
}
