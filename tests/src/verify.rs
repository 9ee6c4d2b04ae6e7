//! A random load that knows the expected content of every sector.
//!
//! Owns the choice of requests, their checks, and the report of a failure. It runs over a
//! [`Client`]'s queues, one thread each, and outlives the server: the [`Ledger`] passes from one
//! session to the next, and only requests in flight are in doubt when a server dies.
//!
//! A seed gives each thread the same choices again; the interleaving of the threads depends on the
//! machine.

mod ledger;
pub mod stamp;
mod worker;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::client::{Client, Queue, RequestError};

pub use ledger::{Effect, Ledger, Mismatch, Ticket};
use stamp::SECTOR;
use worker::{Worker, buffers};

/// How often each kind of request is chosen, in percent; the rest are reads.
#[derive(Clone, Copy, Debug)]
pub struct Mix {
    /// Writes.
    pub write: u64,
    /// Flushes.
    pub flush: u64,
    /// Discards, if the device offers them.
    pub discard: u64,
    /// Writes of zeroes, if the device offers them; half of them unmap.
    pub write_zeroes: u64,
}

impl Default for Mix {
    fn default() -> Self {
        Self { write: 50, flush: 2, discard: 4, write_zeroes: 4 }
    }
}

impl Mix {
    /// Writes and reads only.
    pub const READ_WRITE: Self = Self { write: 60, flush: 0, discard: 0, write_zeroes: 0 };
}

/// The parameters of a load.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// The seed of every choice.
    pub seed: u64,
    /// Requests in flight on each queue.
    pub depth: usize,
    /// Requests on each queue in total.
    pub requests: u64,
    /// The most bytes in a request.
    pub max_len: usize,
    /// The mix of requests.
    pub mix: Mix,
    /// How long the device may take between two completions while requests wait.
    pub patience: Duration,
}

impl Load {
    /// 2,000 requests per queue of up to 256 KiB, 64 in flight.
    pub fn new(seed: u64) -> Self {
        Self {
            seed,
            depth: 64,
            requests: 2_000,
            max_len: 256 << 10,
            mix: Mix::default(),
            patience: Duration::from_secs(30),
        }
    }

    /// The same with `requests` requests on each queue.
    pub fn requests(mut self, requests: u64) -> Self {
        self.requests = requests;
        self
    }

    /// The same with `depth` requests in flight on each queue.
    pub fn depth(mut self, depth: usize) -> Self {
        self.depth = depth;
        self
    }

    /// The same with another mix.
    pub fn mix(mut self, mix: Mix) -> Self {
        self.mix = mix;
        self
    }

    /// Bytes of shared memory that the load needs on `queues` queues.
    pub fn pool(&self, queues: usize) -> usize {
        queues * self.depth * worker::room(self.max_len)
    }
}

/// The state shared by the threads that run a load and the one that watches them.
#[derive(Debug, Default)]
pub struct Watch {
    progress: Mutex<Progress>,
    moved: Condvar,
    server_gone: AtomicBool,
}

#[derive(Debug, Default)]
struct Progress {
    acknowledged: u64,
    ended: bool,
}

impl Watch {
    /// Reports that the server is dead and reaped: no completions follow those on the ring.
    pub fn server_is_gone(&self) {
        self.server_gone.store(true, Ordering::Release);
    }

    /// Waits until `count` requests are acknowledged; false if the load ended first.
    pub fn wait_for(&self, count: u64) -> bool {
        let progress = self
            .moved
            .wait_while(self.progress(), |p| p.acknowledged < count && !p.ended)
            .unwrap_or_else(PoisonError::into_inner);
        progress.acknowledged >= count
    }

    fn progress(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn acknowledge(&self) {
        self.progress().acknowledged += 1;
        self.moved.notify_all();
    }

    fn end(&self) {
        self.progress().ended = true;
        self.moved.notify_all();
    }

    fn is_gone(&self) -> bool {
        self.server_gone.load(Ordering::Acquire)
    }
}

/// The result of a load.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Done {
    /// Requests that succeeded.
    pub acknowledged: u64,
    /// Requests that were in flight when the server died.
    pub lost: u64,
}

/// The failure of a load.
#[derive(Debug, thiserror::Error)]
#[error("{kind} (seed {seed}; the same seed gives the same requests)")]
pub struct VerifyError {
    /// The seed that repeats it.
    pub seed: u64,
    /// The failure.
    pub kind: Failure,
}

