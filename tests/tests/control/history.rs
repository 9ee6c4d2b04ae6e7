//! A load of writes that records when each was sent and when it was acknowledged, so that a point
//! in time can be distinguished from a mixture of several.
//!
//! Owns the writes and their order. A write that was acknowledged before another was sent happened
//! before it: an image with the second and without the first is not a moment.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use snapblk_tests::client::{Client, Connect};
use snapblk_tests::rng::Rng;
use snapblk_tests::verify::stamp::{Found, Generation, SECTOR};

use crate::common::stamped;

/// Writes in flight.
const DEPTH: usize = 16;
/// The most sectors in a write.
const MOST: u64 = 24;
/// The first generation of the disk.
const FIRST: u32 = 1;

/// One write.
#[derive(Clone, Copy, Debug)]
struct Write {
    first: u64,
    sectors: u64,
    /// The moment.
    sent: u64,
    /// The moment; none if it never was.
    acknowledged: Option<u64>,
}

/// Numbers moments, and ends the load.
#[derive(Debug, Default)]
pub(crate) struct Clock {
    now: AtomicU64,
    acknowledged: AtomicU64,
    ended: AtomicBool,
}

impl Clock {
    /// A moment after all earlier ones.
    pub(crate) fn tick(&self) -> u64 {
        self.now.fetch_add(1, Ordering::SeqCst)
    }

    /// Waits until that many more writes were acknowledged.
    pub(crate) fn wait_for(&self, more: u64) {
        let until = self.acknowledged.load(Ordering::SeqCst) + more;
        while self.acknowledged.load(Ordering::SeqCst) < until {
            assert!(!self.ended.load(Ordering::SeqCst), "the load has ended");
            std::thread::yield_now();
        }
    }

    /// Ends the load once the requests in flight have completed.
    pub(crate) fn end(&self) {
        self.ended.store(true, Ordering::SeqCst);
    }
}

/// All writes to a disk of generation 1. Write `n` has generation `n + 2`.
#[derive(Debug)]
pub(crate) struct History {
    sectors: u64,
    writes: Vec<Write>,
}

impl History {
    /// Writes to the disk at `connect` until `clock` ends the load.
    pub(crate) fn write(connect: &Connect, seed: u64, clock: &Clock) -> History {
        let client = Client::connect(connect).unwrap_or_else(|error| panic!("{error}"));
        let sectors = client.info().capacity / SECTOR as u64;
        let (mut queues, mut pool) = client.into_parts();
        let queue = &mut queues[0];
        let mut rng = Rng::new(seed);
        let mut writes: Vec<Write> = Vec::new();
        let buffer = |_| pool.buffer(MOST as usize * SECTOR).expect("a buffer");
        let mut idle: Vec<_> = (0..DEPTH).map(buffer).collect();
        let mut in_flight: Vec<usize> = Vec::new();
        loop {
            while !clock.ended.load(Ordering::SeqCst)
                && let Some(mut buffer) = idle.pop()
            {
                let len = 1 + rng.below(MOST);
                let first = rng.below(sectors - len + 1);
                let races = |&n: &usize| {
                    let other: &Write = &writes[n];
                    other.first < first + len && first < other.first + other.sectors
                };
                if in_flight.iter().any(races) {
                    idle.push(buffer);
                    break;
                }
                let number = writes.len();
                buffer.set_part(0, len as usize * SECTOR);
                buffer.store(&stamped(first, len, number as u32 + FIRST + 1));
                let sent = clock.tick();
                writes.push(Write { first, sectors: len, sent, acknowledged: None });
                in_flight.push(number);
                queue
                    .write(first * SECTOR as u64, buffer, number as u64)
                    .expect("room on the ring");
            }
            queue.kick().expect("the server hears");
            if in_flight.is_empty() && clock.ended.load(Ordering::SeqCst) {
                return History { sectors, writes };
            }
            assert!(queue.wait(Duration::from_secs(30)).expect("a wait"), "the disk hangs");
            while let Some(done) = queue.reap() {
                done.result.unwrap_or_else(|error| panic!("write {}: {error}", done.user));
                let number = done.user as usize;
                writes[number].acknowledged = Some(clock.tick());
                clock.acknowledged.fetch_add(1, Ordering::SeqCst);
                in_flight.retain(|&n| n != number);
                idle.extend(done.buffer);
            }
        }
    }

    /// The number of writes.
    pub(crate) fn len(&self) -> usize {
        self.writes.len()
    }

    /// The content of the disk after all writes.
    pub(crate) fn last_content(&self) -> Vec<u8> {
        self.last_content_over(&stamped(0, self.sectors, FIRST))
    }

    /// The same, for a disk that began as `image`.
    pub(crate) fn last_content_over(&self, image: &[u8]) -> Vec<u8> {
        let mut all = image.to_vec();
        for (number, write) in self.writes.iter().enumerate() {
            let bytes = stamped(write.first, write.sectors, number as u32 + FIRST + 1);
            let at = write.first as usize * SECTOR;
            all[at..at + bytes.len()].copy_from_slice(&bytes);
        }
        all
    }

    /// Fails unless `image` is the content of the disk at one moment, not before `from` and not
    /// after `to`.
    pub(crate) fn assert_is_a_moment(&self, image: &[u8], from: u64, to: u64) {
        let generations = self.generations(image);
        let mut included = vec![false; self.writes.len()];
        for &generation in &generations {
            if generation > FIRST {
                included[(generation - FIRST - 1) as usize] = true;
            }
        }
        let held = || self.writes.iter().zip(&included).filter(|(_, held)| **held);
        let newest = held().map(|(write, _)| write.sent).max().unwrap_or(0);
        assert!(newest <= to, "the image holds a write that was sent after the reply");
        for (number, write) in self.writes.iter().enumerate() {
            let before = write.acknowledged.is_some_and(|at| at < newest.max(from));
            let sectors = write.first..write.first + write.sectors;
            for sector in sectors.filter(|_| before) {
                let (found, wanted) = (generations[sector as usize], number as u32 + FIRST + 1);
                assert!(
                    found >= wanted,
                    "sector {sector} is of generation {found}; generation {wanted} was acknowledged \
                     before the command, or before another write was sent that the image holds"
                );
            }
        }
    }

    /// The write that each sector comes from, which must be one to that sector.
    fn generations(&self, image: &[u8]) -> Vec<u32> {
        assert_eq!(image.len() as u64, self.sectors * SECTOR as u64);
        let of = |(at, bytes): (usize, &[u8])| match Found::new(bytes) {
            Found::Stamp { sector, generation: Generation(g) } if sector == at as u64 => {
                let known = g == FIRST
                    || self.writes.get((g - FIRST - 1) as usize).is_some_and(|write| {
                        (write.first..write.first + write.sectors).contains(&sector)
                    });
                assert!(known, "sector {at} is of generation {g}, which never went there");
                g
            }
            other => panic!("sector {at} holds {other}"),
        };
        image.chunks(SECTOR).enumerate().map(of).collect()
    }
}
