//! One queue's share of a verified load.
//!
//! Owns the choice of the next request and this queue's requests in flight. Never decides the
//! permitted content of a sector: the ledger does.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::ops::Range;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use super::stamp::{Generation, SECTOR, stamp_run};
use super::{Done, Effect, Failure, Ledger, Load, Ticket, Watch, lock};
use crate::client::{BUFFER_ALIGNMENT, Buffer, Completion, DeviceInfo, Pool, Queue};
use crate::rng::Rng;

/// How far into a buffer a request's memory may begin: a guest may use any alignment.
const MAX_SKIP: usize = BUFFER_ALIGNMENT;
/// The most segments of one request, so that the ring holds many requests.
const MAX_SEGMENTS: usize = 12;
/// How many ranges are tried for a request before it is postponed.
const TRIES: usize = 16;

/// Bytes of the pool for one buffer for requests of up to `max_len`.
pub(super) fn room(max_len: usize) -> usize {
    (max_len + MAX_SKIP).next_multiple_of(BUFFER_ALIGNMENT)
}

/// The buffers of one queue.
pub(super) fn buffers(pool: &mut Pool, load: &Load) -> io::Result<Vec<Buffer>> {
    (0..load.depth).map(|_| pool.buffer(room(load.max_len))).collect()
}

#[derive(Clone, Debug)]
enum Kind {
    Read,
    Write(Generation),
    Flush,
    Discard,
    WriteZeroes { unmap: bool },
}

/// A chosen request, as a failure names it.
#[derive(Clone, Debug)]
struct Plan {
    kind: Kind,
    sectors: Range<u64>,
    ticket: Ticket,
}

impl Plan {
    fn offset(&self) -> u64 {
        self.sectors.start * SECTOR as u64
    }

    fn len(&self) -> u64 {
        (self.sectors.end - self.sectors.start) * SECTOR as u64
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            Kind::Flush => return write!(f, "flush"),
            Kind::Read => write!(f, "read")?,
            Kind::Write(Generation(g)) => write!(f, "write of generation {g}")?,
            Kind::Discard => write!(f, "discard")?,
            Kind::WriteZeroes { unmap } => write!(f, "write zeroes (unmap {unmap})")?,
        }
        write!(f, " of {} bytes at {}", self.len(), self.offset())
    }
}

pub(super) struct Worker<'a> {
    index: usize,
    queue: Queue,
    idle: Vec<Buffer>,
    info: DeviceInfo,
    load: Load,
    rng: Rng,
    ledger: &'a Mutex<Ledger>,
    watch: &'a Watch,
    in_flight: HashMap<u64, Plan>,
    submitted: u64,
    acknowledged: u64,
    ring_full: bool,
    bytes: Vec<u8>,
}

impl<'a> Worker<'a> {
    pub(super) fn new(
        index: usize,
        queue: Queue,
        idle: Vec<Buffer>,
        info: DeviceInfo,
        load: Load,
        ledger: &'a Mutex<Ledger>,
        watch: &'a Watch,
    ) -> Self {
        let rng = Rng::new(load.seed.wrapping_add((index as u64) << 48));
        Self {
            index,
            queue,
            idle,
            info,
            load,
            rng,
            ledger,
            watch,
            in_flight: HashMap::new(),
            submitted: 0,
            acknowledged: 0,
            ring_full: false,
            bytes: Vec::new(),
        }
    }

    /// Runs until all requests have ended, or the server is gone.
    pub(super) fn run(mut self) -> Result<Done, Failure> {
        let mut last_completion = Instant::now();
        loop {
            self.fill()?;
            if self.in_flight.is_empty() && self.submitted == self.load.requests {
                break;
            }
            // Checked before the ring: a server that has gone adds nothing after this.
            let gone = self.watch.is_gone();
            if self.reap_all()? > 0 {
                last_completion = Instant::now();
                continue;
            }
            if gone {
                break;
            }
            self.queue.wait(Duration::from_millis(50))?;
            if last_completion.elapsed() > self.load.patience {
                return Err(self.stalled());
            }
        }
        Ok(Done { acknowledged: self.acknowledged, lost: self.in_flight.len() as u64 })
    }

    /// Submits requests until the intended number is in flight.
    fn fill(&mut self) -> Result<(), Failure> {
        self.ring_full = false;
        while !self.ring_full
            && self.in_flight.len() < self.load.depth
            && self.submitted < self.load.requests
            && !self.watch.is_gone()
        {
            let Some(plan) = self.choose() else { break };
            self.submit(plan)?;
        }
        Ok(self.queue.kick()?)
    }

    /// Chooses the next request; none if all ranges that were tried are in use.
    fn choose(&mut self) -> Option<Plan> {
        let mix = self.load.mix;
        let mut roll = self.rng.below(100);
        let mut chosen = |percent: u64, offered: bool| {
            let hit = roll < percent;
            roll = roll.saturating_sub(percent);
            hit && offered
        };
        let (mut kind, mut limit) = (Kind::Read, u64::MAX);
        if chosen(mix.write, true) {
            kind = Kind::Write(Generation::ZEROES);
        } else if chosen(mix.flush, self.info.flush) {
            kind = Kind::Flush;
        } else if chosen(mix.discard, self.info.max_discard > 0) {
            (kind, limit) = (Kind::Discard, self.info.max_discard);
        } else if chosen(mix.write_zeroes, self.info.max_write_zeroes > 0) {
            let unmap = self.rng.chance(50);
            (kind, limit) = (Kind::WriteZeroes { unmap }, self.info.max_write_zeroes);
        }
        for _ in 0..TRIES {
            let sectors = if matches!(kind, Kind::Flush) { 0..0 } else { self.choose_range(limit) };
            let mut ledger = lock(self.ledger);
            if matches!(kind, Kind::Write(_)) {
                kind = Kind::Write(ledger.next_generation());
            }
            let effect = match kind {
                Kind::Read | Kind::Flush => Effect::Observe,
                Kind::Write(generation) => Effect::Store(generation),
                Kind::Discard => Effect::Forget,
                Kind::WriteZeroes { .. } => Effect::Zero,
            };
            if let Some(ticket) = ledger.claim(sectors.clone(), effect) {
                return Some(Plan { kind, sectors, ticket });
            }
        }
        None
    }

