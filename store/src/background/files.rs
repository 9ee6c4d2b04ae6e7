//! An executor for work without a guest, over the process's files.
//!
//! Owns the worker's executor and the descriptor that wakes it. Never knows what the work is.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use rustix::event::{EventfdFlags, eventfd};

use super::Executor;
use crate::io::{
    Action, Completion, Errno, FileId, Files, GuestData, Io, IoOptions, ScratchConfig, Seg, Storage,
};
use crate::request::Token;
use crate::workers::Wake;

/// Key of the waker among what is watched.
const WAKE: u64 = 0;

/// See the module's description.
#[derive(Debug)]
pub struct FileExecutor {
    files: Arc<Files>,
    io: Io,
    event: Arc<OwnedFd>,
}

impl FileExecutor {
    /// An executor over `files` with `scratch` bytes of memory for the engine.
    ///
    /// # Errors
    /// No memory, or no more descriptors.
    pub fn new(files: Arc<Files>, scratch: u32, options: IoOptions) -> io::Result<FileExecutor> {
        let event = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let scratch = ScratchConfig { buffers: 1, size: scratch };
        let mut io = Io::new(files.clone(), scratch, options)?;
        io.watch(event.as_fd(), WAKE)?;
        Ok(FileExecutor { files, io, event })
    }
}

impl Executor for FileExecutor {
    fn adopt(&mut self, files: &[FileId]) {
        self.io.adopt_files(files);
    }

    fn submit(&mut self, action: &Action, segs: &[Seg], meta: &[u8]) {
        self.io.submit(action, segs, meta, &NoGuest);
    }

    fn completed(&mut self) -> Option<Completion> {
        self.io.completed()
    }

    fn wait(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        self.io.wait(timeout)?;
        while self.io.fired().is_some() {}
        Ok(())
    }

    fn waker(&self) -> Arc<dyn Wake> {
        Arc::new(EventWake(self.event.clone()))
    }

    fn read(&mut self, file: FileId, offset: u64, bytes: &mut [u8]) -> Result<(), Errno> {
        let info = self.files.get(file).ok_or(Errno(libc::EBADF))?;
        info.read_at(bytes, offset).map_err(|error| error.raw_os_error().map_or(Errno::EIO, Errno))
    }
}

struct EventWake(Arc<OwnedFd>);

impl Wake for EventWake {
    fn wake(&self) {
        // The only failure is a counter that is full, and then it wakes all the same.
        let _ = rustix::io::write(&*self.0, &1u64.to_ne_bytes());
    }
}

/// There are no bytes of a guest in this work.
struct NoGuest;

impl GuestData for NoGuest {
    fn push_iovecs(&self, _: Token, _: u32, _: u32, _: &mut Vec<libc::iovec>) {}
}
