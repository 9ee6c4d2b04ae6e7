//! A load of constant depth: the costs measured while it runs are only the server's.
//!
//! Owns a queue of a session, mostly the only one, and keeps it at its depth: takes all available
//! completions, submits as many requests, notifies once, and waits if there are none. Never reads
//! the bytes, and allocates nothing while it runs.

use std::time::Duration;

use crate::client::{Buffer, Client, Connect, ConnectError, DeviceInfo, Queue};
use crate::disk::DiskError;

/// How long the server may take between two completions.
const PATIENCE: Duration = Duration::from_secs(20);

/// One request; offsets and lengths in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ask {
    /// Read that many bytes from there.
    Read(u64, usize),
    /// Write that many bytes there.
    Write(u64, usize),
    /// Make acknowledged writes durable.
    Flush,
}

/// A connected load.
pub struct Steady {
    queue: Queue,
    info: DeviceInfo,
    idle: Vec<Buffer>,
}

impl Steady {
    /// Connects with `connect`, for `depth` requests at a time of at most `len` bytes.
    ///
    /// # Errors
    /// The reason why there is no session.
    pub fn connect(connect: Connect, depth: usize, len: usize) -> Result<Steady, ConnectError> {
        Ok(Steady::connect_each(connect.queues(1), depth, len)?.swap_remove(0))
    }

    /// The same for each queue of `connect`, to be run by separate threads.
    ///
    /// # Errors
    /// The reason why there is no session.
    pub fn connect_each(
        connect: Connect,
        depth: usize,
        len: usize,
    ) -> Result<Vec<Steady>, ConnectError> {
        let room = connect.queues * depth * len.next_multiple_of(4096);
        let socket = connect.socket.clone();
        let step = "take buffers";
        let failed = |source| ConnectError::Step { step, socket: socket.clone(), source };
        let client = Client::connect(&connect.pool(room))?;
        let info = client.info();
        let (queues, mut pool) = client.into_parts();
        let mut load = |queue| {
            let buffers: Result<Vec<Buffer>, _> = (0..depth)
                .map(|n| {
                    let mut buffer = pool.buffer(len)?;
                    buffer.store(&vec![n as u8 | 1; len]);
                    Ok(buffer)
                })
                .collect();
            Ok(Steady { queue, info, idle: buffers.map_err(failed)? })
        };
        queues.into_iter().map(&mut load).collect()
    }

    /// The device's properties.
    pub fn info(&self) -> DeviceInfo {
        self.info
    }

    /// Carries all requests out, as many at a time as there are buffers; returns their number.
    ///
    /// # Errors
    /// The device's, or [`DiskError::Silent`].
    pub fn run(&mut self, asks: impl IntoIterator<Item = Ask>) -> Result<u64, DiskError> {
        let mut asks = asks.into_iter();
        let mut done = 0;
        loop {
            while let Some(buffer) = self.idle.pop() {
                match asks.next() {
                    Some(ask) => self.submit(ask, buffer)?,
                    None => {
                        self.idle.push(buffer);
                        break;
                    }
                }
            }
            if self.queue.in_flight() == 0 {
                return Ok(done);
            }
            self.queue.kick()?;
            if !self.queue.wait(PATIENCE)? {
                return Err(DiskError::Silent);
            }
            while let Some(completion) = self.queue.reap() {
                self.idle.extend(completion.buffer);
                completion.result?;
                done += 1;
            }
        }
    }

    fn submit(&mut self, ask: Ask, mut buffer: Buffer) -> Result<(), DiskError> {
        let put = match ask {
            Ask::Read(offset, len) => {
                buffer.set_part(0, len);
                self.queue.read(offset, buffer, 0)
            }
            Ask::Write(offset, len) => {
                buffer.set_part(0, len);
                self.queue.write(offset, buffer, 0)
            }
            Ask::Flush => {
                self.idle.push(buffer);
                self.queue.flush(0)
            }
        };
        put.map_err(|error| DiskError::Client(error.source))
    }
}