    /// A range of any length up to the largest, short ones as likely as long ones; half of them on
    /// 4 KiB boundaries.
    fn choose_range(&mut self, limit: u64) -> Range<u64> {
        let block = u64::from(self.info.block_size);
        let unit = if self.rng.chance(50) { block.max(4096) } else { block };
        let most = (self.load.max_len as u64).min(limit).min(self.info.capacity).max(unit);
        let scale = unit << self.rng.below(u64::from((most / unit).ilog2()) + 1);
        let len = (unit + self.rng.below(scale)).min(most) / unit * unit;
        let places = (self.info.capacity - len) / unit + 1;
        let start = self.rng.below(places) * unit;
        start / SECTOR as u64..(start + len) / SECTOR as u64
    }

    /// Lays out memory for a request: any alignment, one or several segments.
    fn lay_out(&mut self, buffer: &mut Buffer, len: usize) {
        let skip = match self.rng.below(4) {
            0 => self.rng.below(MAX_SKIP as u64) as usize,
            1 => SECTOR * self.rng.below((MAX_SKIP / SECTOR) as u64) as usize,
            _ => 0,
        };
        buffer.set_part(skip, len);
        let most = MAX_SEGMENTS.min(self.info.max_segments as usize);
        let segments = 1 + self.rng.below(most as u64) as usize;
        let even = len.div_ceil(segments);
        let segment = match self.rng.below(4) {
            0 => even,
            1 => even.next_multiple_of(SECTOR),
            2 => even.next_multiple_of(BUFFER_ALIGNMENT),
            _ => len,
        };
        buffer.set_segment(segment);
    }

    fn submit(&mut self, plan: Plan) -> Result<(), Failure> {
        let (offset, len, user) = (plan.offset(), plan.len(), plan.ticket.0);
        let buffer = match plan.kind {
            Kind::Read | Kind::Write(_) => self.idle.pop().map(|mut buffer| {
                self.lay_out(&mut buffer, len as usize);
                buffer
            }),
            _ => None,
        };
        let submitted = match (&plan.kind, buffer) {
            (Kind::Read, Some(buffer)) => self.queue.read(offset, buffer, user),
            (Kind::Write(generation), Some(mut buffer)) => {
                self.bytes.resize(len as usize, 0);
                stamp_run(plan.sectors.start, *generation, &mut self.bytes);
                buffer.store(&self.bytes);
                self.queue.write(offset, buffer, user)
            }
            (Kind::Discard, _) => self.queue.discard(offset, len, user),
            (Kind::WriteZeroes { unmap }, _) => self.queue.write_zeroes(offset, len, *unmap, user),
            (Kind::Flush, _) => self.queue.flush(user),
            (Kind::Read | Kind::Write(_), None) => {
                unreachable!("there are as many buffers as requests in flight")
            }
        };
        match submitted {
            Ok(()) => {
                self.submitted += 1;
                self.in_flight.insert(user, plan);
                Ok(())
            }
            Err(refused) => {
                lock(self.ledger).withdraw(plan.ticket);
                self.idle.extend(refused.buffer);
                self.ring_full = true;
                // A full ring becomes free; an empty one that refuses a request never does.
                if self.in_flight.is_empty() { Err(refused.source.into()) } else { Ok(()) }
            }
        }
    }

    fn reap_all(&mut self) -> Result<usize, Failure> {
        let mut reaped = 0;
        while let Some(completion) = self.queue.reap() {
            self.finish(completion)?;
            reaped += 1;
        }
        Ok(reaped)
    }

    fn finish(&mut self, completion: Completion) -> Result<(), Failure> {
        let Some(plan) = self.in_flight.remove(&completion.user) else { return Ok(()) };
        let request = || format!("queue {}: {plan}", self.index);
        if let Err(error) = completion.result {
            return Err(Failure::Refused { request: request(), error });
        }
        if let (Kind::Read, Some(buffer)) = (&plan.kind, &completion.buffer) {
            buffer.load(&mut self.bytes);
            lock(self.ledger)
                .check(plan.sectors.start, &self.bytes)
                .map_err(|mismatch| Failure::Wrong { request: request(), mismatch })?;
        }
        lock(self.ledger).acknowledge(plan.ticket);
        self.acknowledged += 1;
        self.watch.acknowledge();
        self.idle.extend(completion.buffer);
        Ok(())
    }

    fn stalled(&self) -> Failure {
        let oldest = self.in_flight.values().min_by_key(|plan| plan.ticket.0);
        Failure::Stalled {
            patience: self.load.patience,
            in_flight: self.in_flight.len(),
            oldest: oldest.map_or_else(|| "none".to_owned(), Plan::to_string),
        }
    }
}
