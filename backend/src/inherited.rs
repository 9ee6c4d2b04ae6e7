//! Descriptors that the process was started with.
//!
//! Owns the one step from a number to a descriptor of our own.

#![allow(unsafe_code)]

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

/// A descriptor of our own for the open file that this process knows as `number`; `number` itself
/// stays open.
///
/// # Errors
/// `EBADF` where nothing is open under that number.
pub fn inherited(number: i32) -> io::Result<OwnedFd> {
    if number < 0 {
        return Err(io::Error::from_raw_os_error(libc::EBADF));
    }
    // SAFETY: the descriptor is only used for one `fcntl`, which fails on a number that is not
    // open; if another thread closes it at the same time, what is duplicated is whatever the
    // number names then, and no memory depends on it.
    let fd = unsafe { BorrowedFd::borrow_raw(number) };
    fd.try_clone_to_owned()
}
