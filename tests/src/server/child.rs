//! Making children while others have connections.
//!
//! Owns the order between spawning a child and connecting. Never knows the program. Keeps: when
//! [`spawn`] returns, the child holds no connection of this process, so that one that is closed
//! here is closed for its server as well.
//!
//! That descriptors are closed by `exec` does not suffice: `posix_spawn` returns as soon as the
//! child has left this process's memory, which is before that, and a connection whose last holder
//! is the child ends only when the new program runs its first instruction. A server would refuse a
//! front end that reconnects in between, because it has one.

#![allow(unsafe_code)]

use std::ffi::CStr;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Mutex, PoisonError};

use rustix::fs::{FileType, Mode, OFlags, RawDir, fstat, open};
use rustix::io::{FdFlags, fcntl_getfd};

/// Held while a child is spawned.
static SPAWNING: Mutex<()> = Mutex::new(());

/// Spawns `command`. Tests that spawn children while others have connections must use this.
pub fn spawn(command: &mut Command) -> io::Result<Child> {
    // SAFETY: between fork and exec, the function makes system calls only: it takes no lock, and
    // its memory is on the stack.
    unsafe { command.pre_exec(close_sockets) };
    let _alone = SPAWNING.lock().unwrap_or_else(PoisonError::into_inner);
    command.spawn()
}

/// Runs `command` to its end; see [`spawn`].
pub fn output(command: &mut Command) -> io::Result<Output> {
    let piped = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    spawn(piped)?.wait_with_output()
}

/// Waits until no new child holds descriptors that were closed here.
pub(crate) fn settle() {
    drop(SPAWNING.lock().unwrap_or_else(PoisonError::into_inner));
}

/// Closes, in a child, the sockets that `exec` would close. Its parent waits for `exec` by a pipe.
fn close_sockets() -> io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = open(c"/proc/self/fd", flags, Mode::empty())?;
    let mut buffer = [MaybeUninit::uninit(); 4096];
    let mut entries = RawDir::new(&directory, &mut buffer);
    while let Some(entry) = entries.next() {
        if let Some(number) = number(entry?.file_name()) {
            close_socket(number)?;
        }
    }
    Ok(())
}

/// The descriptor that an entry of the directory is named after; none for `.` and `..`.
fn number(name: &CStr) -> Option<RawFd> {
    name.to_str().ok()?.parse().ok()
}

fn close_socket(number: RawFd) -> io::Result<()> {
    // SAFETY: the directory lists it, and this is the only thread of the process.
    let fd = unsafe { BorrowedFd::borrow_raw(number) };
    let is_socket = FileType::from_raw_mode(fstat(fd)?.st_mode) == FileType::Socket;
    if is_socket && fcntl_getfd(fd)?.contains(FdFlags::CLOEXEC) {
        // SAFETY: `exec` would close it, and nothing uses it before.
        unsafe { rustix::io::close(number) };
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::net::UnixStream;
    use std::sync::mpsc::channel;

    use super::*;

    /// Another test disconnects while a child is made, and reconnects as soon as it is.
    #[test]
    fn a_connection_that_was_closed_is_closed_when_a_child_was_made() {
        for round in 0..300 {
            let (front_end, mut server) = UnixStream::pair().unwrap();
            server.set_nonblocking(true).unwrap();
            let children = format!("/proc/self/task/{}/children", rustix::thread::gettid());
            let (ready, begin) = channel();
            let other = std::thread::spawn(move || {
                ready.send(()).unwrap();
                while std::fs::read(&children).unwrap().is_empty() {}
                drop(front_end);
            });
            begin.recv().unwrap();
            let mut child = spawn(Command::new("true").stdin(Stdio::null())).unwrap();
            other.join().unwrap();
            settle();
            assert_eq!(server.read(&mut [0]).ok(), Some(0), "round {round}: it is still open");
            assert!(child.wait().unwrap().success());
        }
    }
}
