//! Carrying out a job on a queue, and timing it.
//!
//! Owns the loop that keeps the queue at its depth. Never knows which server it drives. The loop
//! takes all available completions, submits as many requests, and notifies the server once; it
//! waits if there are none.

use std::io;
use std::time::{Duration, Instant};

use super::cost::Meter;
use super::histogram::Histogram;
use super::job::{CLUSTER, Job, Offsets, Scale, Walk};
use crate::client::{Buffer, Client, ConnectError, Pool, Queue, RequestError, SubmitError};
use crate::rng::Rng;
use crate::server::ServerError;

/// How long the server may take between two completions.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long a job runs before it is measured.
const WARM_UP: Duration = Duration::from_millis(200);
/// Requests in flight while a disk is filled.
const FILL_DEPTH: usize = 8;

/// Why there is no figure.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// A request failed.
    #[error("{doing}: {error}")]
    Request {
        /// The operation.
        doing: &'static str,
        /// The device's status.
        error: RequestError,
    },
    /// The server is stuck.
    #[error("no completion in {PATIENCE:?} with {0} requests in flight")]
    Stalled(usize),
    /// The disk is smaller than the job needs.
    #[error("the server's disk has {found} bytes, and the jobs need {needed}")]
    Small {
        /// Its size.
        found: u64,
        /// The needed size.
        needed: u64,
    },
    /// The server does not run.
    #[error(transparent)]
    Server(#[from] ServerError),
    /// There is no connection to it.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// An error with a file, a program or the machine.
    #[error("cannot {step}: {source}")]
    Io {
        /// The operation.
        step: String,
        /// The error.
        source: io::Error,
    },
}

impl BenchError {
    /// For `map_err`: an error in the step `step`.
    pub(super) fn at(step: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let step = step.into();
        move |source| Self::Io { step, source }
    }
}

impl From<io::Error> for BenchError {
    fn from(source: io::Error) -> Self {
        Self::Io { step: "drive the queue".to_owned(), source }
    }
}

impl From<SubmitError> for BenchError {
    fn from(error: SubmitError) -> Self {
        Self::Io { step: "submit a request".to_owned(), source: error.source }
    }
}

/// The result of one repetition.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sample {
    /// Requests completed in that time, without flushes.
    pub ios: u64,
    /// The time.
    pub elapsed: Duration,
    /// The median latency; none if several requests were in flight at once.
    pub p50: Option<Duration>,
    /// The longest time without a completion.
    pub gap: Duration,
}

impl Sample {
    /// Requests a second.
    pub fn iops(&self) -> f64 {
        self.ios as f64 / self.elapsed.as_secs_f64().max(1e-9)
    }
}

/// A session for one repetition of one job.
pub(super) struct Driver {
    queue: Queue,
    job: Job,
    disk: u64,
    idle: Vec<Buffer>,
    spare: Vec<Buffer>,
}

/// The end of a period of work.
#[derive(Clone, Copy)]
enum End {
    /// With the last offset.
    WithOffsets,
    /// After this time, or with the last offset.
    After(Duration),
}

impl End {
    fn is_at(self, elapsed: Duration) -> bool {
        matches!(self, Self::After(time) if elapsed >= time)
    }
}

/// The measurements of a period of work, taken at each batch of completions. The clock is read once
/// per batch.
struct Watch {
    start: Instant,
    last: Instant,
    gap: Duration,
    ios: u64,
    latencies: Option<Histogram>,
}

impl Watch {
    /// Begins now. At depth 1 the time between two completions is the latency; the client's part of
    /// it is a fraction of a microsecond.
    fn begin(depth: usize) -> Self {
        let start = Instant::now();
        let latencies = (depth == 1).then(Histogram::default);
        Self { start, last: start, gap: Duration::ZERO, ios: 0, latencies }
    }

    fn completed(&mut self, ios: u64) {
        let now = Instant::now();
        let since = now - self.last;
        self.last = now;
        self.gap = self.gap.max(since);
        self.ios += ios;
        if let Some(latencies) = &mut self.latencies {
            latencies.add(since);
        }
    }

    fn sample(&self) -> Sample {
        Sample {
            ios: self.ios,
            elapsed: self.last - self.start,
            p50: self.latencies.as_ref().and_then(Histogram::median),
            gap: self.gap,
        }
    }
}

impl Driver {
    /// Bytes of shared memory for filling a disk.
    pub(super) const FILL_POOL: usize = (FILL_DEPTH + 1) * CLUSTER as usize;

    /// A session only for filling a disk of `disk` bytes.
    pub(super) fn to_fill(client: Client, disk: u64) -> Result<Self, BenchError> {
        Self::new(client, Job::FILL, disk)
    }

    /// Takes the first queue of `client` for `job` on a disk of `disk` bytes.
    pub(super) fn new(client: Client, job: Job, disk: u64) -> Result<Self, BenchError> {
        let found = client.info().capacity;
        if found < disk {
            return Err(BenchError::Small { found, needed: disk });
        }
        let (queues, mut pool) = client.into_parts();
        let queue =
            queues.into_iter().next().ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
        let idle = filled_buffers(&mut pool, job.depth, job.block)?;
        let spare = if job.half_written {
            filled_buffers(&mut pool, FILL_DEPTH, CLUSTER)?
        } else {
            Vec::new()
        };
        Ok(Self { queue, job, disk, idle, spare })
    }