/// The ways in which a load fails.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// A sector does not have its expected content.
    #[error("{request}: {mismatch}")]
    Wrong {
        /// The read that found it.
        request: String,
        /// The sector.
        mismatch: Mismatch,
    },
    /// The device refused a request.
    #[error("{request}: {error}")]
    Refused {
        /// The request.
        request: String,
        /// The device's error.
        error: RequestError,
    },
    /// Requests wait without a completion.
    #[error(
        "no completion in {patience:?} with {in_flight} requests in flight, among them {oldest}"
    )]
    Stalled {
        /// The time limit.
        patience: Duration,
        /// Requests in flight.
        in_flight: usize,
        /// One of them.
        oldest: String,
    },
    /// The size of the disk is not that of the ledger.
    #[error("the device has {device} bytes, and should have {expected}")]
    Capacity {
        /// The disk's size.
        device: u64,
        /// The expected size.
        expected: u64,
    },
    /// The client itself failed.
    #[error("the client failed: {0}")]
    Client(#[from] std::io::Error),
}

/// Runs `load` on all queues of `client`, one thread each, on one disk.
///
/// Returns early, without error, when `watch` reports that the server is gone: the requests in
/// flight are then in doubt in `ledger`.
pub fn run(
    client: Client,
    ledger: &Mutex<Ledger>,
    load: &Load,
    watch: &Watch,
) -> Result<Done, VerifyError> {
    let fail = |kind| VerifyError { seed: load.seed, kind };
    let info = client.info();
    let expected = lock(ledger).sectors() * SECTOR as u64;
    if info.capacity != expected {
        return Err(fail(Failure::Capacity { device: info.capacity, expected }));
    }
    let (queues, mut pool) = client.into_parts();
    let mut workers = Vec::new();
    for (index, queue) in queues.into_iter().enumerate() {
        let buffers = buffers(&mut pool, load).map_err(|error| fail(error.into()))?;
        workers.push(Worker::new(index, queue, buffers, info, *load, ledger, watch));
    }
    let results: Vec<Result<Done, Failure>> = std::thread::scope(|scope| {
        let threads: Vec<_> =
            workers.into_iter().map(|worker| scope.spawn(move || worker.run())).collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .collect()
    });
    watch.end();
    let mut done = Done::default();
    for result in results {
        let part = result.map_err(fail)?;
        done.acknowledged += part.acknowledged;
        done.lost += part.lost;
    }
    lock(ledger).lose_in_flight();
    Ok(done)
}

/// Reads the whole disk and compares every sector; `seed` is that of the load that wrote it.
pub fn read_back(client: Client, ledger: &Mutex<Ledger>, seed: u64) -> Result<(), VerifyError> {
    const DEPTH: usize = 8;
    const STEP: u64 = 128 << 10;
    let fail = |kind| VerifyError { seed, kind };
    let (info, expected) = (client.info(), lock(ledger).sectors() * SECTOR as u64);
    if info.capacity != expected {
        return Err(fail(Failure::Capacity { device: info.capacity, expected }));
    }
    let (mut queues, mut pool) = client.into_parts();
    let queue = &mut queues[0];
    let mut idle = (0..DEPTH)
        .map(|_| pool.buffer(STEP as usize))
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| fail(error.into()))?;
    let (mut next, mut bytes) = (0, Vec::new());
    while next < info.capacity || queue.in_flight() > 0 {
        while next < info.capacity
            && let Some(mut buffer) = idle.pop()
        {
            let len = STEP.min(info.capacity - next);
            buffer.set_part(0, len as usize);
            queue.read(next, buffer, next).map_err(|error| fail(error.source.into()))?;
            next += len;
        }
        for completion in completions(queue).map_err(fail)? {
            let request = format!("read back at {}", completion.user);
            let Some(buffer) = completion.buffer else { continue };
            if let Err(error) = completion.result {
                return Err(fail(Failure::Refused { request, error }));
            }
            buffer.load(&mut bytes);
            lock(ledger)
                .check(completion.user / SECTOR as u64, &bytes)
                .map_err(|mismatch| fail(Failure::Wrong { request, mismatch }))?;
            idle.push(buffer);
        }
    }
    Ok(())
}

/// Kicks, waits, and takes the completions.
fn completions(queue: &mut Queue) -> Result<Vec<crate::client::Completion>, Failure> {
    const PATIENCE: Duration = Duration::from_secs(30);
    queue.kick()?;
    if !queue.wait(PATIENCE)? {
        let (in_flight, oldest) = (queue.in_flight(), "reads of the whole disk".to_owned());
        return Err(Failure::Stalled { patience: PATIENCE, in_flight, oldest });
    }
    Ok(std::iter::from_fn(|| queue.reap()).collect())
}

/// The ledger, even if a thread panicked while it held the lock: the panic is what is reported.
fn lock(ledger: &Mutex<Ledger>) -> MutexGuard<'_, Ledger> {
    ledger.lock().unwrap_or_else(PoisonError::into_inner)
}
