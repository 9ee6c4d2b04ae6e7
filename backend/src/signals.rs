//! SIGTERM and SIGINT, waited for by a thread of their own rather than handled.
//!
//! Owns the mask and the descriptor they are read from.

#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, FromRawFd, OwnedFd};

use rustix::process::Signal;

/// Signals that no thread is interrupted by.
pub struct Blocked(OwnedFd);

/// Blocks the signals in this thread and those it starts.
///
/// # Errors
/// What the system says.
pub fn block() -> io::Result<Blocked> {
    let mut set = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: `set` is written by `sigemptyset` before anything reads it, and lives throughout.
    let made = unsafe { libc::sigemptyset(set.as_mut_ptr()) };
    if made != 0 {
        return Err(io::Error::last_os_error());
    }
    for signal in [libc::SIGTERM, libc::SIGINT] {
        // SAFETY: `set` was initialised above.
        unsafe { libc::sigaddset(set.as_mut_ptr(), signal) };
    }
    // SAFETY: `set` was initialised; no old mask is asked for.
    let masked =
        unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, set.as_ptr(), std::ptr::null_mut()) };
    if masked != 0 {
        return Err(io::Error::from_raw_os_error(masked));
    }
    // SAFETY: `set` was initialised; -1 asks for a new descriptor.
    let fd = unsafe { libc::signalfd(-1, set.as_ptr(), libc::SFD_CLOEXEC) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor was just made, and nobody else has it.
    Ok(Blocked(unsafe { OwnedFd::from_raw_fd(fd) }))
}

impl Blocked {
    /// Waits for the next signal; none where it cannot be told which it was.
    pub fn wait(&self) -> Option<Signal> {
        let mut info = [0; size_of::<libc::signalfd_siginfo>()];
        loop {
            match rustix::io::read(self.0.as_fd(), &mut info) {
                Ok(_) => return Signal::from_named_raw(i32::from(info[0])),
                Err(rustix::io::Errno::INTR) => {}
                Err(_) => return None,
            }
        }
    }
}