    /// Brings disk and server into the state in which they are measured.
    pub(super) fn prepare(&mut self, seed: u64) -> Result<(), BenchError> {
        if self.job.half_written {
            self.fill((0..self.disk / CLUSTER).step_by(2).map(|c| c * CLUSTER).collect())?;
        }
        // First writes cannot be rehearsed: reads warm up the server and the client instead.
        let rehearsal = match self.job.walk.is_fixed() {
            true => Job { write: false, flush_every: None, walk: Walk::Random, ..self.job },
            false => self.job,
        };
        let offsets = rehearsal.offsets(self.disk, seed ^ u64::MAX);
        self.stretch(&rehearsal, offsets, End::After(WARM_UP)).map(drop)?;
        self.drain()
    }

    /// A short measurement of the rate, for `time` at most.
    pub(super) fn glance(
        &mut self,
        time: Duration,
        seed: u64,
        meter: &mut dyn Meter,
    ) -> Result<Sample, BenchError> {
        let job = self.job;
        let offsets = job.offsets(self.disk, seed);
        meter.start();
        let sample = self.stretch(&job, offsets, End::After(time))?;
        meter.stop();
        self.drain()?;
        Ok(sample)
    }

    /// Measures one repetition, from the first request to the last completion or the end of the
    /// time; `meter` runs for the same time.
    pub(super) fn measure(
        &mut self,
        scale: &Scale,
        seed: u64,
        meter: &mut dyn Meter,
    ) -> Result<Sample, BenchError> {
        let job = self.job;
        let offsets = job.offsets(self.disk, seed);
        let end = match job.walk.is_fixed() {
            true => End::WithOffsets,
            false => End::After(Duration::from_secs_f64(scale.seconds)),
        };
        meter.start();
        let sample = self.stretch(&job, offsets, end)?;
        meter.stop();
        self.drain()?;
        Ok(sample)
    }

    /// Drives the job until `over` returns true, which is called with the time of every batch of
    /// completions.
    pub(super) fn drive(
        &mut self,
        seed: u64,
        over: impl FnMut(Instant) -> Result<bool, BenchError>,
    ) -> Result<Sample, BenchError> {
        let job = self.job;
        let offsets = job.offsets(self.disk, seed);
        let sample = self.stretch_until(&job, offsets, over)?;
        self.drain()?;
        Ok(sample)
    }

    fn stretch(&mut self, job: &Job, offsets: Offsets, end: End) -> Result<Sample, BenchError> {
        let start = Instant::now();
        self.stretch_until(job, offsets, |now| Ok(end.is_at(now - start)))
    }

    fn stretch_until(
        &mut self,
        job: &Job,
        mut offsets: Offsets,
        mut over: impl FnMut(Instant) -> Result<bool, BenchError>,
    ) -> Result<Sample, BenchError> {
        let mut until_flush = job.flush_every;
        let mut more = true;
        let mut watch = Watch::begin(job.depth);
        loop {
            while more && self.queue.in_flight() < job.depth {
                if until_flush == Some(0) {
                    until_flush = job.flush_every;
                    self.queue.flush(0)?;
                    continue;
                }
                let Some(buffer) = self.idle.pop() else { break };
                let Some(offset) = offsets.next() else {
                    self.idle.push(buffer);
                    more = false;
                    break;
                };
                match job.write {
                    true => self.queue.write(offset, buffer, 1)?,
                    false => self.queue.read(offset, buffer, 1)?,
                }
                until_flush = until_flush.map(|left| left - 1);
            }
            if self.queue.in_flight() == 0 {
                return Ok(watch.sample());
            }
            self.queue.kick()?;
            let ios = self.reap_some(job.write)?;
            watch.completed(ios);
            if over(watch.last)? {
                return Ok(watch.sample());
            }
        }
    }

    /// Waits if there are no completions, and takes all. Returns the number of reads and writes.
    fn reap_some(&mut self, write: bool) -> Result<u64, BenchError> {
        let doing = if write { "write" } else { "read" };
        let mut ios = 0;
        let mut seen = false;
        loop {
            while let Some(completion) = self.queue.reap() {
                completion.result.map_err(|error| BenchError::Request { doing, error })?;
                seen = true;
                ios += completion.user;
                self.idle.extend(completion.buffer);
            }
            if seen {
                return Ok(ios);
            }
            if !self.queue.wait(PATIENCE)? {
                return Err(BenchError::Stalled(self.queue.in_flight()));
            }
        }
    }

    fn drain(&mut self) -> Result<(), BenchError> {
        self.queue.kick()?;
        while self.queue.in_flight() > 0 {
            self.reap_some(self.job.write)?;
        }
        Ok(())
    }

    /// Writes these clusters, several at a time, and flushes.
    pub(super) fn fill(&mut self, clusters: Vec<u64>) -> Result<(), BenchError> {
        std::mem::swap(&mut self.idle, &mut self.spare);
        let fill =
            Job { write: true, depth: FILL_DEPTH, block: CLUSTER, flush_every: None, ..self.job };
        self.stretch(&fill, Offsets::List(clusters.into_iter()), End::WithOffsets)?;
        self.queue.flush(0)?;
        self.drain()?;
        std::mem::swap(&mut self.idle, &mut self.spare);
        Ok(())
    }
}

/// Buffers of bytes that no server can mistake for zeroes.
pub(super) fn filled_buffers(pool: &mut Pool, count: usize, block: u64) -> io::Result<Vec<Buffer>> {
    let mut rng = Rng::new(block);
    let mut bytes = vec![0; block as usize];
    (0..count)
        .map(|_| {
            for word in bytes.chunks_exact_mut(8) {
                word.copy_from_slice(&rng.next_u64().to_le_bytes());
            }
            let mut buffer = pool.buffer(block as usize)?;
            buffer.store(&bytes);
            Ok(buffer)
        })
        .collect()
}
