//! An executor for work without a guest, over the process's files.
//!
//! Owns the worker's executor, the descriptor that wakes it, and the buffers for copied data.
//! Never knows what the work is.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use rustix::event::{EventfdFlags, eventfd};

use super::{CopyExecutor, Executor};
use crate::io::{
    Action, Completion, Errno, FileId, Files, GuestData, Io, IoOptions, Pages, ScratchConfig, Seg,
    Slices, Storage,
};
use crate::request::Token;
use crate::workers::Wake;

/// The key of the waker among the watched descriptors.
const WAKE: u64 = 0;

/// See the module's description.
#[derive(Debug)]
pub struct FileExecutor {
    files: Arc<Files>,
    io: Io,
    event: Arc<OwnedFd>,
    copies: Copies,
}

impl FileExecutor {
    /// As [`FileExecutor::new`], with room for the bytes of `copies` requests of
    /// [`SLICE`](crate::io::SLICE) bytes each.
    ///
    /// # Errors
    /// There is no memory, or there are too many descriptors.
    pub fn copying(
        files: Arc<Files>,
        scratch: ScratchConfig,
        options: IoOptions,
        copies: usize,
    ) -> io::Result<FileExecutor> {
        let mut executor = FileExecutor::new(files, scratch, options)?;
        executor.copies = Copies(Slices::new(copies, scratch.pages)?);
        Ok(executor)
    }

    /// An executor over `files` with this memory for the engine.
    ///
    /// # Errors
    /// There is no memory, or there are too many descriptors.
    pub fn new(
        files: Arc<Files>,
        scratch: ScratchConfig,
        options: IoOptions,
    ) -> io::Result<FileExecutor> {
        let event = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let mut io = Io::new(files.clone(), scratch, options)?;
        io.watch(event.as_fd(), WAKE)?;
        Ok(FileExecutor { files, io, event, copies: Copies(Slices::new(0, Pages::Small)?) })
    }
}

impl Drop for FileExecutor {
    fn drop(&mut self) {
        if !self.io.settle() {
            // The kernel may still read there: what is mapped next at this address must not be written
            // to a disk.
            self.copies.0.leak();
        }
    }
}

impl Executor for FileExecutor {
    fn adopt(&mut self, files: &[FileId]) {
        self.io.adopt_files(files);
    }

    fn submit(&mut self, action: &Action, segs: &[Seg], meta: &[u8]) {
        self.io.submit(action, segs, meta, &self.copies);
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

    fn scratch(&self, seg: &Seg) -> Vec<u8> {
        let Seg::Scratch { buf, offset, len } = *seg else { return Vec::new() };
        let mut bytes = vec![0; len as usize];
        if self.io.get_scratch(buf, offset as usize, &mut bytes) { bytes } else { Vec::new() }
    }
}

struct EventWake(Arc<OwnedFd>);

impl Wake for EventWake {
    fn wake(&self) {
        // The only failure is a full counter, which also wakes the thread.
        let _ = rustix::io::write(&*self.0, &1u64.to_ne_bytes());
    }
}

impl CopyExecutor for FileExecutor {
    fn copies(&self) -> usize {
        self.copies.0.count()
    }

    fn fetch(
        &mut self,
        copy: Token,
        at: usize,
        file: FileId,
        offset: u64,
        len: usize,
    ) -> Result<(), Errno> {
        let FileExecutor { files, copies, .. } = self;
        let info = files.get(file).ok_or(Errno(libc::EBADF))?;
        let bytes = copies.0.bytes_mut(copy.0 as usize);
        let read = info.read_at(&mut bytes[at..at + len], offset);
        read.map_err(|error| error.raw_os_error().map_or(Errno::EIO, Errno))
    }
}

/// The bytes that copying requests write, by their tokens; other work has none.
#[derive(Debug)]
struct Copies(Slices);

impl GuestData for Copies {
    fn push_iovecs(&self, copy: Token, offset: u32, len: u32, out: &mut Vec<libc::iovec>) {
        out.extend(self.0.piece(copy.0 as usize, offset as usize, len as usize));
    }
}
