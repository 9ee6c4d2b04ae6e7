//! A disk for simple tests: one request at a time, with the bytes at hand.
//!
//! Owns a session of one queue and one buffer. Never checks anything: the caller gets the result of
//! each request.

use std::io;
use std::path::Path;
use std::time::Duration;

use crate::client::{Buffer, Client, Connect, ConnectError, DeviceInfo, Queue, RequestError};

/// The most bytes in a request.
pub const MOST: usize = 1 << 20;

/// How long a request may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// Why a request did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// The device reported an error.
    #[error("{0}")]
    Refused(#[from] RequestError),
    /// The client itself failed.
    #[error("the client failed: {0}")]
    Client(#[from] io::Error),
    /// There was no completion.
    #[error("the device did not answer within {PATIENCE:?}")]
    Silent,
}

impl DiskError {
    /// Whether the device reported that the request failed.
    pub fn is_refused(&self) -> bool {
        matches!(self, DiskError::Refused(_))
    }
}

/// A connected disk.
pub struct Disk {
    queue: Queue,
    buffer: Option<Buffer>,
    info: DeviceInfo,
    requests: u64,
}

impl Disk {
    /// Connects to the server at `socket`.
    ///
    /// # Errors
    /// The reason why there is no session.
    pub fn connect(socket: &Path) -> Result<Disk, ConnectError> {
        let client = Client::connect(&Connect::to(socket).pool(MOST))?;
        let info = client.info();
        let (mut queues, mut pool) = client.into_parts();
        let failed = |source| ConnectError::Step {
            step: "take a buffer",
            socket: socket.to_owned(),
            source,
        };
        let buffer = pool.buffer(MOST).map_err(failed)?;
        Ok(Disk { queue: queues.swap_remove(0), buffer: Some(buffer), info, requests: 0 })
    }

    /// The device's properties.
    pub fn info(&self) -> DeviceInfo {
        self.info
    }

    /// Reads `len` bytes, at most [`MOST`], from `offset`.
    ///
    /// # Errors
    /// The device's, or [`DiskError::Silent`].
    pub fn read(&mut self, offset: u64, len: usize) -> Result<Vec<u8>, DiskError> {
        self.begin_read(offset, len)?;
        self.end(PATIENCE)?;
        let mut bytes = Vec::new();
        if let Some(buffer) = &self.buffer {
            buffer.load(&mut bytes);
        }
        Ok(bytes)
    }

    /// Reads the whole disk.
    ///
    /// # Errors
    /// As [`Disk::read`].
    pub fn read_all(&mut self) -> Result<Vec<u8>, DiskError> {
        let mut all = Vec::with_capacity(self.info.capacity as usize);
        while (all.len() as u64) < self.info.capacity {
            let at = all.len() as u64;
            let len = (self.info.capacity - at).min(MOST as u64) as usize;
            all.extend(self.read(at, len)?);
        }
        Ok(all)
    }

    /// Writes `bytes`, any number of them, at `offset`.
    ///
    /// # Errors
    /// As [`Disk::read`]; the parts before the failed request are written.
    pub fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<(), DiskError> {
        for (n, part) in bytes.chunks(MOST).enumerate() {
            self.begin_write(offset + (n * MOST) as u64, part)?;
            self.end(PATIENCE)?;
        }
        Ok(())
    }

    /// Makes earlier writes durable.
    ///
    /// # Errors
    /// As [`Disk::read`].
    pub fn flush(&mut self) -> Result<(), DiskError> {
        self.requests += 1;
        self.queue.flush(self.requests).map_err(|error| error.source)?;
        self.queue.kick()?;
        self.end(PATIENCE)
    }

    /// Discards `len` bytes at `offset`.
    ///
    /// # Errors
    /// As [`Disk::read`].
    pub fn discard(&mut self, offset: u64, len: u64) -> Result<(), DiskError> {
        self.requests += 1;
        self.queue.discard(offset, len, self.requests).map_err(|error| error.source)?;
        self.queue.kick()?;
        self.end(PATIENCE)
    }

    /// Writes zeroes to `len` bytes at `offset`; with `unmap`, space may be given back.
    ///
    /// # Errors
    /// As [`Disk::read`].
    pub fn write_zeroes(&mut self, offset: u64, len: u64, unmap: bool) -> Result<(), DiskError> {
        self.requests += 1;
        let sent = self.queue.write_zeroes(offset, len, unmap, self.requests);
        sent.map_err(|error| error.source)?;
        self.queue.kick()?;
        self.end(PATIENCE)
    }

    /// Sends a read and does not wait for it.
    ///
    /// # Errors
    /// The client's own.
    pub fn begin_read(&mut self, offset: u64, len: usize) -> Result<(), DiskError> {
        let mut buffer = self.take_buffer()?;
        buffer.set_part(0, len);
        self.requests += 1;
        self.queue.read(offset, buffer, self.requests).map_err(|error| error.source)?;
        Ok(self.queue.kick()?)
    }

    /// Sends a write of at most [`MOST`] bytes and does not wait for it.
    ///
    /// # Errors
    /// The client's own.
    pub fn begin_write(&mut self, offset: u64, bytes: &[u8]) -> Result<(), DiskError> {
        let mut buffer = self.take_buffer()?;
        buffer.set_part(0, bytes.len());
        buffer.store(bytes);
        self.requests += 1;
        self.queue.write(offset, buffer, self.requests).map_err(|error| error.source)?;
        Ok(self.queue.kick()?)
    }

    fn take_buffer(&mut self) -> io::Result<Buffer> {
        self.buffer.take().ok_or_else(|| io::ErrorKind::ResourceBusy.into())
    }

    /// Waits for the request that was sent.
    ///
    /// # Errors
    /// The device's; or [`DiskError::Silent`] if there was no completion within `patience`, and the
    /// wait can be repeated.
    pub fn end(&mut self, patience: Duration) -> Result<(), DiskError> {
        loop {
            if let Some(completion) = self.queue.reap() {
                self.buffer = completion.buffer.or(self.buffer.take());
                return Ok(completion.result?);
            }
            if !self.queue.wait(patience)? {
                return Err(DiskError::Silent);
            }
        }
    }
}
